"""Calendar windows: they hold the moment asked for, meet exactly, and follow the clock of their time zone."""

from __future__ import annotations

import zoneinfo
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apflow.governance.windows import WINDOWS, Window, _zone, check_tz, check_window, window_at

ZONES = [
    "UTC",
    "Africa/Cairo",  # skips midnight
    "America/Havana",  # has midnight twice
    "America/New_York",
    "America/Sao_Paulo",  # skipped midnight until 2018
    "America/St_Johns",  # put the clock back from 00:01 to 23:01 until 2011
    "Asia/Kathmandu",  # +05:45
    "Asia/Pyongyang",  # changed at 23:30 in 2018, by half an hour
    "Asia/Tehran",  # skipped midnight until 2022
    "Australia/Lord_Howe",  # changes by half an hour
    "Europe/Berlin",
    "Pacific/Apia",  # had no 30 December 2011
    "Pacific/Chatham",  # +12:45
]
MICROSECOND = timedelta(microseconds=1)
HOUR = timedelta(hours=1)

moments = st.datetimes(datetime(1971, 1, 1), datetime(2060, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - bounds are naive
windows = st.sampled_from(WINDOWS)


def changes(zone: str, year: int) -> list[datetime]:
    """Return the hours of this year within which, or at whose end, the zone's offset changes."""
    tz, hours = zoneinfo.ZoneInfo(zone), [datetime(year, 1, 1, tzinfo=UTC) + HOUR * n for n in range(366 * 24)]
    return [hour for hour in hours if hour.astimezone(tz).utcoffset() != (hour + HOUR).astimezone(tz).utcoffset()]


#: Hypothesis would rarely meet the hours that matter.
CHANGES = sorted(
    (zone, hour) for zone in ZONES for year in (1985, 2010, 2011, 2018, 2024, 2045) for hour in changes(zone, year)
)
near_a_change = st.builds(
    lambda change, offset: (change[0], change[1] + offset),
    st.sampled_from(CHANGES),
    st.timedeltas(timedelta(hours=-30), timedelta(hours=30)),
)
places = near_a_change | st.tuples(st.sampled_from(ZONES), moments)


def bounds(window: str, tz: str, now: datetime) -> tuple[datetime, datetime]:
    found = window_at(window, tz, now)
    assert found.start is not None
    assert found.end is not None
    return found.start, found.end


def local(tz: str, text: str, fold: int = 0) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=zoneinfo.ZoneInfo(tz), fold=fold).astimezone(UTC)


@given(windows, places, st.floats(0, 1, exclude_max=True))
def test_a_window_holds_its_moments_and_meets_its_neighbours(
    window: str, place: tuple[str, datetime], part: float
) -> None:
    tz, now = place
    start, end = bounds(window, tz, now)
    assert start <= now < end
    assert start.tzinfo is UTC
    assert end.tzinfo is UTC
    for inside in (start, start + (end - start) * part, end - MICROSECOND):
        assert bounds(window, tz, min(inside, end - MICROSECOND)) == (start, end)
    assert bounds(window, tz, end)[0] == end
    assert bounds(window, tz, start - MICROSECOND)[1] == start


@given(windows, places)
def test_a_window_starts_where_the_clock_says_so_or_was_changed(window: str, place: tuple[str, datetime]) -> None:
    tz, now = place
    start, _ = bounds(window, tz, now)
    zone = zoneinfo.ZoneInfo(tz)
    shown, before = start.astimezone(zone), (start - MICROSECOND).astimezone(zone)
    if shown.utcoffset() == before.utcoffset():
        assert (shown.minute, shown.second, shown.microsecond) == (0, 0, 0)
        assert window == "1h" or shown.hour == 0
        assert window != "1w" or shown.weekday() == 0
        assert window != "1mo" or shown.day == 1


@given(places)
def test_an_hour_is_never_longer_than_sixty_minutes_and_usually_that_long(place: tuple[str, datetime]) -> None:
    tz, now = place
    start, end = bounds("1h", tz, now)
    assert end - start <= HOUR
    if tz == "Europe/Berlin":
        assert end - start == HOUR


@given(places)
def test_a_longer_window_begins_and_ends_with_days(place: tuple[str, datetime]) -> None:
    tz, now = place
    for window in ("1w", "1mo"):
        start, end = bounds(window, tz, now)
        assert bounds("1d", tz, start)[0] == start
        assert bounds("1d", tz, end - MICROSECOND)[1] == end


@pytest.mark.parametrize(
    ("window", "start", "end"),
    [
        ("1h", "2026-11-18T14:00", "2026-11-18T15:00"),
        ("1d", "2026-11-18T00:00", "2026-11-19T00:00"),
        ("1w", "2026-11-16T00:00", "2026-11-23T00:00"),
        ("1mo", "2026-11-01T00:00", "2026-12-01T00:00"),
    ],
)
@pytest.mark.parametrize("tz", ["UTC", "Europe/Berlin", "Asia/Kathmandu"])
def test_an_ordinary_wednesday(window: str, start: str, end: str, tz: str) -> None:
    now = local(tz, "2026-11-18T14:37:05.000123")
    assert bounds(window, tz, now) == (local(tz, start), local(tz, end))


@pytest.mark.parametrize(
    ("now", "start", "end"),
    [
        ("2026-12-31T23:59:59", "2026-12-01", "2027-01-01"),
        ("2027-01-01T00:00:00", "2027-01-01", "2027-02-01"),
        ("2028-02-29T12:00:00", "2028-02-01", "2028-03-01"),
        ("2027-02-28T12:00:00", "2027-02-01", "2027-03-01"),
    ],
)
def test_months_end_where_the_calendar_says(now: str, start: str, end: str) -> None:
    assert bounds("1mo", "UTC", local("UTC", now)) == (local("UTC", start), local("UTC", end))


@pytest.mark.parametrize(
    ("tz", "day", "hours"),
    [
        ("Europe/Berlin", "2026-03-29", 23),
        ("Europe/Berlin", "2026-10-25", 25),
        ("Europe/Berlin", "2026-10-26", 24),
        ("America/Sao_Paulo", "2018-11-04", 23),
        ("America/Sao_Paulo", "2018-02-17", 25),
        ("Africa/Cairo", "2024-04-26", 23),
        ("America/Havana", "2024-11-03", 25),
        ("Australia/Lord_Howe", "2024-10-06", 23.5),
        ("Australia/Lord_Howe", "2024-04-07", 24.5),
    ],
)
def test_a_day_on_which_the_clock_is_changed(tz: str, day: str, hours: float) -> None:
    start, end = bounds("1d", tz, local(tz, f"{day}T12:00"))
    assert end - start == timedelta(hours=hours)


def test_a_skipped_midnight_is_the_moment_of_the_skip() -> None:
    start, end = bounds("1d", "America/Sao_Paulo", local("America/Sao_Paulo", "2018-11-04T15:00"))
    assert start == datetime(2018, 11, 4, 3, tzinfo=UTC)
    assert start.astimezone(zoneinfo.ZoneInfo("America/Sao_Paulo")).hour == 1
    assert end == datetime(2018, 11, 5, 2, tzinfo=UTC)


def test_a_skip_that_begins_before_midnight_ends_the_day_at_once() -> None:
    # In 1919, Toronto's clock went from 23:30 on 30 March to 00:30 on the 31st.
    start, end = bounds("1d", "America/Toronto", local("America/Toronto", "1919-03-30T12:00"))
    assert end == datetime(1919, 3, 31, 4, 30, tzinfo=UTC)
    assert bounds("1d", "America/Toronto", local("America/Toronto", "1919-03-31T12:00"))[0] == end
    assert end - start == timedelta(hours=23, minutes=30)


def test_a_midnight_that_comes_twice_counts_the_first_time() -> None:
    tz = "America/Havana"
    start, _ = bounds("1d", tz, local(tz, "2024-11-03T00:30", fold=1))
    assert start == local(tz, "2024-11-03T00:00", fold=0)


def test_a_clock_put_back_from_behind_midnight_does_not_reopen_the_day_before() -> None:
    tz = "America/St_Johns"
    again = local(tz, "2010-11-06T23:30", fold=1)
    start, end = bounds("1d", tz, again)
    assert start == local(tz, "2010-11-07T00:00", fold=0)
    assert start < again
    assert end - start == timedelta(hours=25)


def test_a_day_that_a_country_left_out_has_no_window() -> None:
    tz = "Pacific/Apia"
    _, end = bounds("1d", tz, local(tz, "2011-12-29T12:00"))
    start, _ = bounds("1d", tz, local(tz, "2011-12-31T12:00"))
    assert start == end == datetime(2011, 12, 30, 10, tzinfo=UTC)


def test_an_hour_that_the_clock_shows_twice_is_two_windows() -> None:
    tz = "Europe/Berlin"
    first = bounds("1h", tz, local(tz, "2026-10-25T02:30", fold=0))
    second = bounds("1h", tz, local(tz, "2026-10-25T02:30", fold=1))
    assert first == (datetime(2026, 10, 25, 0, tzinfo=UTC), datetime(2026, 10, 25, 1, tzinfo=UTC))
    assert second == (datetime(2026, 10, 25, 1, tzinfo=UTC), datetime(2026, 10, 25, 2, tzinfo=UTC))


@pytest.mark.parametrize(
    ("now", "start", "end"),
    [
        ("2024-04-06T14:10", "2024-04-06T14:00", "2024-04-06T15:00"),  # 01:10 in summer
        ("2024-04-06T15:10", "2024-04-06T15:00", "2024-04-06T15:30"),  # 01:40, for the second time
        ("2024-04-06T15:40", "2024-04-06T15:30", "2024-04-06T16:30"),  # 02:10
        ("2024-10-05T15:20", "2024-10-05T14:30", "2024-10-05T15:30"),  # 01:50 in winter
        ("2024-10-05T15:40", "2024-10-05T15:30", "2024-10-05T16:00"),  # 02:40
        ("2024-10-05T16:10", "2024-10-05T16:00", "2024-10-05T17:00"),  # 03:10
    ],
)
def test_a_change_by_half_an_hour_cuts_one_hour(now: str, start: str, end: str) -> None:
    found = bounds("1h", "Australia/Lord_Howe", datetime.fromisoformat(now + "Z"))
    assert found == (datetime.fromisoformat(start + "Z"), datetime.fromisoformat(end + "Z"))


def test_an_hour_that_a_change_cuts_short_ends_with_the_change() -> None:
    # Pyongyang went from +08:30 to +09:00 at 23:30 on 4 May 2018.
    before = bounds("1h", "Asia/Pyongyang", datetime(2018, 5, 4, 14, 40, 59, 5, tzinfo=UTC))
    after = bounds("1h", "Asia/Pyongyang", datetime(2018, 5, 4, 15, 20, tzinfo=UTC))
    assert before == (datetime(2018, 5, 4, 14, 30, tzinfo=UTC), datetime(2018, 5, 4, 15, tzinfo=UTC))
    assert after == (datetime(2018, 5, 4, 15, tzinfo=UTC), datetime(2018, 5, 4, 16, tzinfo=UTC))


def test_no_window_is_all_time() -> None:
    assert window_at(None, "UTC", datetime(2026, 1, 1, tzinfo=UTC)) == Window(None, None)


def test_the_zone_of_now_does_not_matter() -> None:
    now = datetime(2026, 1, 1, 3, 30, tzinfo=UTC)
    elsewhere = now.astimezone(timezone(timedelta(hours=-7)))
    assert window_at("1d", "Europe/Berlin", now) == window_at("1d", "Europe/Berlin", elsewhere)


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="now must be a datetime with a time zone"):
        window_at("1d", "UTC", datetime(2026, 1, 1))  # noqa: DTZ001 - the point of the test


