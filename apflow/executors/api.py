"""`apflow_api_executor`: the modules of another apflow, through MCP."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from apflow.engine.executable import ExecutableTask
from apflow.engine.registry import executor_register
from apflow.engine.schema_check import check_by_schema
from apflow.engine.settings import settings_of
from apflow.errors import ExecutorError, InvalidInputsError
from apflow.executors.network import Allowed
from apflow.executors.quiet import quiet
from apflow.executors.redaction import LONGEST_URL, MASK, mask_left_in, masked, masked_url, text_masked

_SECONDS: Final = 60.0
_MOST_SECONDS: Final = 86_400.0

_TEXT: Final = {"type": "string", "minLength": 1}
_INPUTS: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "endpoint": _TEXT
        | {
            "maxLength": LONGEST_URL,
            "description": "Where the other apflow serves MCP, such as https://api.example.com/mcp.",
        },
        "action": {
            "enum": ["call", "list", "wait"],
            "default": "call",
            "description": "Call a module, list them all, or wait until a task there has ended.",
        },
        "payload": {
            "type": "object",
            "properties": {
                "module": _TEXT | {"description": "For call: the id of the module."},
                "inputs": {"type": "object", "description": "For call: its inputs."},
                "task_id": _TEXT | {"description": "For wait: the task."},
            },
            "additionalProperties": False,
        },
        "poll_seconds": {"type": "number", "minimum": 0.05, "maximum": 3600, "default": 1.0},
        "timeout": {
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": _MOST_SECONDS,
            "default": _SECONDS,
            "description": "Seconds for all of it.",
        },
    },
    "required": ["endpoint"],
    "additionalProperties": False,
    "allOf": [
        {
            "if": {"properties": {"action": {"const": action}}, "required": needed},
            "then": {"required": ["payload"], "properties": {"payload": {"required": [field]}}},
        }
        for action, needed, field in (("call", [], "module"), ("wait", ["action"], "task_id"))
    ],
}
_OUTPUT: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "response": {"description": "What the module returned; for list, {modules: [...]}; for wait, the task."},
        "token_usage": {"type": "object", "description": "What the other apflow says it used, in tokens."},
    },
    "required": ["response"],
}


@executor_register
class ApFlowApiExecutor(ExecutableTask):
    """Calls the modules of another apflow over MCP's streamable HTTP.

    Only public addresses are open. Settings, `Runtime(settings={"apflow_api_executor": {...}})`: `allow`, a list of
    hosts, addresses and networks that are open as well; `headers`, `{origin: {name: value}}`, sent to that origin
    only; `max_bytes`, what one answer may have, and a whole list of modules; `timeout` (seconds), which no inputs can
    exceed.
    """

    id = "apflow_api_executor"
    name = "apflow API"
    description = "Calls a module of another apflow instance, lists its modules, or waits for one of its tasks to end."
    tags = ("apflow", "mcp", "network")

    def get_input_schema(self) -> dict[str, Any]:
        return _INPUTS

    def get_output_schema(self) -> dict[str, Any]:
        return _OUTPUT

    def redact(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return inputs with `***` for what looks like a secret by its name."""
        kept = masked(inputs)
        if "endpoint" in kept:
            kept["endpoint"] = text_masked(inputs["endpoint"], masked_url)
        return dict(kept)

    async def execute(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Call the other apflow.

        Raises:
            InvalidInputsError: The inputs are not as the schema says, or have a secret that was masked.
            AddressRefusedError: The address of the endpoint is not open; nothing was sent.
            ExecutorError: There was no answer, or it was an error. The text has nothing of the answer.
            ValueError: A setting is wrong.
        """
        from apflow.executors.sessions import endpoint_of, talk
        from apflow.executors.transport import MAX_BYTES, GuardedTransport, headers_for, host_of, limit_of

        given = {name: value for name, value in inputs.items() if name != "dependencies"}
        check_by_schema(self.id, _INPUTS, given)
        if (field := mask_left_in(given)) is not None:
            raise InvalidInputsError(f"{field!r} is {MASK}, which stands for a secret: give it again")
        url, settings = endpoint_of(given["endpoint"]), settings_of(self.id)
        headers = headers_for(settings, url)
        allow = Allowed.parse(settings.get("allow", ()))
        transport = GuardedTransport(allow, int(limit_of(settings, "max_bytes", MAX_BYTES)))
        seconds = min(given.get("timeout", _SECONDS), limit_of(settings, "timeout", _MOST_SECONDS))
        try:
            with quiet():
                async with asyncio.timeout(seconds):
                    return await talk(url, transport, headers, given)
        except TimeoutError:
            raise ExecutorError(f"{host_of(url)} gave no answer within {seconds:g} s", retryable=True) from None
