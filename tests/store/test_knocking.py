from __future__ import annotations

from typing import Any

import pytest

from proxy.store import knocking as module
from proxy.store.knocking import Knocking


class Door:
    """A dialect whose server lets in when it is ``open``."""

    def __init__(self) -> None:
        self.open = False
        self.knocks = 0

    def connect(self, *args: Any, **options: Any) -> str:
        self.knocks += 1
        if not self.open:
            raise ConnectionRefusedError("nobody is in")
        return f"{args} {options}"


def test_after_a_failure_there_is_a_second_of_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [5.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    door, knocking = Door(), Knocking()
    for _ in range(5):
        with pytest.raises(ConnectionError, match="nobody is in"):
            knocking.connect(door, None, (), {})  # type: ignore[arg-type]
    assert door.knocks == 1
    door.open = True
    with pytest.raises(ConnectionError):
        knocking.connect(door, None, (), {})  # type: ignore[arg-type]
    now[0] += 1.0
    for knocks in (2, 3):
        assert knocking.connect(door, None, (1,), {"a": 2}) == "(1,) {'a': 2}"  # type: ignore[arg-type]
        assert door.knocks == knocks