@pytest.mark.parametrize("window", [None, *WINDOWS])
def test_every_window_is_accepted(window: str | None) -> None:
    check_window(window)


@pytest.mark.parametrize("window", ["", "1m", "1D", "24h", 1, True])
def test_another_window_is_refused_with_those_that_there_are(window: Any) -> None:
    with pytest.raises(ValueError, match=r"^window must be None or one of '1h', '1d', '1w', '1mo'"):
        check_window(window)
    with pytest.raises(ValueError, match=r"^window must be"):
        window_at(window, "UTC", datetime(2026, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize("tz", ZONES)
def test_a_time_zone_that_the_machine_knows_is_accepted(tz: str) -> None:
    check_tz(tz)


@pytest.mark.parametrize("tz", ["", "Berlin", "Europe", "../UTC", "/etc/localtime", "Mars/Phobos", "a\0b", "x" * 65])
def test_an_unknown_time_zone_is_refused(tz: str) -> None:
    with pytest.raises(ValueError, match=r"^tz must be the name of a time zone") as raised:
        check_tz(tz)
    assert "tzdata" not in str(raised.value)


@pytest.mark.parametrize("tz", [None, 1, UTC])
def test_a_time_zone_is_given_by_name(tz: Any) -> None:
    with pytest.raises(ValueError, match=r"^tz must be the name of a time zone"):
        check_tz(tz)


def test_a_machine_without_time_zones_knows_utc_and_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(tz: str) -> zoneinfo.ZoneInfo:
        raise zoneinfo.ZoneInfoNotFoundError(tz)

    monkeypatch.setattr(zoneinfo, "ZoneInfo", nowhere)
    monkeypatch.setattr(zoneinfo, "available_timezones", set)
    _zone.cache_clear()
    check_tz("UTC")
    with pytest.raises(ValueError, match="pip install tzdata"):
        check_tz("Europe/Berlin")
