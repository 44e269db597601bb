"""Replay by content: the id of a child run, and what earlier lives of its parent left behind."""

from __future__ import annotations

import hashlib
import itertools
import os
from typing import TYPE_CHECKING

from apflow.errors import SerializationError
from apflow.state import Memos
from apflow.storage.statements import MEMOS, moment

if TYPE_CHECKING:
    from apflow.state import RunState
    from apflow.storage.store import Store, Tx


def identify(state: RunState, *, submitted: bool = False) -> None:
    """Encode the arguments of a call, and give its run the id that it has in every life of its parent.

    That id is a hash over the parent run, the task's name and version, the fingerprint of the arguments and how
    often the parent's function has called exactly that so far; never over the position among other calls. A run
    that no life of its parent can reuse gets a random one.

    Raises:
        SerializationError: An argument cannot be stored, or the run could not be found again though it has to be.
    """
    parent, definition = state.parent, state.definition
    codec = definition.codec
    keyed = state.key is not None
    if not keyed and not submitted and (parent is None or not parent.checkpoint):
        state.inputs = codec.dump_arguments(state.arguments)
        state.id = new_run_id()
    else:
        encoded = state.encoded = codec.encode(state.arguments)
        state.inputs, state.fingerprint = encoded.text, encoded.fingerprint
        if (keyed or submitted) and not encoded.reusable:
            raise SerializationError(
                definition.name,
                "arguments.self",
                type(next(iter(state.arguments.values()), None)).__name__,
                "a run with a key, or a submitted one, has to be found again; "
                "give the class __apflow_key__() or make it a dataclass",
            )
        if keyed or parent is None or not parent.checkpoint or not encoded.reusable:
            state.id = new_run_id()
        else:
            what = f"{definition.name}\n{definition.version}\n{encoded.fingerprint}\n{submitted}"
            # One step each, as children may be called from several threads at once.
            count = next(parent.counters.setdefault(what, itertools.count()))
            text = f"{parent.id}\n{what}\n{count}"
            state.id = state.memo_id = _uuid(hashlib.blake2b(text.encode(), digest_size=16).hexdigest())
    if keyed:
        state.run_key = run_key(state)
    if parent is None:
        state.root_id = state.id


def new_run_id() -> str:
    """Return the id of a run that is nobody's memo."""
    return _uuid(os.urandom(16).hex())


def _uuid(digits: str) -> str:
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def run_key(state: RunState) -> str:
    """Return the unique column of a call with an idempotency key."""
    definition = state.definition
    parts = (definition.name, definition.version, state.user or "", state.key or "")
    return word(*parts, size=32)


def word(*parts: str, size: int = 16) -> str:
    """Return a hash that stands for all the parts, as an id of `size` bytes in hexadecimal."""
    text = "\n".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.blake2b(text.encode(), digest_size=size).hexdigest()


async def load_memos(store: Store, state: RunState) -> Memos:
    """Read once what earlier attempts and lives of the run finished or left open."""

    def query(tx: Tx) -> Memos:
        memos = Memos({}, {}, set())
        for run_id, status, result, attempts, next_attempt_at, saved, model in tx.rows(MEMOS, {"id": state.id}):
            if status == "completed":
                memos.completed[run_id] = result
            elif status == "in_progress":
                memos.open[run_id] = (attempts or 0, moment(next_attempt_at), model)
            if status != "completed" and saved is not None:
                memos.saved.add(run_id)
        return memos

    return await store.read(query)
