"""The calendar windows of budgets: hours, days, weeks and months in a time zone."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

WINDOWS = ("1h", "1d", "1w", "1mo")
#: Characters; the table of accounts has a column for it.
LONGEST_TZ = 64

_HOUR = timedelta(hours=1)
_SECOND = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Window:
    """A span of time. Without bounds, it is all time.

    Attributes:
        start: The first moment of it, in UTC.
        end: The first moment after it, in UTC.
    """

    start: datetime | None
    end: datetime | None


def check_window(window: str | None) -> None:
    """Refuse what is neither None nor one of `WINDOWS`.

    Raises:
        ValueError: It lists the windows that there are.
    """
    if window is not None and window not in WINDOWS:
        raise ValueError(f"window must be None or one of {', '.join(map(repr, WINDOWS))}, got {window!r}")


def check_tz(tz: str) -> None:
    """Refuse what is not the name of a time zone that this machine knows. `"UTC"` is known everywhere.

    Raises:
        ValueError: It says what is expected, and what to install when the machine knows no time zone at all.
    """
    if not isinstance(tz, str) or len(tz) > LONGEST_TZ:
        raise ValueError(f"tz must be the name of a time zone of at most {LONGEST_TZ} characters, such as 'UTC'")
    _zone(tz)


def window_at(window: str | None, tz: str, now: datetime) -> Window:
    """Return the window that holds `now`: `start <= now < end`. The next window starts where it ends.

    A day, week (from Monday) or month lasts from its first midnight to the first midnight after it, by the
    clock of the time zone: 23 or 25 hours when the clock is changed on that day. A midnight that the clock
    skips is the moment of the skip. Hours are those of the clock too and never longer than 60 minutes:
    where the clock is changed by a part of an hour, one hour is cut in two.

    Args:
        window: One of `WINDOWS`, or None for all time.
        tz: The name of a time zone.
        now: Any aware time.

    Raises:
        ValueError: There is no such window or time zone, or `now` has no time zone.
    """
    check_window(window)
    if window is None:
        return Window(None, None)
    if now.utcoffset() is None:
        raise ValueError("now must be a datetime with a time zone")
    zone, now = _zone(tz), now.astimezone(UTC)
    if window == "1h":
        return _hour(zone, now)
    first = _first_day(window, now.astimezone(zone).date())
    start, following = _midnight(zone, first), _next_first_day(window, first)
    while (end := _midnight(zone, following)) <= now:  # The clock was put back from behind midnight to before it.
        start, following = end, _next_first_day(window, following)
    return Window(start, end)


@cache
def _zone(tz: str) -> tzinfo:
    """Return the time zone of this name.

    Raises:
        ValueError: This machine does not know it.
    """
    if tz == "UTC":  # Also where there are no data about time zones.
        return UTC
    import zoneinfo

    try:
        return zoneinfo.ZoneInfo(tz)
    except (KeyError, ValueError, OSError) as error:
        hint = "" if zoneinfo.available_timezones() else "; this machine has no time zones, run: pip install tzdata"
        raise ValueError(f"tz must be the name of a time zone such as 'Europe/Berlin', got {tz!r}{hint}") from error


def _first_day(window: str, day: date) -> date:
    if window == "1w":
        return day - timedelta(days=day.weekday())
    return day.replace(day=1) if window == "1mo" else day


def _next_first_day(window: str, first: date) -> date:
    if window == "1mo":
        return (first + timedelta(days=31)).replace(day=1)
    return first + timedelta(days=7 if window == "1w" else 1)


def _midnight(zone: tzinfo, day: date) -> datetime:
    """Return the first moment at which the zone's clock shows the start of this day, or more."""
    midnight = datetime.combine(day, time(), zone)
    once, again = midnight.astimezone(UTC), midnight.replace(fold=1).astimezone(UTC)
    if once <= again:
        return once
    # Read with the offsets before and after it, a skipped time lies behind and before the skip.
    shown = midnight.replace(tzinfo=None)
    return _first(again, once, lambda moment: moment.astimezone(zone).replace(tzinfo=None) >= shown)


def _hour(zone: tzinfo, now: datetime) -> Window:
    full = now - _into_hour(zone, now)
    start, end, last = full, full + _HOUR, full + _HOUR - _SECOND

    def same_hands(moment: datetime) -> bool:
        return _into_hour(zone, moment) == (moment - full) % _HOUR

    if not same_hands(start):
        start = _first(start, now, same_hands)
    if not same_hands(last):
        end = _first(now.replace(microsecond=0), last, lambda moment: not same_hands(moment))
    return Window(start, end)


def _into_hour(zone: tzinfo, moment: datetime) -> timedelta:
    local = moment.astimezone(zone)
    return timedelta(minutes=local.minute, seconds=local.second, microseconds=local.microsecond)


def _first(low: datetime, high: datetime, holds: Callable[[datetime], bool]) -> datetime:
    """Return the first whole second after `low`, at most `high`, at which `holds` has become true."""
    seconds = (high - low) // _SECOND
    return low + bisect_left(range(seconds), x=True, key=lambda second: holds(low + second * _SECOND)) * _SECOND
