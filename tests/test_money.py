from __future__ import annotations

import pytest

from proxy.money import dollars


@pytest.mark.parametrize(("nano", "usd"), [(None, None), (0, 0.0), (1, 1e-9), (-5 * 10**8, -0.5)])
def test_what_is_not_known_costs_nothing_that_is_known(nano: int | None, usd: float | None) -> None:
    assert dollars(nano) == usd
    assert (dollars(nano) is None) is (nano is None)
