"""JSON-RPC over HTTP for both generations of the protocol, with the codes of its specification."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from a2a.server.context import ServerCallContext
from a2a.server.request_handlers.response_helpers import build_error_response
from a2a.utils.errors import (
    JSON_RPC_ERROR_CODE_MAP,
    A2AError,
    InternalError,
    InvalidParamsError,
    InvalidRequestError,
    JSONParseError,
    MethodNotFoundError,
    PushNotificationNotSupportedError,
    VersionNotSupportedError,
)
from sse_starlette.sse import EventSourceResponse
from starlette.responses import JSONResponse

from apflow.bridge.a2a.methods import METHODS, PUSH_METHODS
from apflow.bridge.a2a.parts import DEEPEST
from apflow.bridge.a2a.user import CallingUser
from apflow.bridge.refusals import refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.responses import Response

    from apflow.bridge.a2a.handler import Handler
    from apflow.bridge.a2a.methods import Method

_VERSION = "a2a-version"
_INFINITE = (float("inf"), float("-inf"))


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request that is in order."""

    id: str | int | None
    method: str
    params: dict[str, Any]


class Rpc:
    """The endpoint.

    Args:
        handler: What answers the methods.
    """

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def answer(self, request: Request) -> Response:
        """Answer one request."""
        asked = _Asked(None, "", {})
        try:
            body = _decoded(await request.body())
            asked = _Asked(_id_of(body), "", {})
            asked = _checked(body)
            return await self._answer(asked, request)
        except A2AError as error:
            return JSONResponse(_error(asked, error))
        except Exception as error:  # noqa: BLE001 - callers see none of it
            return JSONResponse(_error(asked, _internal(error)))

    async def _answer(self, asked: _Asked, request: Request) -> Response:
        if asked.method in PUSH_METHODS:
            raise PushNotificationNotSupportedError
        method = METHODS.get(asked.method)
        if method is None:
            raise MethodNotFoundError
        version = request.headers.get(_VERSION, "").partition(".")[0]
        if version and version != method.version:
            raise VersionNotSupportedError
        _check_values(asked.params)
        try:
            params = method.read(asked.params)
        except A2AError:
            raise
        except Exception:  # noqa: BLE001 - the parsers of both generations have their own errors
            raise InvalidParamsError(message="the parameters do not fit this method") from None
        identity = request.scope.get("apflow.identity")
        state = {"identity": identity, "message": asked.params.get("message"), "method": asked.method}
        context = ServerCallContext(user=CallingUser(identity), state=state)
        found = getattr(self._handler, method.handler)(params, context)
        if not method.streams:
            return JSONResponse({"jsonrpc": "2.0", "id": asked.id, "result": method.shown(await found, asked.params)})
        # The first one is awaited, so that what is wrong with the request is said in a plain answer.
        first = await anext(found, None)
        return EventSourceResponse(_events(asked, method, first, found))


async def _events(asked: _Asked, method: Method, first: Any, rest: AsyncIterator[Any]) -> AsyncIterator[dict[str, str]]:
    try:
        if first is not None:
            yield _event(asked, method, first)
            async for one in rest:
                yield _event(asked, method, one)
    except A2AError as error:
        yield {"data": json.dumps(_error(asked, error))}
    except Exception as error:  # noqa: BLE001 - callers see none of it
        yield {"data": json.dumps(_error(asked, _internal(error)))}


def _event(asked: _Asked, method: Method, one: Any) -> dict[str, str]:
    answer = {"jsonrpc": "2.0", "id": asked.id, "result": method.shown(one, asked.params)}
    return {"data": json.dumps(answer, ensure_ascii=False)}


# -- requests ----------------------------------------------------------------------------------------------------


def _decoded(text: bytes) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise JSONParseError from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _id_of(body: Any) -> str | int | None:
    found = body.get("id") if isinstance(body, dict) else None
    if isinstance(found, str) and found != found.encode(errors="replace").decode():
        return None  # half of a surrogate pair is no text that could be sent back
    return found if isinstance(found, str | int) and not isinstance(found, bool) else None


def _checked(body: Any) -> _Asked:
    if not isinstance(body, dict):
        raise InvalidRequestError(message="a request is an object; batches are not supported")
    if body.get("jsonrpc") != "2.0":
        raise InvalidRequestError(message='jsonrpc must be "2.0"')
    given, method = body.get("id"), body.get("method")
    if given != _id_of(body) or isinstance(given, bool):
        raise InvalidRequestError(message="id must be a string, an integer or null")
    if not isinstance(method, str) or not method:
        raise InvalidRequestError(message="method must be a string")
    params = body.get("params", {})
    if not isinstance(params, dict):
        raise InvalidParamsError(message="params must be an object")
    return _Asked(_id_of(body), method, params)


def _check_values(value: Any, depth: int = 0) -> None:
    """Refuse what the protocol's buffers cannot hold."""
    if isinstance(value, dict | list):
        if depth > DEEPEST:
            raise InvalidParamsError(message="the parameters are nested too deeply; send inputs as a JSON text")
        for one in value.values() if isinstance(value, dict) else value:
            _check_values(one, depth + 1)
    if isinstance(value, float) and value in _INFINITE:
        raise InvalidParamsError(message="the parameters have a number that is too large")


# -- errors ------------------------------------------------------------------------------------------------------


def _error(asked: _Asked, error: A2AError) -> dict[str, Any]:
    method = METHODS.get(asked.method)
    if method is not None and method.version != "0":
        return build_error_response(asked.id, error)
    code = JSON_RPC_ERROR_CODE_MAP.get(type(error), -32603)
    told: dict[str, Any] = {"code": code, "message": error.message}
    if error.data is not None:
        told["data"] = error.data
    return {"jsonrpc": "2.0", "id": asked.id, "error": told}


def _internal(error: Exception) -> A2AError:
    refusal = refused(error, "a2a")
    return InternalError(message=refusal.message, data=refusal.as_json())
