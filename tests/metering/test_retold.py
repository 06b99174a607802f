from __future__ import annotations

import pytest

from proxy.errors import ErrorReason
from proxy.metering.retold import SHORT, retold
from proxy.types import Fault

REQUEST = b'{"messages": [{"content": "the gold lies under the oak"}]}'


@pytest.mark.parametrize(
    ("message", "status", "kept"),
    [
        ("slow down", 429, "slow down"),
        ("out of order", 500, "out of order"),
        ("x" * (SHORT + 1), 429, "x" * (SHORT + 1)),
        ("x" * (SHORT + 1), 500, "the provider's error: status 500"),
        ("cannot read 'THE GOLD LIES under the oak'", 400, "cannot read '[…]'"),
        ("cannot read 'the%20gold+lies'", 400, "the provider's error: status 400"),
    ],
)
def test_what_is_kept_of_a_providers_words(message: str, status: int, kept: str) -> None:
    fault = Fault(ErrorReason.SERVER_ERROR, message, status=status)
    assert retold(fault, REQUEST, answered=False) == kept


def test_where_what_was_said_is_not_at_hand_its_codes_are_kept() -> None:
    fault = Fault(ErrorReason.SERVER_ERROR, "slow down", status=429)
    for request, answered in ((None, False), (REQUEST, True)):
        assert retold(fault, request, answered) == "the provider's error: status 429"
