"""What all tables have in common."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel


class Base(SQLModel, registry=registry()):
    """Keeps these tables out of the metadata of an application that uses SQLModel too."""


metadata = Base.metadata


def column(type_: Any, *constraints: Any, default: Any = None, **options: Any) -> Any:
    """Return a field; `default` is Python's, which no other program that writes to the table sees."""
    return Field(default=default, sa_column=Column(type_, *constraints, **options))


def required(type_: Any, *constraints: Any, **options: Any) -> Any:
    """Return a field that always has a value."""
    return Field(sa_column=Column(type_, *constraints, nullable=False, **options))
