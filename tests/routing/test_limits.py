from __future__ import annotations

import math
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.routing.limits import (
    DAY,
    MINUTE,
    SOON,
    Daily,
    Limit,
    Sliding,
    Slots,
    Told,
    read_headers,
    steps,
)

PACIFIC = ZoneInfo("America/Los_Angeles")
ORIGIN = 5000.0
"""Where the monotonic clock stands when a test begins: nowhere in particular."""


def sliding(amount: int, seconds: int = MINUTE, kind: str = "requests") -> Sliding:
    return Sliding("w", Limit(kind, amount, seconds))  # type: ignore[arg-type]


def go(window: Sliding, now: float, tokens: int = 1) -> bool:
    """Make a call if there is room for it."""
    if window.wait(now, tokens):
        return False
    window.take(now, tokens)
    return True


def test_limits_are_called_as_the_table_has_them() -> None:
    assert Limit("requests", 1, MINUTE).type == "requests_minute"
    assert Limit("tokens", 1, DAY).type == "tokens_day"


# A sliding window.


@given(
    st.integers(1, 9),
    st.sampled_from([7, 60, 86_400]),
    st.lists(st.floats(0, 0.7) | st.floats(0, 0.05), min_size=1, max_size=120),
)
@example(2, 60, [0.0, 1.5 / 60, 59.5 / 60, 0.0])
def test_no_window_ever_holds_more_than_the_limit(
    amount: int, seconds: int, gaps: list[float]
) -> None:
    window, now = sliding(amount, seconds), ORIGIN
    gone: list[float] = []
    for gap in gaps:
        now += gap * seconds
        before = [moment for moment in gone if moment > now - seconds]
        if go(window, now):
            gone.append(now)
            assert len(before) < amount
        else:
            assert (
                len(
                    [
                        m
                        for m in gone
                        if m > now - seconds * (steps(seconds) + 1) / steps(seconds) - 1e-6
                    ]
                )
                >= amount
            )


@given(st.integers(1, 50), st.sampled_from([7, 60, 86_400]), st.floats(0, 100))
def test_a_saturated_window_gives_out_nearly_all_of_it(
    amount: int, seconds: int, late: float
) -> None:
    window, now, calls, windows = sliding(amount, seconds), ORIGIN + late, 0, 20
    end = now + seconds * windows
    while now < end:
        wait = window.wait(now, 1)
        if wait:
            now += wait
        else:
            window.take(now, 1)
            calls += 1
    assert calls >= amount * (windows * 60 // 61)


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(0, 40), st.integers(-1, 80)), max_size=60))
def test_tokens_are_counted_as_a_naive_model_counts_them(
    calls: list[tuple[float, int, int]],
) -> None:
    """``used`` -1: the call was never made. All end late, in the order in which they began."""
    window, now = sliding(100, kind="tokens"), ORIGIN
    gone: list[tuple[float, int, int]] = []
    for gap, expected, used in calls:
        now += gap
        if go(window, now, expected):
            gone.append((now, expected, used))
    counted = {index: expected for index, (_, expected, _) in enumerate(gone)}
    for index, (taken, expected, used) in enumerate(gone):
        if used < 0:
            window.undone(taken, expected)
        else:
            window.ended(taken, expected, used)
        counted[index] = max(0, used)
    window.forget(now)
    oldest = int(now) - 60
    assert window.used == sum(counted[n] for n, call in enumerate(gone) if int(call[0]) >= oldest)
    window.forget(now + 62)
    assert window.used == 0


@given(st.lists(st.tuples(st.integers(0, 90), st.integers(-50, 50)), max_size=50))
def test_a_count_is_never_negative(changes: list[tuple[int, int]]) -> None:
    window = sliding(100, kind="tokens")
    for when, count in changes:
        window.add(ORIGIN + when, count)
        assert window.used == sum(each for _, each in window._counts)
        assert all(each >= 0 for _, each in window._counts)


def test_a_correction_goes_into_the_step_in_which_the_call_began() -> None:
    window = sliding(100, kind="tokens")
    window.take(ORIGIN, 0)  # nothing was expected
    window.take(ORIGIN + 30, 10)
    window.ended(ORIGIN, 0, 70)
    assert window.used == 80
    assert window.wait(ORIGIN + 30, 40) == 31  # until the first has left
    window.forget(ORIGIN + 61)
    assert window.used == 10
    window.ended(ORIGIN, 70, 90)  # long gone
    assert window.wait(ORIGIN + 61, 90) == 0
    assert window.used == 10


