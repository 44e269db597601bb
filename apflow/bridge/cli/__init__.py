"""The command line: `apflow serve`, `run`, `runs`, `usage`, `budget`, `db`, `recover`, `tasks` and `completion`.

Every file is a command or two; `exits.py` has their exit codes. What is heavy is imported when a command runs.
"""

from apflow.bridge.cli.root import main, root

__all__ = ["main", "root"]
