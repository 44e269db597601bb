"""The task engine: forests of tasks with dependencies, and the executors that they name."""