def test_calls_that_are_expected_to_use_more_than_there_is_are_not_blocked_for_ever() -> None:
    window = sliding(100, kind="tokens")
    assert go(window, ORIGIN, 500)
    wait = window.wait(ORIGIN, 500)
    assert 60 <= wait <= 61
    assert go(window, ORIGIN + wait, 500)


def test_a_call_waits_until_enough_is_gone_and_no_longer() -> None:
    window = sliding(100, kind="tokens")
    for late in range(5):
        window.take(ORIGIN + late, 20)
    assert window.wait(ORIGIN + 10, 0) == 0
    assert window.wait(ORIGIN + 10, 20) == 51
    assert window.wait(ORIGIN + 10, 50) == 53
    assert window.resets(ORIGIN + 10) == 55
    assert window.why == "tokens_minute 100/100"


def test_an_unknown_use_leaves_the_guess() -> None:
    window = sliding(100, kind="tokens")
    window.take(ORIGIN, 30)
    window.ended(ORIGIN, 30, None)
    assert window.used == 30


def test_requests_do_not_depend_on_tokens() -> None:
    window = sliding(2)
    window.take(ORIGIN, 500)
    window.ended(ORIGIN, 500, 900)
    assert window.used == 1
    window.undone(ORIGIN, 500)
    assert window.used == 0
    assert window.resets(ORIGIN) == 0


def test_another_amount_holds_at_once_and_what_was_used_stays() -> None:
    window = sliding(4)
    for _ in range(3):
        window.take(ORIGIN, 1)
    window.allow(Limit("requests", 3, MINUTE), 1.0)
    assert window.wait(ORIGIN, 1) > 0
    window.allow(Limit("requests", 9, MINUTE), 0.5)
    assert (window.room, window.wait(ORIGIN, 1)) == (4, 0)
    window.allow(Limit("requests", 9, MINUTE), 0.01)
    assert window.room == 1  # a share of a limit is never nothing


def test_a_window_that_another_gateway_has_used_up_is_blocked() -> None:
    window = sliding(4)
    window.blocked_until = ORIGIN + 5
    assert window.wait(ORIGIN, 1) == 5
    assert window.wait(ORIGIN + 5, 1) == 0
    assert window.started(ORIGIN) is None


def test_what_counts_is_told_with_when_it_was_counted() -> None:
    window = sliding(9)
    for when in (ORIGIN, ORIGIN + 0.4, ORIGIN + 20):
        assert go(window, when)
    assert window.uses(ORIGIN + 20.1) == [(ORIGIN + 1, 2), (ORIGIN + 20.1, 1)]
    assert window.uses(ORIGIN + 70) == [(ORIGIN + 21, 1)]


# A day of the provider's.


class Clock:
    """Two clocks that run together, until somebody sets the one on the wall."""

    def __init__(self, *date: int, zone: ZoneInfo = PACIFIC) -> None:
        self.now = ORIGIN
        self.wall = datetime(*date, tzinfo=zone).timestamp()  # type: ignore[arg-type, misc]

    def read(self) -> float:
        return self.wall

    def run(self, seconds: float) -> None:
        self.now += seconds
        self.wall += seconds


def daily(clock: Clock, amount: int = 2, kind: str = "requests") -> Daily:
    return Daily("d", Limit(kind, amount, DAY), PACIFIC, clock.read)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("begins", "hours"),
    [((2026, 7, 1), 24), ((2026, 3, 8), 23), ((2026, 11, 1), 25)],
)
def test_a_day_lasts_from_midnight_to_midnight(begins: tuple[int, ...], hours: int) -> None:
    """Also those on which clocks are changed."""
    clock = Clock(*begins)
    window = daily(clock)
    assert go(window, clock.now)
    assert go(window, clock.now)
    assert window.wait(clock.now, 1) == hours * 3600 == window.resets(clock.now)
    assert window.started(clock.now) == clock.wall * 1000
    clock.run(hours * 3600 - 1)
    assert window.wait(clock.now, 1) == pytest.approx(1)
    clock.run(1)
    assert go(window, clock.now)
    assert (window.used, window.started(clock.now)) == (1, clock.wall * 1000)
    assert window.uses(clock.now + 5) == [(clock.now + 5, 1)]


@given(st.lists(st.floats(0, 40_000), max_size=60))
def test_no_day_ever_holds_more_than_the_limit(gaps: list[float]) -> None:
    clock = Clock(2026, 10, 30, 12)
    window = daily(clock, 3)
    calls: dict[str, int] = {}
    for gap in gaps:
        clock.run(gap)
        date = f"{datetime.fromtimestamp(clock.wall, PACIFIC):%F}"
        assert go(window, clock.now) is (calls.get(date, 0) < 3)
        calls[date] = min(3, calls.get(date, 0) + 1)


