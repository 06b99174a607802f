from __future__ import annotations

import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from proxy.routing.breaker import PROBE_SECONDS, Breaker, BreakerRules, State, Transition

RULES = BreakerRules(failures=3, open_for=10, longest=35)


def opened(rules: BreakerRules = RULES, now: float = 100) -> Breaker:
    """A breaker that opened at ``now``."""
    breaker = Breaker(rules)
    for _ in range(rules.failures):
        breaker.failed(now, "timeout", False)
    assert breaker.state == "open"
    return breaker


def probed(breaker: Breaker, now: float) -> None:
    """One call is admitted, and it is the probe."""
    assert breaker.admit(now)
    assert breaker.probing


# Closed.


def test_a_closed_breaker_lets_all_go() -> None:
    breaker = Breaker(RULES)
    assert (breaker.state, breaker.until, breaker.openings) == ("closed", 0, 0)
    assert breaker.wait(1) == 0
    assert all(breaker.admit(1) for _ in range(100))
    assert not breaker.probing
    assert breaker.pending is None


def test_failures_in_a_row_open_it() -> None:
    breaker = Breaker(RULES)
    assert breaker.failed(100, "timeout", False) is None
    assert breaker.failed(101, "timeout", False) is None
    transition = breaker.failed(102, "overloaded", False)
    assert transition == Transition("closed", "open", "overloaded", 112, 1)
    assert (breaker.state, breaker.until, breaker.openings) == ("open", 112, 1)
    assert breaker.wait(105) == 7
    assert not breaker.admit(111.9)


def test_a_success_ends_the_row() -> None:
    breaker = Breaker(RULES)
    for _ in range(5):
        assert breaker.failed(1, "timeout", False) is None
        assert breaker.failed(1, "timeout", False) is None
        assert breaker.succeeded(1, False) is None
    assert breaker.state == "closed"


def test_a_call_that_gave_up_does_not_end_the_row() -> None:
    breaker = Breaker(RULES)
    breaker.failed(1, "timeout", False)
    breaker.failed(1, "timeout", False)
    breaker.gave_up(False)
    assert breaker.failed(1, "timeout", False) is not None


def outcomes(breaker: Breaker, failures: int, successes: int, now: float = 0) -> None:
    for _ in range(successes):
        breaker.succeeded(now, False)
    for _ in range(failures):
        breaker.failed(now, "timeout", False)


@pytest.mark.parametrize(
    ("failures", "successes", "state"),
    [(10, 10, "open"), (9, 11, "closed"), (9, 9, "closed"), (10, 30, "closed")],
)
def test_a_rate_of_failures_opens_it_among_enough_outcomes(
    failures: int, successes: int, state: str
) -> None:
    breaker = Breaker(BreakerRules(failures=100, rate=0.5, minimum=20))
    outcomes(breaker, failures, successes)
    assert breaker.state == state


def test_outcomes_beyond_the_window_are_forgotten() -> None:
    breaker = Breaker(BreakerRules(failures=100, rate=0.5, minimum=20, window=30))
    outcomes(breaker, 9, 10, now=0)
    outcomes(breaker, 10, 0, now=30)
    assert breaker.state == "closed"
    outcomes(breaker, 10, 0, now=59)
    assert breaker.state == "open"


def test_no_failures_allowed_for_means_that_it_never_opens() -> None:
    breaker = Breaker(BreakerRules(failures=0, minimum=1))
    outcomes(breaker, 1000, 0)
    assert breaker.state == "closed"
    breaker.restore("open", 1e9, 3)
    assert breaker.admit(0)
    assert (breaker.state, breaker.until, breaker.openings) == ("closed", 0, 0)


# Open and half open.


