from __future__ import annotations

from proxy.api.keys import shown


def test_instants_become_text_wherever_they_stand_and_unknown_stays_null() -> None:
    key = {
        "name": "k1",
        "until": 1_700_000_000_123,
        "models": [{"model": "m", "until": 1_700_000_001_000}],
        "limits": [{"limit": 3, "reset": 1_700_000_002_000}, {"limit": 4, "reset": None}],
    }
    assert shown(key) == {
        "name": "k1",
        "until": "2023-11-14T22:13:20.123Z",
        "models": [{"model": "m", "until": "2023-11-14T22:13:21.000Z"}],
        "limits": [
            {"limit": 3, "reset": "2023-11-14T22:13:22.000Z"},
            {"limit": 4, "reset": None},
        ],
    }
