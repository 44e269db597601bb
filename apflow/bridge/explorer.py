"""The explorer: a page in the browser that lists the tasks and calls them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mcp_embedded_ui import create_mount
from starlette.responses import RedirectResponse
from starlette.routing import Route

from apflow.bridge.mcp.tools import described
from apflow.bridge.refusals import RefusedError, refusal

if TYPE_CHECKING:
    from mcp.types import Tool
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from apflow.bridge.door import Door

PLACE = "/explorer"
#: The page itself has no data in it, and a browser that opens it has no way to send a token; what it asks for does.
PAGES = frozenset({PLACE, f"{PLACE}/"})


def explorer_routes(door: Door, *, name: str) -> list[BaseRoute]:
    """Return the routes of the page, at `/explorer`.

    Args:
        door: Whose modules it lists and calls, as the caller of each request.
        name: What stands above it.
    """

    def tools() -> list[Tool]:
        # The page has no trouble with dots.
        return [described(one, module).model_copy(update={"name": one}) for one, module in door.modules().items()]

    async def call(module_id: str, inputs: Any, request: Request) -> tuple[list[dict[str, Any]], bool, str | None]:
        try:
            # The page's server takes a body that is no JSON for no inputs, and calls all the same.
            if not isinstance(inputs, dict) or not _is_json(await request.body()):
                raise refusal("invalid_input", "inputs are a JSON object")
            answer = await door.call(module_id, inputs, identity=request.scope["apflow.identity"])
        except RefusedError as error:
            return _text(error.as_json()), True, error.run_id
        return _text(answer.output), False, answer.run_id

    mount = create_mount(PLACE, tools=tools, handle_call=call, allow_execute=True, title=name)
    mount.app = _Unframed(mount.app)
    return [Route(PLACE, _redirect), mount]


async def _redirect(request: Request) -> Response:
    return RedirectResponse(f"{request.scope.get('root_path', '')}{PLACE}/")


def _is_json(body: bytes) -> bool:
    try:
        json.loads(body or b"{}")
    except (ValueError, RecursionError):
        return False
    return True


def _text(output: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"type": "text", "text": json.dumps(output, ensure_ascii=False, indent=2)}]


class _Unframed:
    """Forbids other sites to show the page inside theirs, where a click may not mean what it seems to."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def send_unframed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"x-frame-options", b"DENY")]
            await send(message)

        await self._app(scope, receive, send_unframed)