def test_a_call_is_counted_on_the_day_on_which_it_began() -> None:
    clock = Clock(2026, 7, 1, 23, 59)
    window = daily(clock, 100, "tokens")
    assert go(window, clock.now, 10)
    taken = clock.now
    clock.run(120)
    assert go(window, clock.now, 5)
    window.ended(taken, 10, 90)
    window.undone(taken, 90)
    assert window.used == 5
    window.ended(clock.now, 5, 7)
    assert window.used == 7
    window.undone(clock.now, 50)
    assert window.used == 0


def test_a_clock_that_was_set_forward_ends_the_day_then() -> None:
    clock = Clock(2026, 7, 1, 12)
    window = daily(clock, 1)
    assert go(window, clock.now)
    clock.wall += 11 * 3600
    clock.run(1)
    assert window.wait(clock.now, 1) == 3600 - 1
    clock.wall += 3600  # over midnight: as after a sleep, in which one clock stood still
    clock.run(1)
    assert go(window, clock.now)


def test_a_clock_that_was_set_back_gives_nothing_twice() -> None:
    clock = Clock(2026, 7, 2, 0, 0, 30)
    window = daily(clock, 1)
    assert go(window, clock.now)
    clock.wall -= 60  # yesterday again, for half a minute
    clock.run(1)
    assert window.wait(clock.now, 1) == 29
    clock.run(29)
    assert go(window, clock.now)
    assert not go(window, clock.now)


def test_a_day_can_be_too_large_a_guess_as_well() -> None:
    clock = Clock(2026, 7, 1)
    window = daily(clock, 100, "tokens")
    assert go(window, clock.now, 500)
    assert window.wait(clock.now, 1) == DAY
    clock.run(DAY)
    assert go(window, clock.now, 500)


def test_a_day_that_another_gateway_has_used_up_is_blocked() -> None:
    clock = Clock(2026, 7, 1)
    window = daily(clock)
    window.blocked_until = clock.now + 5
    assert window.wait(clock.now, 1) == 5


# Calls at a time.


def test_slots_are_calls_at_a_time() -> None:
    slots = Slots("s", 2)
    slots.take(0, 1)
    assert slots.wait(0, 1) == 0
    slots.take(0, 1)
    assert (slots.wait(0, 1), slots.why) == (SOON, "concurrent 2/2")
    slots.ended(0, 1, None)
    assert slots.wait(0, 1) == 0
    slots.undone(0, 1)
    assert slots.used == 0


# What an answer told.


def told(
    limit: int, remaining: int, reset: float, *, kind: str = "requests", now: float = ORIGIN
) -> Told:
    each = Told(kind)  # type: ignore[arg-type]
    each.hear(limit, remaining, reset, now, now)
    return each


def test_a_bucket_admits_again_long_before_it_is_full() -> None:
    """At Groq 14,400 a day are one in 6 s, and the reset tells when all of them are back."""
    day = told(14_400, 0, DAY)
    assert day.wait(ORIGIN, 1) == pytest.approx(6)
    assert day.wait(ORIGIN + 4, 1) == pytest.approx(2)
    assert day.wait(ORIGIN + 6, 1) == 0
    day.take(ORIGIN + 6, 1)
    assert day.wait(ORIGIN + 6, 1) == pytest.approx(6)
    assert day.wait(ORIGIN + 12, 1) == 0


def test_tokens_are_waited_for_as_they_come_in() -> None:
    tokens = told(6000, 500, 55, kind="tokens")  # 100 a second
    assert tokens.wait(ORIGIN, 500) == 0
    assert tokens.wait(ORIGIN, 700) == 2
    assert tokens.wait(ORIGIN, 100_000) == 55  # as long as until it is whole
    tokens.take(ORIGIN, 500)
    assert tokens.wait(ORIGIN, 100) == 1
    tokens.undone(ORIGIN, 500)
    assert tokens.wait(ORIGIN, 500) == 0


def test_what_is_told_later_replaces_all_of_it() -> None:
    each = told(10, 1, 60)
    each.take(ORIGIN, 1)
    assert each.wait(ORIGIN, 1) > 0
    each.hear(10, 1, 60, ORIGIN + 1, ORIGIN + 1)
    assert each.wait(ORIGIN + 1, 1) == 0
    assert "1 of 10 requests" in each.why
    each.take(ORIGIN + 1, 1)
    assert each.wait(ORIGIN + 1, 1) > 0
    each.ended(ORIGIN + 1, 1, 1)
    assert each.wait(ORIGIN + 1, 1) > 0
    each.undone(ORIGIN + 1, 1)
    assert each.wait(ORIGIN + 1, 1) == 0


