from __future__ import annotations

import pytest

from proxy.money import dollars, nano


@pytest.mark.parametrize(
    ("whole", "usd"), [(None, None), (0, 0.0), (1, 1e-9), (-5 * 10**8, -0.5), (300, 1e-7 + 2e-7)]
)
def test_what_is_not_known_costs_nothing_that_is_known(
    whole: int | None, usd: float | None
) -> None:
    assert dollars(whole) == (None if usd is None else pytest.approx(usd, abs=1e-15))
    assert (dollars(whole) is None) is (whole is None)
    assert nano(usd) == whole
