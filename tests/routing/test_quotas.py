from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.clients import ClientLimits
from proxy.routing.limits import DAY, HOUR, MINUTE
from proxy.routing.quotas import BELIEVED, GUESS, Quota, Quotas, Shortage, Use

ORIGIN = 5000.0
"""Where the monotonic clock stands when a test begins: nowhere in particular."""


def quota(**limits: int) -> Quota:
    return Quotas().of(("client", "ck-1"), ClientLimits(**limits))


def taken(found: Use | Shortage) -> Use:
    assert isinstance(found, Use)
    return found


def refused(found: Use | Shortage) -> Shortage:
    assert isinstance(found, Shortage)
    return found


# Being let in.


def test_each_limit_has_a_window_of_its_own() -> None:
    mine = quota(rpm=1, rph=2, rpd=3, tpm=4, tph=5, tpd=6)
    assert {name: window.limit.seconds for name, window in mine.windows.items()} == {
        **{"rpm": MINUTE, "rph": HOUR, "rpd": DAY},
        **{"tpm": MINUTE, "tph": HOUR, "tpd": DAY},
    }
    assert mine.windows["tph"].name == "client:ck-1:tokens:3600"
    assert len({window.name for window in mine.windows.values()}) == 6


def test_the_limit_that_lasts_the_longest_is_the_one_that_is_told() -> None:
    mine = quota(rpm=1, rph=1)
    taken(mine.take(ORIGIN, 0))
    full = refused(mine.take(ORIGIN + 1, 0))
    assert (full.limit, full.amount, full.used, full.needs) == ("rph", 1, 1, 1)
    assert HOUR - 61 <= full.wait <= HOUR + 60


def test_there_is_room_again_when_it_was_said() -> None:
    mine = quota(rpm=2)
    taken(mine.take(ORIGIN, 0))
    taken(mine.take(ORIGIN + 10, 0))
    full = refused(mine.take(ORIGIN + 20, 0))
    assert refused(mine.take(ORIGIN + 20 + full.wait - 0.01, 0)).limit == "rpm"
    taken(mine.take(ORIGIN + 20 + full.wait, 0))


def test_a_call_that_is_refused_counts_for_nothing() -> None:
    mine = quota(rpm=9, tpm=100, parallel=9)
    taken(mine.take(ORIGIN, 90))
    assert refused(mine.take(ORIGIN, 20)).limit == "tpm"
    assert (mine.windows["rpm"].used, mine.windows["tpm"].used, mine.slots.used) == (1, 90, 1)


# Tokens.


@pytest.mark.parametrize(
    ("limits", "prompt", "answer", "expected"),
    [
        ({"rpm": 5}, 100, 100, 0),
        ({"tpm": 10_000}, 100, 50, 150),
        ({"tpm": 100_000}, 100, None, 100 + GUESS),
        ({"tpm": 1000}, 100, None, 200),
        ({"tpm": 1000, "tpd": 5000}, 100, 8000, 5000),
    ],
)
def test_what_a_call_is_expected_to_use(
    limits: dict[str, int], prompt: int, answer: int | None, expected: int
) -> None:
    assert quota(**limits).expects(prompt, answer) == expected


def test_tokens_are_settled_by_what_was_used() -> None:
    mine = quota(tpm=100)
    first, second = taken(mine.take(ORIGIN, 60)), taken(mine.take(ORIGIN, 30))
    assert refused(mine.take(ORIGIN, 30)).limit == "tpm"
    first.end(10)
    third = taken(mine.take(ORIGIN, 30))
    second.end(None)
    third.undo()
    assert mine.windows["tpm"].used == 10 + 30


def test_a_call_that_needs_more_than_the_limit_goes_alone() -> None:
    mine = quota(tpm=100)
    taken(mine.take(ORIGIN, mine.expects(50, 5000))).end(400)
    assert mine.windows["tpm"].used == 400
    assert refused(mine.take(ORIGIN, 1)).used == 400
    assert mine.standings(ORIGIN)[0].remaining == 0


# How things stand.


def test_the_tightest_window_of_each_kind_is_told() -> None:
    mine = quota(rpm=10, rpd=12, tpm=1000, tph=500)
    for _ in range(3):
        taken(mine.take(ORIGIN, 100)).end(None)
    requests, tokens = mine.standings(ORIGIN)
    assert (requests.kind, requests.amount, requests.remaining) == ("requests", 10, 7)
    assert (tokens.kind, tokens.amount, tokens.remaining) == ("tokens", 500, 200)
    assert MINUTE <= requests.reset <= MINUTE + 1
    requests, _ = mine.standings(ORIGIN + 2 * MINUTE)
    assert (requests.amount, requests.remaining) == (12, 9)


def test_without_windows_nothing_is_told() -> None:
    assert not quota(parallel=4, max_body=9).standings(ORIGIN)


def test_what_others_used_up_is_told_as_such() -> None:
    mine = quota(rpm=10)
    taken(mine.take(ORIGIN, 0))
    mine.windows["rpm"].blocked_until = ORIGIN + 30
    full = refused(mine.take(ORIGIN, 0))
    assert (full.used, full.wait) == (10, 30)
    (standing,) = mine.standings(ORIGIN)
    assert (standing.remaining, standing.reset) == (0, pytest.approx(60, abs=1.1))


