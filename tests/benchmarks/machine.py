"""What the numbers were measured on and with."""

from __future__ import annotations

import os
import platform
import sqlite3
import subprocess


def describe(dbos_python: str | None) -> dict[str, str]:
    """Return the system, its processors, how busy they are, and the versions of what is compared."""
    return {
        "system": platform.platform(),
        "processors": str(os.cpu_count()),
        "load before": f"{os.getloadavg()[0]:.1f}",
        "Python": platform.python_version(),
        "SQLite": sqlite3.sqlite_version,
        "DBOS": "none" if dbos_python is None else _version_of_dbos(dbos_python),
    }


def _version_of_dbos(python: str) -> str:
    program = "import importlib.metadata; print(importlib.metadata.version('dbos'))"
    return subprocess.run([python, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
