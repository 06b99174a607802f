from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from itertools import count
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.routing.latency import LEAST, MAX_PENALTY, PEAK, PENALTY, Latency, pick

# The mean.


def test_the_first_sample_is_the_mean() -> None:
    latency = Latency()
    assert latency.value(0) is None
    latency.add(0, 0.3)
    assert latency.value(1e6) == 0.3


def test_a_peak_counts_at_once_and_is_forgotten_gradually() -> None:
    latency = Latency()
    latency.add(0, 0.1)
    latency.add(0, 1.1)
    assert latency.value(0) == pytest.approx(0.1 + PEAK)
    latency.add(0, 0.1)
    assert latency.value(0) == pytest.approx(0.1 + PEAK * (1 - LEAST))


def test_an_old_mean_weighs_less() -> None:
    latency = Latency(tau=60)
    latency.add(1000, 1.0)
    latency.add(1060, 0.0)
    assert latency.value(1060) == pytest.approx(math.exp(-1))
    latency.add(9000, 0.5)
    assert latency.value(9000) == pytest.approx(0.5)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 50)), min_size=1))
def test_the_mean_lies_among_the_samples(samples: list[tuple[float, float]]) -> None:
    latency, now = Latency(), 0.0
    for wait, seconds in samples:
        now += wait
        latency.add(now, seconds)
        value = latency.value(now)
        assert value is not None
        seen = [each for _, each in samples]
        assert min(seen) - 1e-9 <= value <= max(seen) + 1e-9


def test_a_failure_makes_a_target_slow_for_a_while() -> None:
    latency = Latency(tau=60)
    latency.add(0, 0.1)
    latency.failed(0)
    assert latency.value(0) == 0.1 + PENALTY
    assert latency.value(60) == pytest.approx(0.1 + PENALTY * math.exp(-1))
    assert latency.value(3600) == pytest.approx(0.1)


def test_a_success_halves_the_penalty() -> None:
    latency = Latency()
    latency.failed(0)
    latency.add(0, 0.1)
    assert latency.value(0) == 0.1 + PENALTY / 2


def test_penalties_add_up_to_a_limit() -> None:
    latency = Latency(tau=60)
    latency.failed(0)
    latency.failed(60)
    assert latency.value(60) == pytest.approx(PENALTY * (1 + math.exp(-1)))
    for _ in range(100):
        latency.failed(60)
    assert latency.value(60) == MAX_PENALTY


def test_a_target_that_only_failed_counts_as_unmeasured_again_after_a_time() -> None:
    latency = Latency()
    latency.failed(0)
    assert latency.value(0) == PENALTY
    assert latency.value(3600) is None


# The choice.

BEST = 0.5
"""A chance that explores nothing."""


def test_the_least_latency_times_load_is_taken() -> None:
    assert pick([0.4, 0.03, 0.12], [0, 0, 0], BEST) == 1
    assert pick([0.4, 0.03, 0.12], [0, 3, 0], BEST) == 1  # 0.12 each: the first of equals
    assert pick([0.4, 0.03, 0.12], [0, 4, 0], BEST) == 2


def test_an_unmeasured_target_is_measured_first_by_one_call() -> None:
    assert pick([0.03, None, None], [0, 0, 0], BEST) == 1
    assert pick([0.03, None, None], [0, 1, 0], BEST) == 2
    assert pick([0.03, None, None], [5, 1, 1], BEST) == 0


def test_where_nothing_is_known_the_least_load_is_taken() -> None:
    assert pick([None, None, None], [2, 1, 1], BEST) == 1


def test_exploring_takes_each_of_the_others_alike() -> None:
    values, loads = [0.4, 0.03, 0.12, 0.2], [0, 0, 0, 0]
    taken = [pick(values, loads, n / 10_000, explore=0.06) for n in range(10_000)]
    assert [taken.count(n) for n in range(4)] == [200, 9400, 200, 200]


def test_without_exploring_the_best_is_always_taken() -> None:
    assert pick([0.4, 0.03], [0, 0], 0.0, explore=0.0) == 1


def test_a_single_target_is_taken_whatever_the_chance() -> None:
    assert pick([0.4], [9], 0.0) == pick([None], [9], 0.0) == 0


@given(
    st.lists(st.tuples(st.none() | st.floats(0, 100), st.integers(0, 9)), min_size=1),
    st.floats(0, 1, exclude_max=True) | st.just(math.nextafter(0.05, 0)),
)
def test_a_target_is_always_found(targets: list[tuple[float | None, int]], chance: float) -> None:
    values, loads = [value for value, _ in targets], [load for _, load in targets]
    index = pick(values, loads, chance)
    assert 0 <= index < len(targets)
    if chance < 0.05 and len(targets) > 1:
        assert index != pick(values, loads, BEST)


# Both together, under a clock of their own.

Choice = Callable[[float, list[Latency], list[int]], int]


def simulated(choose: Choice, seed: int) -> list[tuple[float, int, float]]:
    """When each of many requests came, the target it took, and its time to first token.

    Twenty requests a second for four minutes. The slowest of three targets becomes the fastest
    half-way. Times vary by a fifth, and every call holds its target for its time.
    """
    random = Random(seed)
    latencies, loads = [Latency() for _ in range(3)], [0, 0, 0]
    ends: list[tuple[float, int, float]] = []
    calls, now = [], 0.0
    while now < 240:
        now += random.expovariate(20)
        while ends and ends[0][0] <= now:
            ended, index, seconds = heapq.heappop(ends)
            loads[index] -= 1
            latencies[index].add(ended, seconds)
        index = choose(now, latencies, loads)
        usual = (0.03, 0.12, 0.4 if now < 120 else 0.015)[index]
        seconds = usual * random.lognormvariate(0, 0.2)
        loads[index] += 1
        heapq.heappush(ends, (now + seconds, index, seconds))
        calls.append((now, index, seconds))
    return calls


def by_latency(seed: int) -> Choice:
    random = Random(seed)
    return lambda now, latencies, loads: pick(
        [latency.value(now) for latency in latencies], loads, random.random()
    )


def in_turn() -> Choice:
    turns = count()
    return lambda now, latencies, loads: next(turns) % 3


def mean(calls: list[tuple[float, int, float]]) -> float:
    return sum(seconds for _, _, seconds in calls) / len(calls)


@pytest.mark.parametrize("seed", range(3))
def test_the_choice_beats_taking_turns_by_far(seed: int) -> None:
    chosen, turns = mean(simulated(by_latency(seed), seed)), mean(simulated(in_turn(), seed))
    told = f"mean time to first token: {chosen * 1000:.1f} ms chosen, {turns * 1000:.1f} ms in turn"
    assert chosen < 0.4 * turns, told


@pytest.mark.parametrize("seed", range(3))
def test_a_target_that_became_fast_is_found_within_a_minute(seed: int) -> None:
    calls = simulated(by_latency(seed), seed)
    before = [index for now, index, _ in calls if 60 <= now < 120]
    after = [index for now, index, _ in calls if 180 <= now < 240]
    shares = before.count(0) / len(before), after.count(2) / len(after)
    assert min(shares) > 0.7, f"shares of the fastest before and after: {shares}"