def test_when_the_open_time_is_over_one_call_goes() -> None:
    breaker = opened()
    assert breaker.wait(110) == 0
    probed(breaker, 110)
    assert breaker.pending == Transition("open", "half_open", "elapsed", None, 1)
    assert (breaker.state, breaker.until) == ("half_open", 0)
    assert breaker.wait(110) == PROBE_SECONDS
    assert not breaker.admit(110)
    assert breaker.pending is None  # this call changed nothing


def test_a_probe_that_succeeds_closes_it() -> None:
    breaker = opened()
    probed(breaker, 110)
    assert breaker.succeeded(111, True) == Transition("half_open", "closed", "recovered", None, 0)
    assert (breaker.openings, breaker.probing, breaker.pending) == (0, False, None)
    assert breaker.admit(111)
    assert not breaker.probing


@pytest.mark.parametrize("successes", [0, 4])
def test_what_it_saw_before_it_closed_is_forgotten(successes: int) -> None:
    """Neither the outcomes nor the failures count: one more failure would be too many."""
    breaker = opened(BreakerRules(failures=3, rate=0.25, minimum=4))
    probed(breaker, 110)
    breaker.succeeded(111, True)
    outcomes(breaker, 1, successes, now=112)
    assert breaker.state == "closed"


def test_each_probe_that_fails_doubles_the_open_time_up_to_the_longest() -> None:
    breaker = opened()
    now, times = breaker.until, []
    for _ in range(4):
        probed(breaker, now)
        transition = breaker.failed(now, "timeout", True)
        assert transition is not None
        assert (transition.from_state, transition.to_state) == ("half_open", "open")
        times.append(breaker.until - now)
        now = breaker.until
    assert times == [20, 35, 35, 35]
    assert breaker.openings == 5
    probed(breaker, now)
    breaker.succeeded(now, True)
    for _ in range(3):
        breaker.failed(now, "timeout", False)
    assert (breaker.until - now, breaker.openings) == (10, 1)


def test_an_open_time_does_not_overflow() -> None:
    breaker = Breaker(RULES)
    breaker.restore("half_open", 0, 5000)
    probed(breaker, 0)
    breaker.failed(0, "timeout", True)
    assert breaker.until == 35


def test_a_probe_that_gave_up_leaves_its_place() -> None:
    breaker = opened()
    probed(breaker, 110)
    breaker.gave_up(True)
    assert (breaker.state, breaker.wait(110)) == ("half_open", 0)
    probed(breaker, 110)
    assert breaker.pending is None  # it was half open already


def test_calls_from_before_it_opened_change_nothing() -> None:
    breaker = opened()
    assert breaker.succeeded(101, False) is None
    assert breaker.failed(105, "timeout", False) is None
    assert (breaker.state, breaker.until) == ("open", 110)
    probed(breaker, 110)
    assert breaker.succeeded(111, False) is None
    assert breaker.failed(111, "timeout", False) is None
    breaker.gave_up(False)
    assert (breaker.state, breaker.probing) == ("half_open", True)


# A word from elsewhere.


def test_a_reset_closes_it_and_forgets_all() -> None:
    breaker = opened()
    assert breaker.reset(101) == Transition("open", "closed", "reset", None, 0)
    assert breaker.until == 0
    assert breaker.reset(101) is None
    breaker.failed(101, "timeout", False)
    breaker.failed(101, "timeout", False)
    breaker.reset(101)
    breaker.failed(101, "timeout", False)
    assert breaker.state == "closed"


def test_a_probe_keeps_its_place_through_a_reset() -> None:
    """Or the breaker could open and probe again beside it."""
    breaker = opened()
    probed(breaker, 110)
    breaker.reset(110)
    assert breaker.admit(110)
    assert not breaker.probing
    for _ in range(3):
        breaker.failed(110, "timeout", False)
    assert breaker.wait(120) == PROBE_SECONDS
    assert not breaker.admit(120)
    assert breaker.succeeded(121, True) is None
    assert breaker.state == "open"
    probed(breaker, 121)


