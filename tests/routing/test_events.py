from __future__ import annotations

from proxy.errors import ErrorReason
from proxy.routing.events import Lifted, Parked, Switched
from proxy.routing.key import Key
from proxy.routing.rests import Rest


def test_no_event_shows_a_secret() -> None:
    """They go to the log."""
    key = Key("k1", "sk-secret", "g")
    rest = Rest(60, ErrorReason.RATE_LIMIT, 1, "cooling")
    parked = Parked("lab", key, ("group", "g", "m"), rest, "header")
    for event in (parked, Lifted("lab", [parked.place]), Switched("lab", key)):
        assert "lab" in repr(event)
        assert "secret" not in repr(event)
