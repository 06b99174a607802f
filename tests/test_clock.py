from __future__ import annotations

import time
from datetime import UTC
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import clock
from proxy.clock import encode_id, instant, new_id, now_ms, rfc3339, until_midnight

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
CALIFORNIA = ZoneInfo("America/Los_Angeles")
AFTERNOON = 1_795_190_400.0  # 2026-11-20T16:00:00Z


def decode(text: str) -> int:
    value = 0
    for character in text:
        value = value * 32 + ALPHABET.index(character)
    return value


def test_ids_rise_are_all_different_and_have_18_characters() -> None:
    ids = [new_id() for _ in range(10_000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    assert {len(each) for each in ids} == {18}


def test_an_id_begins_with_the_wall_clock() -> None:
    before = now_ms()
    moment = decode(new_id()) >> 45
    assert before <= moment <= now_ms()


def test_an_id_stands_behind_those_of_before() -> None:
    """They were ULIDs: 26 characters, of which the first says nothing before the year 3084."""
    ulid = "01M8CDJT1Y4F05R68DN8KB3VSN"
    assert ulid < "1M8CDJT1X" < new_id()
    assert decode(ulid[:10]) == decode(ulid[1:10]) == 1_795_713_230_910


def test_ids_rise_even_when_the_wall_clock_steps_back(monkeypatch: pytest.MonkeyPatch) -> None:
    first = new_id()
    monkeypatch.setattr(clock, "now_ms", lambda: 1)
    assert decode(new_id()) == decode(first) + 1


@given(st.integers(0, 2**90 - 1))
def test_an_id_is_its_number_in_crockfords_base_32(value: int) -> None:
    text = encode_id(value)
    assert decode(text) == value
    assert len(text) == 18


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_700_000_000_007, "2023-11-14T22:13:20.007Z"),
        (951_825_599_999, "2000-02-29T11:59:59.999Z"),
        (None, None),
    ],
)
def test_instants_are_told_in_utc(ms: int | None, text: str | None) -> None:
    assert rfc3339(ms) == text


def test_the_zone_of_the_machine_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        assert rfc3339(0) == "1970-01-01T00:00:00.000Z"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_day_ends_at_midnight_of_its_zone() -> None:
    assert until_midnight(AFTERNOON, UTC) == 8 * 3600
    assert until_midnight(AFTERNOON, CALIFORNIA) == 16 * 3600
    summer = AFTERNOON - 4 * 30 * 86_400  # daylight saving time: an hour nearer
    assert until_midnight(summer, CALIFORNIA) == 15 * 3600


def test_a_day_with_a_changed_clock_has_its_true_length() -> None:
    start_of_25_hours = 1_793_516_400.0  # 2026-11-01T07:00:00Z, midnight there
    assert until_midnight(start_of_25_hours, CALIFORNIA) == 25 * 3600


def test_a_moment_of_one_clock_is_an_instant_of_the_other() -> None:
    assert instant(12.5, 10.0, 1_000_000) == 1_002_500
    assert instant(9.9996, 10.0, 1_000_000) == 1_000_000
