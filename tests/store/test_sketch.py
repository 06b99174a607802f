from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.store.sketch import Sketch, lanes, of_lanes

VALUES = st.lists(st.floats(0.001, 1e6), min_size=2, max_size=200)
SHARES = (0.5, 0.95, 0.99)


def sketch(values: list[float]) -> Sketch:
    made = Sketch()
    for value in values:
        made.add(value)
    return made


@given(VALUES)
def test_quantiles_are_within_two_percent(values: list[float]) -> None:
    hundredths = statistics.quantiles(values, n=100, method="inclusive")
    textbook = [hundredths[round(share * 100) - 1] for share in SHARES]
    assert sketch(values).quantiles(*SHARES) == pytest.approx(textbook, rel=0.0201)


@given(VALUES, VALUES)
def test_two_sketches_are_one_of_all_values(first: list[float], second: list[float]) -> None:
    whole = sketch(first + second)
    assert sketch(first).plus(sketch(second)) == whole
    assert whole.count == len(first) + len(second)
    together = sketch(first)
    together.extend(second)
    assert together == whole


COUNTED = st.dictionaries(
    st.floats(0, 1e15), st.sampled_from([1, 2, 250, 300, 70_000, 2**33]), max_size=30
)


def many(counted: dict[float, int]) -> Sketch:
    made = Sketch()
    for value, count in counted.items():
        made = made.plus(Sketch(dict.fromkeys(sketch([value]).counts, count)))
    return made


@given(COUNTED, COUNTED)
def test_a_dump_holds_what_was_put_onto_it(first: dict[float, int], more: dict[float, int]) -> None:
    dump = many(more).onto(many(first).onto(None))
    assert of_lanes(lanes(dump)) == many(first).plus(many(more))
    assert (dump is None) is (not first and not more)


@given(COUNTED, COUNTED)
def test_dumps_are_added_up_as_numbers(first: dict[float, int], more: dict[float, int]) -> None:
    both = lanes(many(first).onto(None)) + lanes(many(more).onto(None))
    assert of_lanes(both) == many(first).plus(many(more))


def test_few_values_are_few_bytes() -> None:
    sizes = [len(sketch(values).onto(None) or b"") for values in ([700.0], [500.0, 900.0] * 80)]
    assert sizes == [3, 18]


def test_without_values_nothing_is_known() -> None:
    assert (Sketch().count, Sketch().quantiles(0.5)) == (0, [])


def test_what_is_off_the_scale_counts_at_its_ends() -> None:
    assert sketch([0.0, -1.0]).quantiles(0.95) == [0.0]
    assert sketch([float("inf"), 1e300]).quantiles(0.5) == pytest.approx([1e12], rel=0.02)
