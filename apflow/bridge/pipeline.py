"""apcore's pipeline for our calls: nothing in it cuts, kills, logs or counts what the onion governs."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from apcore import Config, ExecutionPolicy, Executor
from apcore.builtin_steps import BuiltinApprovalGate, BuiltinExecute, BuiltinInputValidation, BuiltinOutputValidation
from apcore.cancel import ExecutionCancelledError
from apcore.errors import SchemaValidationError
from apcore.pipeline import BaseStep, StepResult

from apflow.bridge.approvals import ApprovalGate

if TYPE_CHECKING:
    from apcore import ACL, ApprovalHandler, Registry
    from apcore.pipeline import PipelineContext, Step

#: Budgets, timeouts and the recovery limit are ours; apcore's would stop recursive flows and long ones.
_CONFIG = {
    "executor": {
        "default_timeout": 0,
        "global_timeout": 0,
        "max_call_depth": 1_000_000,
        "max_module_repeat": 1_000_000,
    }
}


def make_executor(
    registry: Registry, *, acl: ACL | None = None, approval_handler: ApprovalHandler | None = None
) -> Executor:
    """Return an executor whose calls end when they are cancelled.

    Args:
        registry: The modules.
        acl: Who may call what; None is everybody everything.
        approval_handler: Who approves calls of modules that require it. Without one these calls are refused.
    """
    config = Config(data=_CONFIG)
    policy = None if approval_handler is not None else ExecutionPolicy(strict=True)
    made = Executor(registry, config=config, acl=acl, approval_handler=approval_handler, policy=policy)
    strategy = made.current_strategy
    strategy.replace("execute", _Execute(config=config))
    strategy.replace("input_validation", _InputValidation())
    strategy.replace("output_validation", _OutputValidation())
    for at, step in enumerate(strategy.steps):
        if isinstance(step, BuiltinApprovalGate):
            strategy.steps[at] = ApprovalGate(step)
    if acl is None and approval_handler is None:
        at = strategy.step_names().index("module_lookup")
        strategy.steps[at] = _ModuleLookup(strategy.steps[at], made)
    return made


class _ModuleLookup(BaseStep):
    """Finds the module as apcore does, without its copy of the inputs for logs when there is nobody who could read it.

    That copy, with secrets left out, costs as much as the rest of the pipeline. It is for middleware, access rules and
    approvals, and for modules that look at their context; ours do not.
    """

    def __init__(self, found_by: Step, executor: Executor) -> None:
        self._found_by, self._executor = found_by, executor
        super().__init__(
            found_by.name, found_by.description, removable=False, replaceable=False, pure=True, provides=("module",)
        )

    async def execute(self, ctx: PipelineContext) -> StepResult:
        watched = self._executor.middlewares or self._executor.current_strategy.step_middlewares
        if watched or not getattr(self._executor.registry.get(ctx.module_id), "checks_inputs", False):
            return await self._found_by.execute(ctx)
        context: Any = ctx.context
        without: Any = None
        ctx.context = without  # there is no copy for nobody
        try:
            return await self._found_by.execute(ctx)
        finally:
            ctx.context = context


class _Execute(BuiltinExecute):
    """Awaits the module itself, so that cancelling the call cancels the module."""

    async def execute(self, ctx: PipelineContext) -> StepResult:
        module: Any = ctx.module
        if ctx.stream or module is None or not inspect.iscoroutinefunction(module.execute):
            return await super().execute(ctx)
        token = ctx.context.cancel_token
        if token is not None and token.is_cancelled:
            raise ExecutionCancelledError
        inputs = ctx.inputs if ctx.validated_inputs is None else ctx.validated_inputs
        ctx.output = await module.execute(inputs, ctx.context)
        return StepResult(action="continue")


class _InputValidation(BuiltinInputValidation):
    """Leaves the inputs to modules that validate them themselves, and converts them on the way."""

    async def execute(self, ctx: PipelineContext) -> StepResult:
        if not getattr(ctx.module, "checks_inputs", False):
            return await super().execute(ctx)
        ctx.validated_inputs = ctx.inputs
        return StepResult(action="continue")


class _OutputValidation(BuiltinOutputValidation):
    """Leaves results alone that were made from their annotations."""

    async def execute(self, ctx: PipelineContext) -> StepResult:
        if not getattr(ctx.module, "checks_inputs", False):
            try:
                return await super().execute(ctx)
            except SchemaValidationError:
                pass  # it is the module that is wrong, not the caller, and apcore has one error for both
            raise TypeError("the output of this module does not fit its schema")
        ctx.validated_output = ctx.output
        return StepResult(action="continue")
