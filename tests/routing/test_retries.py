from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.routing.retries import RetryBudget
from proxy.routing.window import BUCKETS


def granted(budget: RetryBudget, now: float, asked: int = 1000) -> int:
    return sum(budget.spend(now) for _ in range(asked))


def asked(budget: RetryBudget, requests: int, now: float) -> None:
    for _ in range(requests):
        budget.request(now)


def test_a_quiet_gateway_may_retry_a_little() -> None:
    assert granted(RetryBudget(), 5) == 10


def test_a_busy_one_may_retry_a_share_of_its_requests() -> None:
    budget = RetryBudget(0.2, 10, 10)
    asked(budget, 100, 5)
    assert granted(budget, 5) == 20
    asked(budget, 4, 5)
    assert granted(budget, 5) == 0  # a part of a retry is none
    asked(budget, 1, 5)
    assert granted(budget, 5) == 1


def test_what_is_refused_is_not_counted() -> None:
    budget = RetryBudget(0.5, 0)
    assert granted(budget, 5) == 0
    asked(budget, 2, 5)
    assert granted(budget, 5) == 1


def test_requests_and_retries_are_forgotten_together() -> None:
    budget = RetryBudget(0.2, 1, 10)
    asked(budget, 100, 5)
    assert granted(budget, 5) == 20
    assert granted(budget, 14) == 0
    assert granted(budget, 15) == 1


def test_a_budget_of_nothing_grants_nothing() -> None:
    budget = RetryBudget(0, 0)
    asked(budget, 1000, 5)
    assert granted(budget, 5) == 0


@given(
    ratio=st.sampled_from([0.0, 0.1, 0.2, 0.5, 1.0]),
    minimum=st.integers(0, 4),
    window=st.sampled_from([1.0, 10.0, 30.0]),
    events=st.lists(st.tuples(st.floats(0, 4), st.integers(0, 12), st.integers(0, 12))),
)
def test_retries_never_exceed_the_budget_and_are_refused_only_for_it(
    ratio: float, minimum: int, window: float, events: list[tuple[float, int, int]]
) -> None:
    budget, now = RetryBudget(ratio, minimum, window), 1000.0
    requests: list[float] = []
    retries: list[float] = []
    for wait, asks, tries in events:
        now += wait * window / 10
        bucket = now // (window / BUCKETS)
        asked(budget, asks, now)
        requests += [bucket] * asks
        most = max(minimum, ratio * sum(1 for each in requests if each > bucket - BUCKETS))
        for _ in range(tries):
            after = 1 + sum(1 for each in retries if each > bucket - BUCKETS)
            assert budget.spend(now) == (after <= most)
            if after <= most:
                retries.append(bucket)


def test_other_rules_hold_for_what_was_granted_before() -> None:
    budget = RetryBudget(ratio=0.0, minimum=2)
    assert [budget.spend(0.0) for _ in range(3)] == [True, True, False]
    budget.configure(0.0, 3)
    assert [budget.spend(0.1) for _ in range(2)] == [True, False]
