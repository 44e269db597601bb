"""Owners of runs as the database names them: made, and told whether their process has ended."""

from __future__ import annotations

import functools
import hashlib
import os
import secrets
import socket
from pathlib import Path


def new_owner() -> str:
    """Return the name of a runtime in this process: `host:machine:pid:start:runtime`."""
    pid = os.getpid()
    return f"{socket.gethostname()[:60]}:{_machine()}:{pid}:{_started(pid) or '?'}:{secrets.token_hex(4)}"


def is_gone(owner: str | None) -> bool:
    """Whether the owner is a process of this machine, this boot and this pid namespace that has ended.

    False whenever that cannot be known: then its lease has to run out.
    """
    parts = (owner or "").rsplit(":", 4)
    if len(parts) != 5 or parts[1] != _machine() or parts[1] == "?" or parts[3] == "?":  # noqa: PLR2004
        return False
    return _started(int(parts[2])) != parts[3]


@functools.cache
def _machine() -> str:
    """Return a short word for this host, boot and pid namespace, or `?` where they cannot be read."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = Path("/proc/self/ns/pid").readlink()
    except OSError:
        return "?"
    return hashlib.blake2b(f"{socket.gethostname()}|{boot}|{namespace}".encode(), digest_size=6).hexdigest()


def _started(pid: int) -> str | None:
    """Return when a process started, in clock ticks since boot; None when there is none, or only a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]
