from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import ErrorReason
from proxy.routing import rests as module
from proxy.routing.rests import (
    BACKOFF,
    KEY_SECONDS,
    LONGEST,
    Place,
    Rest,
    Rests,
    State,
    places,
    state_of,
)

GROUP: Place = ("group", "g", "m")
KEY: Place = ("key", "k", "")
TARGET: Place = ("target", "", "m")
REASON = ErrorReason.RATE_LIMIT


def resting(seconds: float, place: Place = GROUP, now: float = 0, **more: float) -> Rests:
    rests = Rests()
    rests.order(place, REASON, now, seconds, **more)
    return rests


def out(rests: Rests, now: float, key: str = "k", group: str = "g", model: str = "m") -> bool:
    return rests.of(key, group, model, now) is not None


# How long.


def test_a_rest_ends_by_itself() -> None:
    rests = resting(60, now=100)
    assert out(rests, 159.9)
    assert not out(rests, 160)
    assert list(rests.current(160)) == []


@given(st.lists(st.tuples(st.floats(1e-3, 1e6), st.floats(0, 500), st.booleans()), max_size=20))
def test_a_longer_rest_is_never_shortened(orders: list[tuple[float, float, bool]]) -> None:
    rests, now, until = Rests(), 0.0, 0.0
    for seconds, later, by_another in orders:
        now += later
        if by_another:
            kept = rests.keep(GROUP, Rest(now + seconds, REASON, 1, "cooling"), now)
        else:
            kept = rests.order(GROUP, REASON, now, seconds)
        until = max(until, now + min(seconds, LONGEST))
        assert kept.until == until
        assert kept.until <= now + LONGEST
        assert rests.at(GROUP, now) is (kept if until > now else None)


def test_no_rest_is_longer_than_the_longest_that_is_allowed() -> None:
    rests = Rests(longest=600)
    assert rests.order(GROUP, REASON, 7, 1e9).until == 607
    assert rests.keep(KEY, Rest(1e9, REASON, 1, "disabled"), 7).until == 607
    assert Rests().order(GROUP, REASON, 7, 1e9).until == 7 + LONGEST


def test_without_a_hint_rests_grow_by_refusals_in_a_row() -> None:
    rests, now, seen = Rests(), 0.0, []
    for _ in range(7):
        rest = rests.order(GROUP, REASON, now, None)
        seen.append(rest.until - now)
        now = rest.until
    assert seen == [10, 30, 60, 120, 300, 300, 300]
    rests.over("k", "g", "m", now)
    assert rests.order(GROUP, REASON, now, None).until - now == BACKOFF[0]


def test_a_hint_of_no_time_is_none() -> None:
    rests = Rests()
    for count, seconds in enumerate(BACKOFF, 1):
        rest = rests.order(("group", "org", "m"), ErrorReason.RATE_LIMIT, 1000.0 * count, 0.0)
        assert rest.until == 1000.0 * count + seconds


def test_calls_that_are_refused_together_are_one_refusal() -> None:
    rests = Rests()
    for late in range(9):
        rest = rests.order(GROUP, REASON, late, None)
    assert (rest.until, rest.count) == (8 + BACKOFF[0], 1)
    rest = rests.order(GROUP, REASON, rest.until, None)
    assert rest.count == 2


def test_a_key_that_is_refused_without_a_hint_rests_its_own_time() -> None:
    rests = Rests()
    assert rests.order(KEY, ErrorReason.AUTHENTICATION, 0, None).until == KEY_SECONDS
    again = rests.order(KEY, ErrorReason.AUTHENTICATION, KEY_SECONDS, None)
    assert again.until == 2 * KEY_SECONDS


def test_a_success_ends_no_rest_that_is_under_way() -> None:
    """It may have been sent before the refusal."""
    rests = resting(60)
    rests.over("k", "g", "m", 59)
    assert out(rests, 59)


@pytest.mark.parametrize("place", [GROUP, ("group", "g", ""), KEY, TARGET])
def test_a_success_forgets_refusals_in_a_row_wherever_they_were(place: Place) -> None:
    rests = resting(60, place)
    rests.over("k", "g", "m", 60)
    assert rests.places == []


def test_a_rest_of_another_gateway_goes_on_with_its_refusals_in_a_row() -> None:
    rests = Rests()
    rests.keep(GROUP, Rest(50, REASON, 3, "cooling"), 0)
    assert rests.order(GROUP, REASON, 50, None).until == 50 + BACKOFF[3]


# Who, and for which models.


