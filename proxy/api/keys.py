"""How a key is shown: its state as the pool tells it, with instants as text."""

from __future__ import annotations

from typing import Any

from proxy.clock import rfc3339

Record = dict[str, Any]


def shown(key: Record) -> Record:
    """``until`` and ``reset`` as RFC 3339, in the key, its models and its limits."""
    return key | {
        "until": rfc3339(key["until"]),
        "models": [each | {"until": rfc3339(each["until"])} for each in key["models"]],
        "limits": [each | {"reset": rfc3339(each["reset"])} for each in key["limits"]],
    }
