"""`aggregate_results_executor`: one result out of many."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Final

from apflow.engine.executable import ExecutableTask
from apflow.engine.loading import needs_of
from apflow.engine.registry import executor_register
from apflow.engine.schema_check import check_by_schema
from apflow.errors import InvalidInputsError
from apflow.state import current_state

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from apflow.storage.store import Tx

ID: Final = "aggregate_results_executor"
_LONGEST_INDEX: Final = 9  # digits

_INPUTS: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "source_task_ids": {
            "type": "array",
            "items": {"type": "string"},
            "description": "Tasks among the dependencies, in the order wanted; all of them when left out",
        },
        "strategy": {
            "enum": ["merge", "list", "sum", "count", "mean", "first_success"],
            "default": "merge",
            "description": "merge: objects into one, later ones win; what is no object stands under its task's id",
        },
        "path": {
            "type": "string",
            "description": "Where in each result the value is, such as usage.total or items.0; all of it when left out",
        },
        "dependencies": {
            "type": "object",
            "description": "Results by task id; in a task tree those of the dependencies that completed",
        },
    },
    "additionalProperties": False,
}
_OUTPUTS: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "aggregated_result": {},
        "count": {"type": "integer", "minimum": 0, "description": "How many sources had a value"},
        "missing": {
            "type": "array",
            "items": {"type": "string"},
            "description": "Sources without one: they did not complete, or have nothing at the path",
        },
    },
    "required": ["aggregated_result", "count", "missing"],
}


@executor_register
class AggregateResultsExecutor(ExecutableTask):
    """Makes one result out of those of the tasks that it depends on.

    A source that did not complete (its dependency is not required), or that has nothing at `path`, is left out and
    named in `missing`. A source that is no dependency at all is an error.

    `merge`: objects are merged key by key, and of two values under one key the later source's counts; what is no
    object is put under the id of its task. `list`: values in order. `sum`, `mean`: of numbers; a sum of integers is
    one, a sum of nothing is 0, the mean of nothing null. `count`: how many have a value. `first_success`: the first
    value there is, or null.
    """

    id = "aggregate_results_executor"
    name = "Aggregate Results"
    description = (
        "Makes one result out of those of other tasks: merged, listed, summed, counted, averaged or the first."
    )
    tags: ClassVar[tuple[str, ...]] = ("data",)
    secret_inputs: ClassVar[tuple[str, ...] | None] = ()

    async def execute(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return the aggregate, how many sources went into it, and which did not.

        Raises:
            InvalidInputsError: A source is no dependency, or `sum` or `mean` met what is no number. The message
                has its id.
        """
        check_by_schema(ID, _INPUTS, inputs)
        results = inputs.get("dependencies", {})
        sources = list(dict.fromkeys(inputs.get("source_task_ids", results)))
        await _check_known([source for source in sources if source not in results])
        values: dict[str, Any] = {}
        for source in sources:
            try:
                values[source] = _at(results[source], inputs.get("path", ""))
            except LookupError:
                continue
        return {
            "aggregated_result": _STRATEGIES[inputs.get("strategy", "merge")](values),
            "count": len(values),
            "missing": [source for source in sources if source not in values],
        }

    def get_input_schema(self) -> dict[str, Any]:
        return _INPUTS

    def get_output_schema(self) -> dict[str, Any]:
        return _OUTPUTS


async def _check_known(absent: list[str]) -> None:
    """Tell sources that did not complete from those that this task does not depend on."""
    state = current_state()
    if absent and state is not None:

        def declared(tx: Tx) -> set[str]:
            row = tx.row("SELECT dependencies FROM apflow_tasks WHERE id = :id", {"id": state.id})
            return set() if row is None else {source for source, _ in needs_of(row[0])}

        known = await state.runtime.store.read(declared)
        absent = [source for source in absent if source not in known]
    if absent:
        names = ", ".join(map(repr, absent))
        raise InvalidInputsError(f"source_task_ids: this task does not depend on {names}")


def _at(value: Any, path: str) -> Any:
    """Return what stands at a dotted path. Raises LookupError when nothing does."""
    for step in path.split(".") if path else ():
        if isinstance(value, dict):
            value = value[step]
        elif isinstance(value, list) and step.isascii() and step.isdecimal() and len(step) <= _LONGEST_INDEX:
            value = value[int(step)]
        else:
            raise LookupError
    return value


def _merge(values: Mapping[str, Any]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for source, value in values.items():
        merged.update(value if isinstance(value, dict) else {source: value})
    return merged


def _sum(values: Mapping[str, Any]) -> int | float:
    numbers: list[int | float] = []
    for source, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidInputsError(f"the value of task {source!r} is no number, but {type(value).__name__}")
        numbers.append(value)
    if all(isinstance(number, int) for number in numbers):
        return sum(numbers)
    try:
        return math.fsum(numbers)
    except OverflowError:
        raise InvalidInputsError("the numbers are too large to be added up") from None


def _mean(values: Mapping[str, Any]) -> float | None:
    total = _sum(values)
    try:
        return total / len(values) if values else None
    except OverflowError:
        raise InvalidInputsError("the numbers are too large for a mean") from None


_STRATEGIES: Final[dict[str, Callable[[dict[str, Any]], Any]]] = {
    "merge": _merge,
    "list": lambda values: list(values.values()),
    "sum": _sum,
    "count": len,
    "mean": _mean,
    "first_success": lambda values: next(iter(values.values()), None),
}
