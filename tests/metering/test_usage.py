from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.metering.usage import RawUsage, from_timings, pick, total


def counts(prompt: Any, completion: Any, whole: Any = None, **more: Any) -> RawUsage:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": whole,
        **more,
    }


def best_of(*candidates: Any) -> RawUsage | None:
    best = None
    for candidate in candidates:
        best = pick(best, candidate)
    return best


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({}, 0),
        (counts(3, 4), 7),
        (counts(3, 4, 7), 7),
        (counts(3, 4, 100), 100),
        (counts(3, 4, 0), 7),
        (counts(None, None, None), 0),
        (counts("3", [], {}), 0),
        (counts(-3, math.nan, math.inf), 0),
        (counts(3.0, 10**30, -(10**30)), 3),
        (counts(3, 10**12 + 1, 4e15), 3),  # no call has so many
    ],
)
def test_the_tokens_that_a_usage_accounts_for(usage: RawUsage, tokens: int) -> None:
    assert total(usage) == tokens


def test_the_same_usage_three_times_counts_once() -> None:
    usage = counts(45, 3, 48)
    assert best_of(usage, dict(usage), dict(usage)) == usage


def test_usage_that_grows_ends_with_the_last() -> None:
    assert best_of(counts(9, 1, 104), counts(9, 6, 109), counts(9, 6, 109)) == counts(9, 6, 109)


@pytest.mark.parametrize("zeros", [counts(0, 0, 0), counts(None, None), {"total_tokens": 0}])
def test_zeros_never_replace(zeros: RawUsage) -> None:
    best = best_of(counts(45, 2, 47), zeros)
    assert best is not None
    assert (best["prompt_tokens"], best["completion_tokens"], best["total_tokens"]) == (45, 2, 47)
    assert total(best_of(zeros, counts(45, 2, 47)) or {}) == 47


def test_a_smaller_one_does_not_replace_a_larger() -> None:
    assert best_of(counts(9, 6, 109), counts(9, 6, 15)) == counts(9, 6, 109)


def test_of_two_alike_the_later_counts() -> None:
    assert best_of(counts(5, 5, 10), counts(4, 6, 10)) == counts(4, 6, 10)


def test_members_of_the_loser_are_kept() -> None:
    best = best_of(counts(5, 5, 10, cost=0.1), counts(5, 6, 11, cost=None, is_byok=False))
    assert best == counts(5, 6, 11, cost=0.1, is_byok=False)
    best = best_of(counts(5, 6, 11), counts(0, 0, 0, cost=0.1))
    assert best == counts(5, 6, 11, cost=0.1)


@pytest.mark.parametrize(
    "other", [None, [], "x", 7, {}, {"cost": 1}, {"cached_tokens": 5, "dram_cached_tokens": 5}]
)
def test_what_counts_no_tokens_is_no_usage(other: Any) -> None:
    assert pick(None, other) is None
    assert pick(counts(1, 2, 3), other) == counts(1, 2, 3)


def test_one_side_alone_is_usage() -> None:
    assert pick(None, {"completion_tokens": 7}) == {"completion_tokens": 7}
    assert best_of({"input_tokens": 5, "output_tokens": 1}, {"output_tokens": 11}) == {
        "input_tokens": 5,
        "output_tokens": 11,
    }


def test_nothing_given_is_changed() -> None:
    first, second = counts(1, 2, 3, cost=1), counts(2, 2, 4)
    pick(first, second)
    pick(second, first)
    assert (first, second) == (counts(1, 2, 3, cost=1), counts(2, 2, 4))


ANY = st.none() | st.integers() | st.floats() | st.text(max_size=2)
USAGE = st.dictionaries(st.sampled_from([*counts(0, 0), "cost", "x"]), ANY) | ANY


@settings(deadline=None)
@given(st.lists(USAGE, max_size=5))
def test_the_best_never_shrinks(candidates: list[Any]) -> None:
    best: RawUsage | None = None
    for candidate in candidates:
        before, best = best, pick(best, candidate)
        assert best is not None or before is None
        assert total(best or {}) >= total(before or {})


def test_timings_are_usage() -> None:
    usage = from_timings({"cache_n": 7, "prompt_n": 10, "predicted_n": 9, "predicted_ms": 137.3})
    assert usage == counts(17, 9, 26, prompt_tokens_details={"cached_tokens": 7})


@pytest.mark.parametrize("timings", [None, [], 3, {}, {"prompt_n": 10}])
def test_timings_without_output_are_none(timings: Any) -> None:
    assert from_timings(timings) is None


def test_anthropics_names_are_usage_too() -> None:
    first = {"input_tokens": 12, "cache_read_input_tokens": 30, "output_tokens": 1}
    best = pick(None, first)
    assert best == first
    best = pick(best, {"input_tokens": 12, "output_tokens": 40})
    assert best == {"input_tokens": 12, "cache_read_input_tokens": 30, "output_tokens": 40}
    assert total(best) == 52
