from __future__ import annotations

from proxy.metering.attempt import Attempt
from proxy.types import Target


def test_a_request_that_is_on_its_way_may_be_billed() -> None:
    attempt = Attempt(1, Target("lab", "m"), 1.0, leased=1.5)
    assert not attempt.out
    attempt.went_out()
    assert attempt.out
    assert attempt.sent == attempt.leased == 1.5
