from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.bounds import MOST_NANO_USD
from proxy.metering.rates import Rates, Tier, at_most, cost, nano_dollars
from proxy.types import Usage

LLAMA = Rates(input=590_000_000, output=790_000_000)
USED = Usage(input_tokens=1000, output_tokens=500)


def test_a_thousand_in_and_five_hundred_out_cost_985_millionths() -> None:
    assert cost(USED, LLAMA) == 985_000


@pytest.mark.parametrize(
    ("rate", "count", "expected"),
    [(1, 499_999, 0), (1, 500_000, 1), (1, 1_499_999, 1), (1, 1_500_000, 2), (999_999, 1, 1)],
)
def test_half_a_nano_dollar_is_rounded_up(rate: int, count: int, expected: int) -> None:
    assert cost(Usage(input_tokens=count, output_tokens=0), Rates(input=rate, output=0)) == expected


def test_input_and_output_are_rounded_together() -> None:
    assert cost(Usage(input_tokens=1, output_tokens=1), Rates(input=250_000, output=250_000)) == 1


def test_cached_tokens_are_inside_the_input() -> None:
    rates = Rates(input=1_000_000, output=0, cache_read=100_000, cache_write=1_250_000)
    usage = Usage(input_tokens=100, cached_tokens=60, cache_write_tokens=20, output_tokens=0)
    assert cost(usage, rates) == 20 + 6 + 25


def test_cached_tokens_without_a_rate_cost_what_input_costs() -> None:
    usage = Usage(input_tokens=1000, cached_tokens=900, cache_write_tokens=50, output_tokens=500)
    assert cost(usage, LLAMA) == 985_000


def test_more_cached_tokens_than_input_are_held_to_the_input() -> None:
    rates = Rates(input=9_000_000, output=0, cache_read=1_000_000, cache_write=5_000_000)
    usage = Usage(input_tokens=10, cached_tokens=70, cache_write_tokens=70, output_tokens=0)
    assert cost(usage, rates) == 10


def test_shares_of_sound_and_images_have_rates_of_their_own() -> None:
    rates = Rates(
        input=1_000_000,
        output=2_000_000,
        input_audio=10_000_000,
        input_image=3_000_000,
        output_audio=20_000_000,
        output_image=30_000_000,
        reasoning=1_000_000,
    )
    usage = Usage(
        input_tokens=100,
        input_audio_tokens=10,
        input_image_tokens=20,
        output_tokens=50,
        output_audio_tokens=5,
        output_image_tokens=1,
        reasoning_tokens=4,
    )
    assert cost(usage, rates) == (70 + 100 + 60) + (80 + 100 + 30 + 4)
    plain = Rates(input=1_000_000, output=2_000_000)
    assert cost(usage, plain) == 200


def test_shares_that_overlap_are_held_to_the_whole() -> None:
    rates = Rates(input=1_000_000, output=0, cache_read=100_000, input_audio=10_000_000)
    usage = Usage(input_tokens=10, cached_tokens=8, input_audio_tokens=9, output_tokens=0)
    assert cost(usage, rates) == 20 + 1  # 8 at 0.1 and 2 at 10, rounded


def test_reasoning_is_inside_the_output() -> None:
    usage = Usage(input_tokens=1000, output_tokens=500, reasoning_tokens=400, hidden_tokens=400)
    assert cost(usage, LLAMA) == 985_000


def test_a_long_input_puts_the_whole_call_into_the_tier() -> None:
    rates = Rates(
        input=1_000_000,
        output=2_000_000,
        tiers=(
            Tier(above=100, input=3_000_000, output=4_000_000),
            Tier(above=200, input=5_000_000, output=6_000_000),
        ),
    )
    assert cost(Usage(input_tokens=100, output_tokens=1), rates) == 102
    assert cost(Usage(input_tokens=101, output_tokens=1), rates) == 307
    assert cost(Usage(input_tokens=201, output_tokens=1), rates) == 1011
    assert cost(Usage(output_tokens=1), rates) is None


@pytest.mark.parametrize(
    "usage",
    [
        Usage(),
        Usage(input_tokens=5),
        Usage(output_tokens=5),
        Usage(input_tokens=-5, output_tokens=5),
        Usage(input_tokens=5, output_tokens=-5),
    ],
)
def test_a_missing_count_that_costs_something_is_no_cost(usage: Usage) -> None:
    assert cost(usage, LLAMA) is None


