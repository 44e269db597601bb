"""From the executors that the scanner finds to modules of apcore."""

from __future__ import annotations

import importlib.util
import logging
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from apflow.bridge.module_adapter import ExecutableTaskModuleAdapter
from apflow.engine.scanner import BrokenFile, ExtensionScanner

if TYPE_CHECKING:
    from collections.abc import Callable

    from apflow.engine.scanner import ExecutorMetadata
    from apflow.runtime import Runtime

logger = logging.getLogger(__name__)


def discover_executor_modules(
    runtime: Runtime | Callable[[], Runtime] | None = None, *, skipped: list[BrokenFile] | None = None
) -> list[ExecutableTaskModuleAdapter]:
    """Return a module for each executor that comes with apflow, found by reading source files.

    One that cannot be used here is left out, and a warning says why.

    Args:
        runtime: Where the runs are, or what returns that; None is the runtime that a call would use.
        skipped: Gets what was left out, by file and line.
    """
    adapters: list[ExecutableTaskModuleAdapter] = []
    for metadata in ExtensionScanner.scan_builtin_executors().values():
        try:
            adapters.append(adapter_of(metadata, runtime))
        except Exception as error:  # noqa: BLE001 - one that fails must not take the others with it
            reason = _reason(metadata, error)
            logger.warning("executor %s is left out of the modules: %s", metadata.id, reason)
            if skipped is not None:
                skipped.append(BrokenFile(metadata.file, metadata.line, f"executor {metadata.id!r} {reason}"))
    return adapters


def adapter_of(
    metadata: ExecutorMetadata, runtime: Runtime | Callable[[], Runtime] | None = None
) -> ExecutableTaskModuleAdapter:
    """Return the module of one executor that the scanner has found; its class is imported and made once.

    Args:
        metadata: What the scanner has found.
        runtime: Where the runs are, or what returns that; None is the runtime that a call would use.

    Raises:
        ExecutorNotFoundError: It cannot be imported.
        TypeError: A schema is none.
        Exception: Whatever its constructor and its schemas raise.
    """
    if missing := _missing(metadata):
        raise ModuleNotFoundError(f"No module named {missing[0]!r}", name=missing[0])
    kind = ExtensionScanner.load(metadata)
    template = kind()
    return ExecutableTaskModuleAdapter(
        executor_class=kind,
        executor_id=metadata.id,
        executor_name=metadata.name,
        executor_description=metadata.description,
        input_schema=_schema(template.get_input_schema()),
        output_schema=_schema(template.get_output_schema()),
        tags=list(metadata.tags),
        dependencies=list(metadata.dependencies),
        always_available=metadata.always_available,
        runtime=runtime,
    )


def _schema(found: object) -> dict[str, Any]:
    from jsonschema import Draft202012Validator

    if not isinstance(found, dict):
        raise TypeError("a schema is a JSON object")
    Draft202012Validator.check_schema(found)
    return deepcopy(found)


def _missing(metadata: ExecutorMetadata) -> list[str]:
    """Return the packages that it needs and that are not installed, as far as their names tell."""
    names = [one.replace("-", "_") for one in metadata.dependencies]
    return [one for one in names if one.isidentifier() and importlib.util.find_spec(one) is None]


def _reason(metadata: ExecutorMetadata, error: Exception) -> str:
    """Tell what is wrong with an executor, without the words of its own errors."""
    if missing := _missing(metadata):
        return f"needs {', '.join(missing)}, which is not installed"
    return f"cannot be described ({type(error).__qualname__})"
