"""`rest_executor`: one HTTP request, to addresses that the operator allows."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Any, Final

from apflow.engine.executable import ExecutableTask
from apflow.engine.registry import executor_register
from apflow.engine.schema_check import check_by_schema
from apflow.engine.settings import settings_of
from apflow.engine.specs import is_reference
from apflow.errors import ExecutorError, InvalidInputsError
from apflow.executors.answers import body_of, usage_in, visible
from apflow.executors.echoes import bytes_without, secrets_in, without
from apflow.executors.network import Allowed
from apflow.executors.quiet import quiet
from apflow.executors.redaction import (
    LONGEST_URL,
    MASK,
    covered,
    is_secret_header,
    is_secret_parameter,
    mask_left_in,
    mask_left_in_query,
    mask_left_in_text,
    masked,
    masked_text,
    masked_url,
    text_masked,
    url_without_values,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import httpx

    from apflow.executors.exchange import Asked

_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_SECONDS: Final = 30.0
_MOST_SECONDS: Final = 600.0
_RETRYABLE: Final = frozenset({408, 429})
_CLIENT_ERROR: Final = 400
_SERVER_ERROR: Final = 500

_TEXT: Final = {"type": "string"}
_SCALAR: Final = {"type": ["string", "number", "boolean"]}
_FIELDS: Final = {"type": "object", "additionalProperties": {"anyOf": [_SCALAR, {"type": "array", "items": _SCALAR}]}}


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_INPUTS: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "url": _TEXT | {"maxLength": LONGEST_URL, "description": "http or https, without a user name: use auth."},
        "method": {"enum": list(_METHODS), "default": "GET"},
        "headers": {"type": "object", "additionalProperties": _TEXT},
        "query": _FIELDS | {"description": "Added to the query of the URL; lists repeat the parameter."},
        "json": {"description": "The body, as JSON. At most one of json, body and form is given."},
        "body": _TEXT | {"description": "The body, as text."},
        "form": _FIELDS | {"description": "The body, as a form; lists repeat the field."},
        "auth": {"oneOf": [_object(username=_TEXT, password=_TEXT), _object(bearer=_TEXT)]},
        "timeout": {
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": _MOST_SECONDS,
            "default": _SECONDS,
            "description": "Seconds for all of it, redirects included.",
        },
        "follow_redirects": {"type": "boolean", "default": True, "description": "At most 5."},
        "max_bytes": {
            "type": "integer",
            "minimum": 1,
            "description": "What the body of the answer may have; the operator's limit, usually 10 MiB, holds as well.",
        },
        "raise_for_status": {
            "type": "boolean",
            "default": False,
            "description": "Fail on a status from 400 on; by default the status is in the result.",
        },
        "idempotency": {
            "type": "boolean",
            "default": True,
            "description": "Send POST and PATCH with an Idempotency-Key that stays the same over attempts.",
        },
        "usage": {
            "type": "boolean",
            "default": False,
            "description": "Count the tokens that a JSON answer says were used on the budgets of this task.",
        },
    },
    "required": ["url"],
    "additionalProperties": False,
    "not": {"anyOf": [{"required": ["json", "body"]}, {"required": ["json", "form"]}, {"required": ["body", "form"]}]},
}

_OUTPUT: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "status_code": {"type": "integer"},
        "response_body": {"description": "Parsed JSON, text, or base64 if `encoding` says so."},
        "encoding": {"const": "base64"},
        "headers": {"type": "object", "additionalProperties": _TEXT},
        "url": _TEXT | {"description": "Where the answer came from, without the values of its query."},
        "token_usage": _object(input={"type": "integer"}, output={"type": "integer"}, total={"type": "integer"}),
    },
    "required": ["status_code", "response_body", "headers", "url"],
}


@executor_register
class RestExecutor(ExecutableTask):
    """Makes one HTTP request and returns status, headers and body.

    Only public addresses are open. Settings, `Runtime(settings={"rest_executor": {...}})`: `allow`, a list of hosts,
    addresses and networks that are open as well; `headers`, `{origin: {name: value}}`, sent to that origin only;
    `max_bytes` and `timeout` (seconds), which no inputs can exceed.
    """

    id = "rest_executor"
    name = "REST"
    description = "Makes an HTTP request and returns the status, the headers and the body of the answer."
    tags = ("http", "network")

    def get_input_schema(self) -> dict[str, Any]:
        return _INPUTS

    def get_output_schema(self) -> dict[str, Any]:
        return _OUTPUT

    def redact(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return inputs with `***` for `auth` and for whatever looks like a secret by its name."""
        kept = dict(inputs)
        for field, hide in _HIDE.items():
            if field in kept:
                kept[field] = hide(kept[field])
        return kept

    async def execute(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Make the request.

        Raises:
            InvalidInputsError: The inputs are not as the schema says, or have a secret that was masked.
            AddressRefusedError: An address on the way is not open; nothing was sent to it.
            ExecutorError: There was no answer, or none that may be taken.
            ValueError: A setting is wrong.
        """
        from apflow.executors.exchange import answered, asked_by
        from apflow.executors.transport import MAX_BYTES, GuardedTransport, host_of, limit_of

        given = {name: value for name, value in inputs.items() if name != "dependencies"}
        check_by_schema(self.id, _INPUTS, given)
        _refuse_masks(given)
        settings = settings_of(self.id)
        longest = limit_of(settings, "timeout", _MOST_SECONDS)
        largest = int(limit_of(settings, "max_bytes", MAX_BYTES))
        seconds = min(given.get("timeout", _SECONDS), longest)
        asked = asked_by(given, settings)
        allow, most = Allowed.parse(settings.get("allow", ())), min(given.get("max_bytes", largest), largest)
        follow, secrets = given.get("follow_redirects", True), secrets_in(asked.secrets)
        try:
            with quiet():
                async with (
                    asyncio.timeout(seconds),
                    GuardedTransport(allow, most) as transport,
                    answered(transport, asked, follow=follow) as (last, response),
                ):
                    return await _result(last, response, given, secrets)
        except TimeoutError:
            raise ExecutorError(f"{host_of(asked.url)} gave no answer within {seconds:g} s", retryable=True) from None


async def _result(
    asked: Asked, response: httpx.Response, given: Mapping[str, Any], secrets: list[str]
) -> dict[str, Any]:
    from apflow.executors.transport import host_of

    status = response.status_code
    if given.get("raise_for_status", False) and status >= _CLIENT_ERROR:
        retryable = status >= _SERVER_ERROR or status in _RETRYABLE
        raise ExecutorError(f"{host_of(asked.url)} answered with status {status}", retryable=retryable)
    content = b"".join([chunk async for chunk in response.aiter_raw()])
    body, encoding = body_of(response, content)
    if encoding is not None:
        kept = base64.b64encode(bytes_without(content, secrets)).decode("ascii")
    else:
        kept = without(body, secrets)
    result = {
        "status_code": status,
        "response_body": kept,
        "headers": without(visible(response.headers), secrets),
        "url": without(url_without_values(str(asked.url)), secrets),
    }
    if encoding is not None:
        result["encoding"] = encoding
    if given.get("usage", False) and (usage := usage_in(body)) is not None:
        result["token_usage"] = usage
    return result


def _masked_auth(auth: Any) -> Any:
    return masked(auth, lambda _: True) if isinstance(auth, dict) and not is_reference(auth) else covered(auth)


# How each field of the inputs is masked, and how a mask is found that somebody sent back.
_HIDE: Final[dict[str, Callable[[Any], Any]]] = {
    "url": lambda url: text_masked(url, masked_url),
    "headers": lambda headers: masked(headers, is_secret_header),
    "query": lambda query: masked(query, is_secret_parameter),
    "json": masked,
    "body": lambda body: text_masked(body, masked_text),
    "form": masked,
    "auth": _masked_auth,
}
_FIND: Final[dict[str, Callable[[Any], str | None]]] = {
    "url": lambda url: mask_left_in_query(url.partition("?")[2]),
    "headers": lambda headers: mask_left_in(headers, is_secret_header),
    "query": lambda query: mask_left_in(query, is_secret_parameter),
    "json": mask_left_in,
    "body": mask_left_in_text,
    "form": mask_left_in,
    "auth": lambda auth: mask_left_in(auth, lambda _: True),
}


def _refuse_masks(given: Mapping[str, Any]) -> None:
    for field, find in _FIND.items():
        if field in given and (name := find(given[field])) is not None:
            raise InvalidInputsError(f"{field}: {name!r} is {MASK}, which stands for a secret: give it again")
