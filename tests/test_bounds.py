from __future__ import annotations

import pytest

from proxy.bounds import MOST_NANO_USD, MOST_SUM, MOST_TOKENS, saturated


@pytest.mark.parametrize("total", [0, -7, 12, MOST_SUM, -MOST_SUM])
def test_a_sum_that_fits_is_itself(total: int) -> None:
    assert saturated(total) == total


def test_a_sum_that_does_not_fit_stops() -> None:
    assert saturated(MOST_SUM + 1) == saturated(2**70) == MOST_SUM
    assert saturated(-(2**70)) == -MOST_SUM


def test_a_thousand_of_the_largest_calls_are_still_counted_exactly() -> None:
    assert 1000 * max(MOST_TOKENS, MOST_NANO_USD) <= MOST_SUM
    assert 9 * MOST_SUM < 2**63
