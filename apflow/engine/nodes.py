"""From a node's row to its run: its arguments, and what governs it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from apflow.calls import govern
from apflow.durability.retry import BackoffStrategy, RetryPolicy
from apflow.engine.executors import find_executor
from apflow.engine.specs import fill
from apflow.governance.budget import Budget
from apflow.state import RunState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from apflow.engine.class_runs import Probe
    from apflow.engine.executors import Executor
    from apflow.engine.loading import Details
    from apflow.engine.plan import Node
    from apflow.options import Options
    from apflow.storage.store import Tx


def make_state(tree: RunState, node: Node, details: Details, results: Mapping[str, str | None]) -> RunState:
    """Return the run of a node, inside the run of its tree, not stored yet.

    Args:
        tree: The run of its tree.
        node: Where it stands in the graph.
        details: What it runs.
        results: JSON text of the results of the dependencies that completed, by id.

    Raises:
        ExecutorNotFoundError: This process does not know its executor.
        InvalidInputsError: Its inputs do not fit, or name a result that is not there.
        UserRequiredError: A budget counts per user, and it has none.
        PolicyNotFoundError: The runtime does not know its cost policy.
    """
    executor = find_executor(details.executor, tree.runtime)
    probe = None if executor.kind is None else executor.probe(details.params)
    arguments = executor.arguments(_inputs(executor, node, details, results), details.params, probe)
    definition = executor.definition
    tree.runtime.claim_name(definition)
    options = _options(definition.options, details)
    state = RunState(definition, options, tree.runtime, arguments, tree, owned=True, user=details.user or tree.user)
    state.id, state.root_id, state.kind = node.id, node.root_id, "node"
    state.checkpoint = bool(options.checkpoint)
    state.epoch = node.epoch + 1
    state.taken_over = tree.taken_over
    govern(state)
    if probe is not None:
        state.at_end = _redaction(probe, details)
    return state


def _inputs(executor: Executor, node: Node, details: Details, results: Mapping[str, str | None]) -> Mapping[str, Any]:
    """Return the inputs with results in place: those that they refer to, and all under `dependencies` if they count.

    Results may be large, so only what is used is parsed.
    """
    own = executor.own(details.inputs)
    if not node.needs:
        return own
    completed = dict.fromkeys(one for one, _ in node.needs if one in results)
    parsed: dict[str, Any] = {}

    def result(task_id: str) -> Any:
        if task_id not in parsed:
            if task_id not in completed:
                raise LookupError
            parsed[task_id] = json.loads(results[task_id] or "null")
        return parsed[task_id]

    filled = fill(own, lambda reference: result(reference.id))
    if executor.takes_dependencies:
        filled["dependencies"] = {one: result(one) for one in completed}
    return filled


def _options(options: Options, details: Details) -> Options:
    """Return the options of the executor's task with what the node's row says in place."""
    changed: dict[str, Any] = {}
    if details.max_attempts is not None:
        changed["retry"] = _retry(options.retry, details, details.max_attempts)
    if details.token_budget is not None:
        changed["budget"] = _budgets(options.budget, details.token_budget)
    if details.cost_policy is not None and details.cost_policy not in options.policy:
        changed["policy"] = (*options.policy, details.cost_policy)
    return replace(options, **changed) if changed else options


def _retry(own: RetryPolicy | None, details: Details, max_attempts: int) -> RetryPolicy:
    own = own or RetryPolicy()
    base = own.backoff_base_seconds if details.backoff_base_seconds is None else details.backoff_base_seconds
    strategy = own.backoff_strategy if details.backoff_strategy is None else BackoffStrategy(details.backoff_strategy)
    return replace(
        own,
        max_attempts=max_attempts,
        backoff_strategy=strategy,
        backoff_base_seconds=base,
        backoff_max_seconds=max(base, own.backoff_max_seconds),
    )


def _budgets(own: tuple[Budget, ...], tokens: int) -> tuple[Budget, ...]:
    """Return the task's budgets with this one for the run; of two limits on the same account the smaller counts."""
    same = [one for one in own if one.per == "run" and one.window is None and one.name is None]
    if not same:
        return (*own, Budget(tokens=tokens))
    first = same[0]
    limit = tokens if first.tokens is None else min(first.tokens, tokens)
    reserve = None if first.reserved.tokens > limit else first.reserve
    tightened = replace(first, tokens=limit, reserve=reserve)
    return tuple(tightened if one is first else one for one in own)


def _redaction(probe: Probe, details: Details) -> Any:
    """Return what masks passwords in the inputs of a node once it has completed."""
    kept = probe.redacted(details.inputs)
    if kept == details.inputs:
        return None
    text = json.dumps(kept, ensure_ascii=False)

    def mask(tx: Tx, status: str) -> None:
        if status == "completed":
            cast = "::json" if tx.dialect == "postgresql" else ""
            sql = f"UPDATE apflow_tasks SET inputs = :inputs{cast} WHERE id = :id"
            tx.execute(sql, {"inputs": text, "id": details.id})

    return mask