def test_a_missing_count_that_costs_nothing_does_not_matter() -> None:
    assert cost(Usage(input_tokens=1000), Rates(input=590_000_000, output=0)) == 590_000
    assert cost(Usage(input_tokens=1000), Rates(input=590_000_000)) == 590_000
    assert cost(Usage(output_tokens=1000), Rates(input=0, output=790_000_000)) == 790_000
    assert cost(Usage(), Rates(input=0, output=0)) == 0
    cached = Rates(input=0, output=0, cache_read=1)
    assert cost(Usage(output_tokens=1000), cached) is None


def test_what_no_call_can_cost_is_no_cost() -> None:
    dear = Rates(input=10**15, output=0)  # a million dollars a million tokens
    assert cost(Usage(input_tokens=10**6, output_tokens=0), dear) == 10**15
    assert cost(Usage(input_tokens=10**6 + 1, output_tokens=0), dear) is None


def test_a_missing_rate_of_tokens_that_were_used_is_no_cost() -> None:
    assert cost(USED, Rates(input=590_000_000)) is None
    assert cost(USED, Rates(output=790_000_000)) is None
    assert cost(Usage(input_tokens=1000, output_tokens=0), Rates(input=590_000_000)) == 590_000


@pytest.mark.parametrize(
    ("usd", "expected"),
    [
        (0.59, 590_000_000),
        (0.1 + 0.2, 300_000_000),
        (Decimal("0.0375"), 37_500_000),
        (1e-9, 1),
        (Decimal("0.0000000005"), 1),
        (Decimal("0.00000000049"), 0),
        (75, 75_000_000_000),
        (None, None),
    ],
)
def test_dollars_become_nano_dollars(usd: Decimal | float | None, expected: int | None) -> None:
    assert nano_dollars(usd) == expected


counts = st.integers(0, 10**9)
rates_per_million = st.integers(0, 10**12)


@given(counts, counts, counts, rates_per_million, rates_per_million, rates_per_million)
def test_the_cost_is_the_exact_sum_rounded_half_up(
    plain: int, cached: int, out: int, in_rate: int, cached_rate: int, out_rate: int
) -> None:
    usage = Usage(input_tokens=plain + cached, cached_tokens=cached, output_tokens=out)
    rates = Rates(input=in_rate, output=out_rate, cache_read=cached_rate)
    exact = Decimal(plain * in_rate + cached * cached_rate + out * out_rate).scaleb(-6)
    assert cost(usage, rates) == int(exact.to_integral_value(ROUND_HALF_UP))


usages = st.builds(
    Usage,
    input_tokens=st.integers(0, 10**6),
    output_tokens=st.integers(0, 10**6),
    cached_tokens=st.none() | st.integers(-10, 2 * 10**6),
    cache_write_tokens=st.none() | st.integers(-10, 2 * 10**6),
    input_audio_tokens=st.none() | st.integers(-10, 2 * 10**6),
    reasoning_tokens=st.none() | st.integers(-10, 2 * 10**6),
)


cheap, dear = st.integers(0, 10**9), st.integers(10**9, 10**10)
rising_rates = st.builds(
    Rates,
    input=cheap,
    output=cheap,
    cache_read=cheap,
    cache_write=cheap | st.none(),
    tiers=st.just(())
    | st.tuples(
        st.builds(
            Tier,
            above=st.integers(0, 10**6),
            input=dear,
            output=dear,
            cache_read=dear | st.none(),
            cache_write=dear,
        )
    ),
)


@given(usages, rising_rates, st.integers(0, 10**6), st.integers(0, 10**6))
def test_more_tokens_never_cost_less_and_no_call_costs_less_than_nothing(
    usage: Usage, rates: Rates, more_in: int, more_out: int
) -> None:
    small = cost(usage, rates)
    assert usage.input_tokens is not None
    assert usage.output_tokens is not None
    larger = msgspec.structs.replace(
        usage,
        input_tokens=usage.input_tokens + more_in,
        output_tokens=usage.output_tokens + more_out,
    )
    large = cost(larger, rates)
    assert small is not None
    assert large is not None
    assert 0 <= small <= large


def test_what_no_call_can_cost_is_estimated_as_the_most_that_one_can() -> None:
    assert at_most(1000, 500, LLAMA) == cost(USED, LLAMA)
    assert at_most(10**12, 10**12, LLAMA) == MOST_NANO_USD
    assert at_most(1, 1, Rates(input=5)) is None
