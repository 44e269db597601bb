"""Texts that callers give as ids: of users, of runs, and of calls that are one."""

from __future__ import annotations

LONGEST_ID = 255


def can_be_id(text: str) -> bool:
    """Whether every database takes it as the id of something."""
    return 0 < len(text) <= LONGEST_ID and "\0" not in text and text == text.encode(errors="replace").decode()
