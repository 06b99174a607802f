"""One row of a provider's error table, and what must come of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from proxy.errors import ErrorReason
from proxy.providers import DIALECTS
from proxy.relay.verdict import judge
from proxy.types import Action, Fault

NOW = 1_795_190_400.0
"""2026-11-20T16:00:00Z, the moment of all cases."""

NEXT_KEY, NEXT_TARGET, STOP = Action.NEXT_KEY, Action.NEXT_TARGET, Action.STOP


class Case(NamedTuple):
    """``wait`` is the expected ``retry_after`` in seconds; ``park`` what rests, if anything."""

    name: str
    status: int
    body: bytes
    reason: ErrorReason
    action: Action
    park: str = "none"
    wait: float | None = None
    headers: Mapping[str, str] = MappingProxyType({})


def check(dialect: str, case: Case) -> Fault:
    """Classifies and judges a case; returns the fault for what else there is to check."""
    headers = [(name.encode(), value.encode()) for name, value in case.headers.items()]
    fault = DIALECTS[dialect].classify(case.status, headers, case.body, NOW)
    verdict = judge(fault)
    assert fault.reason is case.reason
    assert fault.status == case.status
    assert fault.retry_after == (None if case.wait is None else pytest.approx(case.wait, abs=0.001))
    assert (verdict.action, verdict.park) == (case.action, case.park)
    assert fault.message
    return fault


def name_of(case: Case) -> str:
    return case.name


def openai_error(message: str, **members: Any) -> bytes:
    """A body in OpenAI's shape."""
    return json.dumps({"error": {"message": message, **members}}).encode()
