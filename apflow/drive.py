"""The door from tasks to the machinery behind them, which is loaded at the first call and not before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apflow.calls import call_async, call_sync
    from apflow.mapping import map_async, map_sync
    from apflow.streams import stream_async, stream_sync
    from apflow.submission import submit_async, submit_sync

_HOMES = {
    "call_async": "calls",
    "call_sync": "calls",
    "map_async": "mapping",
    "map_sync": "mapping",
    "stream_async": "streams",
    "stream_sync": "streams",
    "submit_async": "submission",
    "submit_sync": "submission",
}

__all__ = [
    "call_async",
    "call_sync",
    "map_async",
    "map_sync",
    "stream_async",
    "stream_sync",
    "submit_async",
    "submit_sync",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = getattr(import_module(f"apflow.{home}"), name)
    globals()[name] = found
    return found