def test_of_calls_under_way_together_the_least_that_is_told_is_left() -> None:
    each = told(60, 5, 60)
    each.hear(60, 0, 60, ORIGIN + 1, ORIGIN + 0.5)
    each.hear(60, 1, 59, ORIGIN + 1.1, ORIGIN + 0.6)  # was counted before the one that told of 0
    assert each.wait(ORIGIN + 1.1, 1) > 0
    each.hear(60, 9, 51, ORIGIN + 3, ORIGIN + 2)  # was sent after all that
    assert each.wait(ORIGIN + 3, 1) == 0


def test_a_burst_is_bounded_after_the_reset_too() -> None:
    each = told(60, 59, 1)
    for _ in range(60):
        assert each.wait(ORIGIN + 2, 1) == 0
        each.take(ORIGIN + 2, 1)
    assert each.wait(ORIGIN + 2, 1) == 1


def test_how_much_of_it_is_used_by_now() -> None:
    each = told(100, 40, 60)
    assert each.now(ORIGIN) == (100, 60, 60)
    assert each.now(ORIGIN + 30) == (100, 30, 30)
    each.take(ORIGIN + 30, 1)
    assert each.now(ORIGIN + 30) == (100, 31, 31)
    assert each.now(ORIGIN + 90) == (100, 0, 0)
    assert Told("tokens").now(ORIGIN) is None


@given(
    st.integers(0, 20_000),
    st.integers(0, 20_000),
    st.floats(0, DAY),
    st.lists(st.integers(0, 5000), max_size=30),
)
def test_nothing_that_was_told_blocks_for_ever(
    limit: int, remaining: int, reset: float, calls: list[int]
) -> None:
    for kind in ("requests", "tokens"):
        each = told(limit, remaining, reset, kind=kind)
        for tokens in calls:
            each.take(ORIGIN, tokens)
        wait = each.wait(ORIGIN, 10**9)
        assert 0 <= wait < math.inf
        assert each.wait(ORIGIN + wait + 1e-3, 10**9) < 1e-3 * (1 + wait)


def test_what_was_never_told_blocks_nothing() -> None:
    for each in (Told("requests"), Told("tokens"), told(0, 0, 60)):
        for _ in range(5):
            assert each.wait(ORIGIN, 10**9) == 0
            each.take(ORIGIN, 10)


def headers(limit: bytes, remaining: bytes, reset: bytes) -> list[tuple[bytes, bytes]]:
    return [
        (b"content-type", b"application/json"),
        (b"x-ratelimit-limit-requests", limit),
        (b"x-ratelimit-remaining-requests", remaining),
        (b"x-ratelimit-reset-requests", reset),
    ]


@pytest.mark.parametrize(
    ("reset", "seconds"),
    [(b"2m59.56s", 179.56), (b"7.66s", 7.66), (b"172ms", 0.172), (b"0s", 0), (b"24h0m0s", DAY)],
)
def test_headers_are_read_as_they_come(reset: bytes, seconds: float) -> None:
    ((kind, limit, remaining, found),) = read_headers(headers(b"14400", b"14370", reset))
    assert (kind, limit, remaining, found) == ("requests", 14400, 14370, pytest.approx(seconds))


def test_tokens_have_headers_of_their_own() -> None:
    fields = headers(b"1", b"1", b"1s")
    fields += [(name.replace(b"requests", b"tokens"), value) for name, value in fields]
    assert [each[0] for each in read_headers(fields)] == ["requests", "tokens"]


@pytest.mark.parametrize(
    ("limit", "remaining", "reset"),
    [
        (b"", b"1", b"1s"),
        (b"many", b"1", b"1s"),
        (b"10", b"-1", b"1s"),
        (b"10", b"1.5", b"1s"),
        (b"10", b"1", b"soon"),
        (b"10", b"1", b"\xff\xfe"),
        (b"10", b"1", b"-5s"),
        (b"10", b"1", b"1764167000"),  # an instant
        (b"10", b"1", b"1764167000123"),
        (b"9" * 5000, b"1", b"1s"),
        (b"10", b"9" * 5000, b"1s"),
    ],
)
def test_odd_headers_tell_nothing(limit: bytes, remaining: bytes, reset: bytes) -> None:
    assert read_headers(headers(limit, remaining, reset)) == []


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_limit_of_which_a_part_is_missing_tells_nothing(missing: int) -> None:
    fields = headers(b"10", b"0", b"60s")
    del fields[missing]
    assert read_headers(fields) == []
