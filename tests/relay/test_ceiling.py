from __future__ import annotations

from collections.abc import Mapping

import pytest

from proxy.errors import ErrorReason, GatewayError
from proxy.relay.ceiling import below, ceiling
from proxy.types import Plan, Target

A, B, C = (Target(name, "m") for name in "abc")
PLAN = Plan("fast", (A, B), "fast", instead={ErrorReason.CONTEXT_LENGTH: (C, B)})


@pytest.mark.parametrize(
    ("value", "nano"),
    [
        (b"0.01", 10_000_000),
        (b"1", 1_000_000_000),
        (b" 2. ", 2_000_000_000),
        (b".5", 500_000_000),
        (b"0", 0),
        (b"0.000000001", 1),
        (b"0.0000000019", 1),
        (b"999999999", 999_999_999_000_000_000),
    ],
)
def test_an_amount_is_dollars(value: bytes, nano: int) -> None:
    assert ceiling(value) == nano


@pytest.mark.parametrize(
    "value",
    [
        *(b"", b" ", b".", b"-0.01", b"+1", b"nan", b"inf", b"Infinity", b"1e3", b"0x1", b"$1"),
        *(b"1,5", b"1 2", b"1_000", b"0.01 USD", b"\xc2\xb2", b"\xd9\xa1", b"1" * 10, b"1\n2"),
        b"0." + b"1" * 5000,
    ],
)
def test_what_is_no_amount_is_400(value: bytes) -> None:
    with pytest.raises(GatewayError) as caught:
        ceiling(value)
    assert (caught.value.status, caught.value.param) == (400, "x-max-cost-usd")
    assert caught.value.code == "invalid_max_cost"


def kept(most: int, costs: Mapping[Target, int | None]) -> Plan:
    return below(PLAN, most, costs.__getitem__)


def test_who_is_dearer_is_left_out_also_as_a_last_resort() -> None:
    plan = kept(10, {A: 11, B: 10, C: 12})
    assert plan.targets == (B,)
    assert plan.instead == {ErrorReason.CONTEXT_LENGTH: (B,)}


def test_who_costs_as_much_as_may_be_stays_and_nothing_is_changed() -> None:
    assert kept(10, {A: 10, B: 0, C: 10}) == PLAN
    assert kept(0, {A: 0, B: 1, C: None}).targets == (A,)


def test_an_unknown_cost_is_more_than_any() -> None:
    assert kept(10**18, {A: None, B: 5, C: None}).targets == (B,)


@pytest.mark.parametrize(
    ("costs", "said"),
    [
        ({A: 11_000_000, B: 12_000_000, C: 1}, "is estimated at 0.011000000 US dollars"),
        ({A: None, B: None, C: 1}, "has no known price"),
    ],
)
def test_where_nobody_is_left_it_is_402_and_not_to_be_tried_again(
    costs: dict[Target, int | None], said: str
) -> None:
    with pytest.raises(GatewayError) as caught:
        kept(10_000_000, costs)
    error = caught.value
    assert (error.status, error.code, error.should_retry) == (402, "max_cost_exceeded", False)
    assert said in error.message
    assert "x-max-cost-usd is 0.010000000" in error.message
