"""What every executor is: something with an id, two schemas and `execute(inputs)`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar


class ExecutableTask(ABC):
    """A unit of work that a task tree can name. Subclasses are made findable with `@executor_register`.

    A new object is made for each attempt, with the node's `params` as keyword arguments.

    Attributes:
        tags: Words that group executors.
        dependencies: Packages that it needs beyond a plain installation.
        checkpoint_seconds: How often `get_checkpoint` is asked while `execute` runs, above 0.
        secret_inputs: The inputs that may name secrets with `{"$secret": name}`; None is all of them. An executor that
            returns what it is given should allow none.
    """

    tags: ClassVar[tuple[str, ...]] = ()
    dependencies: ClassVar[tuple[str, ...]] = ()
    checkpoint_seconds: ClassVar[float] = 1.0
    secret_inputs: ClassVar[tuple[str, ...] | None] = None

    @property
    @abstractmethod
    def id(self) -> str:
        """What task trees call it: lower-case letters, digits, underscores, dotted segments."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What people call it."""

    @property
    @abstractmethod
    def description(self) -> str:
        """What it does, in a sentence or two; agents choose by this."""

    @abstractmethod
    async def execute(self, inputs: dict[str, Any]) -> Any:
        """Do the work and return what JSON can carry.

        A mapping with `token_usage` (`input`, `output`, `total`, in tokens) is counted on the budgets of the run.

        Args:
            inputs: Fits `get_input_schema()`. Under `dependencies` are the results of the tasks that it depends
                on and that completed, by their id.
        """

    @abstractmethod
    def get_input_schema(self) -> dict[str, Any]:
        """Return the JSON schema of `inputs`, an object."""

    def get_output_schema(self) -> dict[str, Any]:
        """Return the JSON schema of what `execute` returns; `{}` allows anything."""
        return {}

    async def cancel(self) -> Any:  # noqa: B027 - most have nothing to clean up
        """Clean up after `execute` was cancelled. It may take a few seconds."""

    def redact(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return what may stay of `inputs` in the database once a task has completed: without passwords and keys."""
        return inputs

    def supports_checkpoint(self) -> bool:
        """Whether `get_checkpoint` and `resume_from_checkpoint` do something."""
        return False

    def get_checkpoint(self) -> dict[str, Any] | None:
        """Return the state that another attempt or another process can go on from, as a JSON object.

        It is asked every `checkpoint_seconds` while `execute` runs, and when it has failed.

        Returns:
            None when there is nothing to store.
        """
        return None

    async def resume_from_checkpoint(self, checkpoint: dict[str, Any]) -> None:  # noqa: B027 - as above
        """Take over a state that `get_checkpoint` returned; called before `execute`.

        Args:
            checkpoint: What was stored last, by an earlier attempt or by a process that has ended.
        """
