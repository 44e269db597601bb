"""Tasks that every door calls: each takes and returns a kind of value, or fails in a way of its own."""

from __future__ import annotations

import asyncio
import enum
import uuid
from collections.abc import AsyncIterator
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from pydantic import BaseModel

import apflow
from apflow.durability.circuit_breaker import CircuitBreakerConfig

SECRETS = ("hunter2", "/etc/passwd", "SELECT password")


class Tone(enum.Enum):
    DRY = "dry"
    WARM = "warm"


class Page(BaseModel):
    url: str
    words: int = 0


class Book(BaseModel):
    title: str
    pages: list[Page]


@apflow.task
async def one_int(x: int) -> int:
    assert type(x) is int
    return x


@apflow.task
async def one_float(x: float) -> float:
    return x


@apflow.task
async def one_bool(x: bool) -> bool:
    return not x


@apflow.task
def one_str(x: str) -> str:
    return x


@apflow.task
async def one_datetime(x: datetime) -> datetime:
    return x.replace(microsecond=5)


@apflow.task
async def one_date(x: date) -> date:
    return x.replace(day=2)


@apflow.task
async def one_enum(x: Tone) -> Tone:
    assert x is Tone.WARM
    return x


@apflow.task
async def one_uuid(x: uuid.UUID) -> uuid.UUID:
    return uuid.UUID(int=x.int + 1)


@apflow.task
async def one_decimal(x: Decimal) -> Decimal:
    return x + Decimal("0.10")


@apflow.task
async def one_model(x: Book) -> Book:
    return Book(title=x.title, pages=[*x.pages, Page(url="last")])


@apflow.task
async def one_models(x: list[Page]) -> list[Page]:
    return x[::-1]


@apflow.task
async def one_list(x: list[int]) -> list[int]:
    return x[::-1]


@apflow.task
async def one_dict(x: dict[str, list[int]]) -> dict[str, list[int]]:
    return x


@apflow.task
async def one_optional(x: int | None) -> int | None:
    return x


@apflow.task
async def one_default(x: int = 7, *, page: Page | None = None, tone: Tone = Tone.DRY) -> list[Any]:
    return [x, page is None, tone.value]


@apflow.task
async def one_kwargs(**more: int) -> dict[str, int]:
    return more


@apflow.task
async def one_stream(n: int) -> AsyncIterator[Page]:
    for number in range(n):
        yield Page(url=str(number), words=number)


@apflow.task
async def one_nothing() -> None: ...


# -- failures ------------------------------------------------------------------------------------------------


@apflow.task(budget=apflow.Budget(tokens=10, window="1mo", per="global", name="one_budget"))
async def one_spends() -> None:
    apflow.report_usage(input=10)


@apflow.task(breaker=CircuitBreakerConfig(failure_threshold=1, reset_timeout_seconds=600))
async def one_breaks() -> None:
    raise ValueError(" ".join(SECRETS))


@apflow.task(tags=("requires_approval",))
async def one_guarded() -> None: ...


@apflow.task
async def one_cancelled() -> None:
    await apflow.runtime().runs.cancel(apflow.current().task_id)
    await asyncio.Event().wait()


@apflow.task(timeout=0.01)
async def one_slow() -> None:
    await asyncio.Event().wait()


@apflow.task
async def one_public() -> None:
    raise apflow.PublicError("the moon is full", code="moon", details={"phase": 1}, retryable=True)


@apflow.task
async def one_raises() -> None:
    password = SECRETS[0]
    raise RuntimeError(f"{SECRETS[1]}: {SECRETS[2]} = {password}")