def test_a_stored_state_is_taken_up() -> None:
    breaker = Breaker(RULES)
    breaker.restore("open", 110, 2)
    assert breaker.wait(100) == 10
    probed(breaker, 110)
    breaker.failed(110, "timeout", True)
    assert (breaker.until, breaker.openings) == (145, 3)
    breaker.restore("half_open", 77, 2)
    assert (breaker.state, breaker.until, breaker.wait(0)) == ("half_open", 0, 0)
    breaker.restore("closed", 77, 2)
    assert (breaker.state, breaker.until, breaker.openings) == ("closed", 0, 0)


def test_a_stored_open_time_is_cut_to_the_longest() -> None:
    """Another node's clock may be wrong by a day."""
    breaker = Breaker(RULES)
    breaker.restore("open", 86_400, 1)
    assert breaker.wait(100) == 35
    assert breaker.until == 135


class Interleavings(RuleBasedStateMachine):
    """Calls begin and end in any order; each keeps what it read when it was admitted."""

    def __init__(self) -> None:
        super().__init__()
        rules = BreakerRules(2, rate=0.5, minimum=4, window=8, open_for=10, longest=35)
        self.breaker = Breaker(rules)
        self.now = 0.0
        self.calls: list[bool] = []

    @rule()
    def begin(self) -> None:
        wait, before = self.breaker.wait(self.now), self.breaker.state
        admitted = self.breaker.admit(self.now)
        assert admitted == (wait == 0)
        changed = self.breaker.pending is not None
        assert changed == (admitted and before == "open")
        if admitted:
            assert self.breaker.probing == (before != "closed")
            self.calls.append(self.breaker.probing)

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), outcome=st.sampled_from(["succeeded", "failed", "gave up"]))
    def end(self, data: st.DataObject, outcome: str) -> None:
        probe = self.calls.pop(data.draw(st.integers(0, len(self.calls) - 1)))
        before, until = self.breaker.state, self.breaker.until
        transition: Transition | None = None
        if outcome == "succeeded":
            transition = self.breaker.succeeded(self.now, probe)
        elif outcome == "failed":
            transition = self.breaker.failed(self.now, "timeout", probe)
        else:
            self.breaker.gave_up(probe)
        after = self.breaker.state
        assert (transition is not None) == (after != before)
        if transition is not None:
            assert (transition.from_state, transition.to_state) == (before, after)
            assert transition.openings == self.breaker.openings
        if not probe and before != "closed":
            assert (after, self.breaker.until) == (before, until)

    @rule(seconds=st.floats(0.01, 40))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def reset(self) -> None:
        self.breaker.reset(self.now)

    @rule(
        state=st.sampled_from(["closed", "open", "half_open"]),
        seconds=st.floats(-10, 1e6),
        openings=st.integers(1, 2000),
    )
    def restore(self, state: State, seconds: float, openings: int) -> None:
        self.breaker.restore(state, self.now + seconds, openings)

    @invariant()
    def at_most_one_probe_is_out(self) -> None:
        assert sum(self.calls) <= 1

    @invariant()
    def it_is_never_open_for_longer_than_the_longest(self) -> None:
        assert self.breaker.wait(self.now) <= 35 + 1e-9
        assert self.breaker.until <= self.now + 35 + 1e-9

    @invariant()
    def closed_means_that_none_was_counted(self) -> None:
        assert (self.breaker.openings == 0) == (self.breaker.state == "closed")

    def teardown(self) -> None:
        """Whatever happened: when the upstream is well again, one probe closes the breaker."""
        for probe in self.calls:
            self.breaker.gave_up(probe)
        wait = self.breaker.wait(self.now)
        now = math.nextafter(self.now + wait, math.inf)
        assert self.breaker.admit(now)
        self.breaker.succeeded(now, self.breaker.probing)
        assert self.breaker.state == "closed"


Interleavings.TestCase.settings = settings(deadline=None)
TestAnyInterleaving = Interleavings.TestCase
