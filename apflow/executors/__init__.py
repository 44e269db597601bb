"""The executors that come with apflow."""