# Changes.


def test_what_was_counted_stays_when_a_limit_gets_another_amount() -> None:
    quotas = Quotas()
    mine = quotas.of(("client", "ck-1"), ClientLimits(rpm=2))
    use = taken(mine.take(ORIGIN, 0))
    assert quotas.of(("client", "ck-1"), ClientLimits(rpm=3, parallel=1)) is mine
    assert (mine.windows["rpm"].used, mine.windows["rpm"].room) == (1, 3)
    assert refused(mine.take(ORIGIN, 0)).limit == "parallel"
    use.end(None)
    taken(mine.take(ORIGIN, 0))
    quotas.of(("client", "ck-1"), ClientLimits())
    assert (mine.windows, mine.slots.amount) == ({}, sys.maxsize)


def test_a_part_of_each_limit_is_kept_to_while_others_cannot_be_asked() -> None:
    quotas = Quotas()
    limits = ClientLimits(rpm=10, parallel=5)
    mine = quotas.of(("client", "ck-1"), limits)
    quotas.share(1 / 4)
    assert quotas.of(("client", "ck-1"), limits) is mine
    assert (mine.windows["rpm"].room, mine.slots.amount) == (2, 1)
    assert quotas.of(("client", "ck-2"), ClientLimits(rpm=8)).windows["rpm"].room == 2
    quotas.share(1.0)
    assert (mine.windows["rpm"].room, mine.slots.amount) == (10, 5)


def test_others_are_asked_again_soon_though_their_window_is_full_for_long() -> None:
    """What fills it may be given back."""
    mine = quota(rpd=5)
    short = mine.denied("client:ck-1:requests:86400", 80_000, ORIGIN, 1)
    assert (short.limit, short.used, short.wait) == ("rpd", 5, 80_000)
    again = mine.take(ORIGIN + BELIEVED / 2, 1)
    assert isinstance(again, Shortage)
    assert again.wait == pytest.approx(80_000 - BELIEVED / 2)
    (standing,) = mine.standings(ORIGIN + BELIEVED / 2)
    assert (standing.remaining, standing.reset) == (0, pytest.approx(80_000 - BELIEVED / 2))
    assert isinstance(mine.take(ORIGIN + BELIEVED, 1), Use)


def test_what_was_used_before_the_process_began_counts_where_it_should() -> None:
    mine = quota(rpm=5, rph=50, tph=500)
    mine.replay(HOUR, ORIGIN - 100, 3, 40, ORIGIN)
    mine.replay(MINUTE, ORIGIN - 10, 2, 20, ORIGIN)
    assert {name: window.used for name, window in mine.windows.items()} == {
        **{"rpm": 2, "rph": 3},
        "tph": 40,
    }


# Any order of events.

moves = st.one_of(
    st.tuples(st.just("begin"), st.integers(0, 70)),
    st.tuples(st.just("end"), st.integers(0, 99), st.none() | st.integers(0, 90)),
    st.tuples(st.just("undo"), st.integers(0, 99)),
    st.tuples(st.just("wait"), st.floats(0, 40)),
    st.tuples(st.just("limit"), st.integers(1, 5)),
)


@given(st.lists(moves, max_size=60))
def test_in_any_order_no_more_are_under_way_than_may_and_none_at_the_end(
    events: list[tuple[Any, ...]],
) -> None:
    quotas, now, parallel = Quotas(), ORIGIN, 3
    mine = quotas.of(("client", "ck-1"), ClientLimits(rpm=6, tpm=200, parallel=parallel))
    uses: list[Use] = []
    for event in events:
        match event:
            case "begin", tokens:
                found = mine.take(now, tokens)
                if isinstance(found, Use):
                    uses.append(found)
                    assert mine.slots.used <= parallel
            case "end", number, used if uses:
                uses[number % len(uses)].end(used)
            case "undo", number if uses:
                uses[number % len(uses)].undo()
            case "wait", seconds:
                now += seconds
            case "limit", parallel:
                quotas.of(("client", "ck-1"), ClientLimits(rpm=6, tpm=200, parallel=parallel))
        assert mine.slots.used == sum(not use.over for use in uses)
        assert all(window.used >= 0 for window in mine.windows.values())
    for use in uses:
        use.end(0)
        use.undo()
    assert mine.slots.used == 0


@given(st.lists(st.tuples(st.floats(0, 20), st.booleans()), max_size=80))
def test_no_minute_ever_has_more_calls_than_the_limit(events: list[tuple[float, bool]]) -> None:
    mine, now, made = quota(rpm=4), ORIGIN, []
    for gap, goes in events:
        now += gap
        found = mine.take(now, 0)
        if isinstance(found, Use):
            if goes:
                found.end(None)
                made.append(now)
            else:
                found.undo()
    assert all(later - sooner > MINUTE for sooner, later in zip(made, made[4:], strict=False))
