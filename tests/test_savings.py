from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.metering.rates import Rates, Tier, cost
from proxy.savings import Savings, by_alias, lengths, savings, total
from proxy.store.savings import Used
from proxy.types import Target, Usage

A, B, C = (Target(name, "m") for name in "abc")
MILLION = 1_000_000
RATES = {
    A: Rates(input=1 * MILLION, output=2 * MILLION),
    B: Rates(input=5 * MILLION, output=0),
}


def used(target: Target, nano: int | None, usage: Usage, attempts: int = 1, at: int = 0) -> Used:
    unpriced = attempts if nano is None else 0
    return Used("fast", target.provider, target.model, at, attempts, unpriced, nano, usage)


def of(*sums: Used, targets: tuple[Target, ...] = (A, B)) -> Savings:
    return savings("fast", targets, sums, RATES.get, lengths(targets, RATES.get))


def test_every_target_is_reckoned_with_all_the_tokens() -> None:
    found = of(used(A, 200, Usage(100, 50), 2), used(B, 500, Usage(100, 0), 3))
    assert (found.attempts, found.actual, found.unpriced) == (5, 700, 0)
    assert [(each.target, each.served, each.nano) for each in found.alternatives] == [
        (A, 2, 200 + 100),
        (B, 3, 500 + 500),
    ]
    assert (found.cheapest, found.dearest) == found.alternatives
    assert (found.possible, found.saved) == (400, 300)


def test_a_target_without_a_price_is_neither_the_cheapest_nor_the_dearest() -> None:
    found = of(used(C, 10, Usage(1, 1)), targets=(C, A))
    assert found.alternatives[0].nano is None
    assert found.cheapest is found.dearest is found.alternatives[1]
    nobody = of(used(C, 10, Usage(1, 1)), targets=(C,))
    assert (nobody.cheapest, nobody.possible, nobody.saved) == (None, None, None)


def test_what_was_paid_must_be_known_to_say_what_was_saved() -> None:
    found = of(used(A, 200, Usage(100, 50)), used(B, None, Usage(1, 1)))
    assert (found.actual, found.unpriced) == (200, 1)
    assert (found.possible, found.saved) == (None, None)
    assert of(used(B, None, Usage(1, 1))).actual is None


def test_an_alias_that_nobody_used_cost_nothing_anywhere() -> None:
    found = of(targets=(A, C))
    assert (found.actual, found.possible, found.saved) == (0, 0, 0)
    assert [each.nano for each in found.alternatives] == [0, 0]


def test_what_cost_less_than_the_cheapest_shows_as_less_than_nothing() -> None:
    assert of(used(A, 0, Usage(100, 50))).possible == -200


def test_a_sum_of_what_is_not_all_known_is_not_known() -> None:
    assert (total([1, 2]), total([1, None]), total([])) == (3, None, 0)


def test_every_name_has_its_sums() -> None:
    one = used(A, 1, Usage(1, 1))
    assert by_alias([one], ["fast", "slow"]) == {"fast": [one], "slow": []}


def test_lengths_are_those_of_all_prices() -> None:
    rates = {A: Rates(tiers=(Tier(above=200), Tier(above=300))), B: Rates(tiers=(Tier(above=100),))}
    assert lengths((A, B, C), rates.get) == [100, 200, 300]


amounts = st.integers(0, 1000)


@given(
    st.lists(st.tuples(amounts, amounts), max_size=20), st.lists(amounts, unique=True, max_size=4)
)
def test_the_sum_of_many_calls_costs_what_they_cost_one_by_one(
    calls: list[tuple[int, int]], above: list[int]
) -> None:
    """Tiers included, since calls are kept apart by them."""
    tiers = tuple(
        Tier(above=each, input=number * MILLION, output=number * 3 * MILLION)
        for number, each in enumerate(sorted(above), 2)
    )
    rates = {A: Rates(input=MILLION, output=3 * MILLION, tiers=tiers), B: Rates(input=0, output=0)}
    steps = lengths((A, B), rates.get)
    sums: dict[int, list[int]] = {}
    for given_, made in calls:
        place = sums.setdefault(sum(given_ > step for step in steps), [0, 0, 0])
        place[0], place[1], place[2] = place[0] + given_, place[1] + made, place[2] + 1
    groups = [
        used(A, 0, Usage(given_, made), count, at) for at, (given_, made, count) in sums.items()
    ]
    found = savings("fast", (A,), groups, rates.get, steps)
    expected = sum(cost(Usage(given_, made), rates[A]) or 0 for given_, made in calls)
    assert found.alternatives[0].nano == expected
