from __future__ import annotations

from proxy.errors import ErrorReason
from proxy.store import sets


def test_a_reason_is_no_status() -> None:
    assert not set(sets.STATUSES) & set(map(str, ErrorReason)) - {"timeout"}