@pytest.mark.parametrize(
    ("place", "kept"),
    [
        (("group", "g", "m"), {"k m", "sibling m"}),
        (
            ("group", "g", ""),
            {"k m", "k n", "k x:free", "sibling m", "sibling n", "sibling x:free"},
        ),
        (("group", "g", "*:free"), {"k x:free", "sibling x:free"}),
        (("key", "k", ""), {"k m", "k n", "k x:free"}),
        (("target", "", "m"), set()),
    ],
)
def test_what_a_rest_keeps_from_what(place: Place, kept: set[str]) -> None:
    rests = resting(60, place)
    groups = {"k": "g", "sibling": "g", "other": "h"}
    found = {
        f"{key} {model}"
        for key, group in groups.items()
        for model in ("m", "n", "x:free")
        if out(rests, 0, key, group, model)
    }
    assert found == kept
    assert rests.at(place, 0) is not None


def test_the_places_of_a_model_are_few() -> None:
    assert places("k", "g", "m") == (("group", "g", "m"), ("group", "g", ""), ("key", "k", ""))
    assert places("k", "g", "a/b:free")[3:] == (("group", "g", "*:free"),)


def test_of_several_rests_the_longest_holds() -> None:
    rests = resting(60)
    rests.order(KEY, REASON, 0, 20)
    rests.order(("group", "g", ""), ErrorReason.CREDIT, 0, 40)
    longest = rests.of("k", "g", "m", 0)
    assert longest is not None
    assert longest.until == 60


@pytest.mark.parametrize(
    ("place", "reason", "state"),
    [
        (GROUP, ErrorReason.RATE_LIMIT, "cooling"),
        (GROUP, ErrorReason.QUOTA_EXCEEDED, "exhausted"),
        (GROUP, ErrorReason.CREDIT, "exhausted"),
        (KEY, ErrorReason.AUTHENTICATION, "disabled"),
    ],
)
def test_how_a_person_would_call_a_rest(place: Place, reason: ErrorReason, state: State) -> None:
    assert state_of(place, reason) == Rests().order(place, reason, 0, 9).state == state


# Looking before the time.


def test_one_call_looks_at_a_time_and_each_later_than_the_last() -> None:
    rests, now, looks = resting(1000, probe_after=10), 0.0, []
    while out(rests, now):
        if rests.wait("k", "g", "m", now) == 0:
            looks.append(now)
            assert rests.scout("k", "g", "m", now)
            assert rests.wait("k", "g", "m", now) > 0
        now += 1
    assert looks == [10, 30, 70, 150, 310, 630]


def test_who_is_refused_again_looks_no_sooner() -> None:
    """A deadline that is a moment of the day is never quite the same twice."""
    for drift in (-0.01, 0.01):
        rests = resting(1000, probe_after=10)
        rests.scout("k", "g", "m", 10)
        rests.order(GROUP, REASON, 11, 989 + drift, probe_after=10)
        assert rests.wait("k", "g", "m", 11) == 19
        rests.scout("k", "g", "m", 30)
        assert rests.wait("k", "g", "m", 30) == 40


def test_a_look_that_was_never_taken_is_given_back() -> None:
    rests = resting(1000, probe_after=10)
    rests.unscout(rests.scout("k", "g", "m", 12))
    assert rests.wait("k", "g", "m", 12) == 0
    rests.scout("k", "g", "m", 12)
    assert rests.wait("k", "g", "m", 12) == 20


def test_nobody_looks_while_another_rest_forbids_it() -> None:
    rests = resting(1000, probe_after=10)
    rests.order(KEY, ErrorReason.AUTHENTICATION, 0, 300)
    assert rests.wait("k", "g", "m", 20) == 280
    assert rests.wait("sibling", "g", "m", 20) == 0


def test_a_probe_after_the_end_is_none() -> None:
    rest = Rests().order(GROUP, REASON, 0, 5, probe_after=10)
    assert (rest.probe_at, rest.opens) == (None, 5)


def test_a_key_that_rests_for_nothing_need_not_wait() -> None:
    assert Rests().wait("k", "g", "m", 5) == 0
    assert Rests().scout("k", "g", "m", 5) == []


# Changes and bounds.


def test_what_is_lifted_is_over_and_forgotten() -> None:
    rests = resting(60)
    version = rests.version
    assert rests.lift(KEY) == []
    assert rests.version == version
    assert rests.lift(GROUP, KEY) == [GROUP]
    assert rests.version > version
    assert not out(rests, 0)
    assert not rests
    assert rests.order(GROUP, REASON, 0, None).count == 1


def test_every_new_rest_is_a_new_version_and_no_old_one_is() -> None:
    rests = resting(60)
    version = rests.version
    rests.order(GROUP, REASON, 1, 5)
    assert rests.version == version
    rests.order(GROUP, REASON, 1, 90)
    assert rests.version > version


def test_ten_thousand_models_leave_few_rests_and_those_for_all_models() -> None:
    rests = resting(30, KEY)
    for number in range(10_000):
        rests.order(("group", "g", f"m{number}"), REASON, 0, 1000)
        assert len(rests.places) <= module._MOST
    assert out(rests, 0, group="")
    assert out(rests, 0, key="", model="m9999")
