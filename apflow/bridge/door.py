"""The way in that MCP, A2A and the command line share: which modules there are, and how one is called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apcore import Context, Registry, errors

from apflow.bridge.calling import Calling, calling
from apflow.bridge.live import LiveRegistry
from apflow.bridge.module import RunModule, TaskModule
from apflow.bridge.pipeline import make_executor
from apflow.bridge.refusals import refused
from apflow.errors import InvalidInputsError
from apflow.kinds import Task
from apflow.runtime import Runtime, runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from apcore import ACL, ApprovalHandler, Identity

    from apflow.state import Listener

#: What can be served: a registry of apcore, a runtime, some tasks, or None for all tasks of the default runtime.
Target = Any


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call through a door has returned.

    Attributes:
        output: The JSON object that the module returned.
        value: The result itself: what stands under `result` when results of this module are no objects.
        run_id: The run, or None for a module that is no task.
    """

    output: dict[str, Any]
    value: Any
    run_id: str | None


class Door:
    """Calls modules of one registry on behalf of callers.

    Args:
        target: A registry of apcore, a runtime, a task, a sequence of tasks, or None for all tasks of the runtime
            that a call made here would use.
        tags: Only modules that have all of these.
        prefix: Only modules whose ids begin with this.
        acl: Who may call what; None is everybody everything.
        approval_handler: Who approves calls of modules that require it; without one they are refused.

    Raises:
        TypeError: `target` is something else.
        ValueError: The tasks, or the modules of the registry, cannot be served together.

    Attributes:
        registry: The modules.
        runtime: Where the runs are.
        executor: apcore's, through which every call goes.
    """

    def __init__(
        self,
        target: Target = None,
        *,
        tags: Sequence[str] | None = None,
        prefix: str | None = None,
        acl: ACL | None = None,
        approval_handler: ApprovalHandler | None = None,
    ) -> None:
        self.registry, self.runtime = resolve(target)
        self.executor = make_executor(self.registry, acl=acl, approval_handler=approval_handler)
        self._tags, self._prefix = frozenset(tags or ()), prefix or ""

    def modules(self) -> dict[str, Any]:
        """Return the modules that callers may see, by id, sorted: as the registry has them now."""
        found = {}
        for module_id in sorted(self.registry.list()):
            module = self.module(module_id)
            if module is not None:
                found[module_id] = module
        return found

    def module(self, module_id: str) -> Any:
        """Return a module that callers may see, or None."""
        if not module_id or not module_id.startswith(self._prefix):
            return None
        module = self.registry.get(module_id)
        if module is None or not self._tags.issubset(getattr(module, "tags", None) or ()):
            return None
        return module if not isinstance(module, TaskModule) or LiveRegistry.describable(module) else None

    async def call(
        self,
        module_id: str,
        inputs: dict[str, Any],
        *,
        identity: Identity | None = None,
        key: str | None = None,
        run_id: str | None = None,
        listener: Listener | None = None,
        detached: bool = True,
        begun: Callable[[str], None] | None = None,
    ) -> Answer:
        """Call a module and wait for its result.

        Args:
            module_id: The module.
            inputs: A JSON object.
            identity: The caller; the id is the user of the run. None is a caller that nobody has asked.
            key: Idempotency key: calls of one caller with the same key are one run, and share its result.
            run_id: Id that the run shall have.
            listener: Hears of progress, and of the items of a generator. Called on any thread.
            detached: When this wait is cancelled the run goes on; `cancel` stops it.
            begun: Told the id of the run as soon as it is stored, or joined by its key.

        Raises:
            RefusedError: The call has no result; everything in it may be shown to the caller.
        """
        module = self.module(module_id)
        one = Calling(key=key, run_id=run_id, listener=listener, detached=detached, module=module, begun=begun)
        try:
            # The registry is never asked for what is hidden: the answer is the same as for what is missing.
            if module is None:
                raise errors.ModuleNotFoundError(module_id)  # noqa: TRY301 - it is mapped and logged like apcore's own
            if not isinstance(inputs, dict):
                raise InvalidInputsError("inputs have to be a JSON object")  # noqa: TRY301 - see above
            with calling(one):
                context: Context[Any] = Context.create(identity=identity)
                output = await self.executor.call_async(module_id, inputs, context)
        except Exception as error:  # noqa: BLE001 - callers see none of it
            # apcore walks the inputs before we do, and gives up without a word for it.
            deep = not one.started and isinstance(module, RunModule) and isinstance(error.__cause__, RecursionError)
            told_of = InvalidInputsError("inputs are nested too deeply") if deep else error
            found = refused(told_of, module_id, one.run_id if one.started else None)
        else:
            wraps = isinstance(module, RunModule) and module.wraps
            return Answer(output, output["result"] if wraps else output, one.run_id if one.started else None)
        # Nothing hangs on it that holds what was raised.
        found.__cause__ = found.__context__ = None
        raise found


def resolve(target: Target) -> tuple[Registry, Runtime]:
    """Return the registry that a target stands for, and the runtime of its runs.

    Raises:
        TypeError: It stands for none.
        ValueError: Its modules belong to several runtimes, or it is a list of no tasks, of private ones, or of two
            with one name.
        TaskDefinitionError: A task in the list has an annotation without a form in JSON.
        ExecutorNotFoundError: One is a method.
    """
    if target is None:
        target = runtime()
    if isinstance(target, Runtime):
        return target.registry, target
    if isinstance(target, Task):
        target = [target]
    if isinstance(target, list | tuple | set | frozenset):
        return _of_tasks(target)
    if isinstance(target, Registry):
        return target, _runtime_of(target)
    raise TypeError(
        f"a registry, a runtime, a task, a list of tasks or None can be served, not {type(target).__qualname__}"
    )


def _of_tasks(tasks: Iterable[Any]) -> tuple[Registry, Runtime]:
    tasks = list(dict.fromkeys(tasks))
    if not tasks:
        raise ValueError("there is no task in this list, so there is nothing to serve")
    wrong = [one for one in tasks if not isinstance(one, Task)]
    if wrong:
        raise TypeError(
            f"a list to serve has tasks in it, not {type(wrong[0]).__qualname__}; decorate with @apflow.task"
        )
    chosen = {one.options.runtime for one in tasks if one.options.runtime is not None}
    if len(chosen) > 1:
        raise ValueError("these tasks belong to several runtimes; serve each runtime by itself")
    where = chosen.pop() if chosen else runtime()
    registry = Registry()
    for one in tasks:
        if one.name.startswith("_"):
            raise ValueError(f"task {one.name!r} is private; give it another name= to serve it")
        if registry.has(one.name):
            raise ValueError(f"two tasks called {one.name!r} cannot be served together; give one another name=")
        module = TaskModule(one.definition, where, one.options)
        module.check()
        registry.register(one.name, module)
    return registry, where


def _runtime_of(registry: Registry) -> Runtime:
    found = {module.runtime for _, module in registry.iter() if isinstance(getattr(module, "runtime", None), Runtime)}
    if len(found) > 1:
        raise ValueError("the modules of this registry belong to several runtimes; serve each runtime by itself")
    return found.pop() if found else runtime()
