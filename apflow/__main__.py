"""`python -m apflow`: the command line."""

from apflow.bridge.cli import main

if __name__ == "__main__":
    main()
