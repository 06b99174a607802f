"""One row of a provider's error table, and what must come of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
import pytest

from proxy.errors import ErrorReason
from proxy.providers import DIALECTS
from proxy.relay.verdict import judge
from proxy.types import Action, Fault, Verdict

NOW = 1_795_190_400.0
"""2026-11-20T16:00:00Z, the moment of all cases."""
UTC_MIDNIGHT, PACIFIC_MIDNIGHT = 8 * 3600.0, 16 * 3600.0
"""Seconds from that moment."""
FREE = "*:free"

STOP = Verdict(Action.STOP)
NEXT_TARGET = Verdict(Action.NEXT_TARGET)
KEY_RESTS = Verdict(Action.NEXT_KEY, rests="key", covers="")
KEY_FAILS = Verdict(Action.NEXT_KEY, failure=True)
TARGET_FAILS = Verdict(Action.NEXT_TARGET, failure=True)


def group_rests(
    cooldown: float | None = None, covers: str | None = None, probe_after: float | None = None
) -> Verdict:
    """The key's quota group rests; without seconds as long as the pool's own back-off."""
    return Verdict(Action.NEXT_KEY, "group", covers, cooldown, probe_after)


def target_rests(cooldown: float) -> Verdict:
    """No capacity, and a hint how long."""
    return Verdict(Action.NEXT_KEY, "target", cooldown=cooldown, failure=True)


class Case(NamedTuple):
    """What a provider sends, and what it means in full: the reason and the whole verdict."""

    name: str
    status: int
    body: bytes
    reason: ErrorReason
    verdict: Verdict
    headers: Mapping[str, str] = MappingProxyType({})


def check(dialect: str, case: Case) -> Fault:
    """Classifies and judges a case; returns the fault for what else there is to check."""
    headers = [(name.encode(), value.encode()) for name, value in case.headers.items()]
    fault = DIALECTS[dialect].classify(case.status, headers, case.body, NOW)
    assert fault.reason is case.reason
    assert fault.status == case.status
    assert fault.message
    agree(judge(fault), case.verdict)
    return fault


def agree(verdict: Verdict, expected: Verdict) -> None:
    """Every member of two verdicts is the same, times to the millisecond."""
    times = ("cooldown", "probe_after")
    found, wanted = msgspec.structs.asdict(verdict), msgspec.structs.asdict(expected)
    for name in times:
        if wanted[name] is not None:
            wanted[name] = pytest.approx(wanted[name], abs=0.001)
    assert found == wanted


def name_of(case: Case) -> str:
    return case.name


def openai_error(message: str, **members: Any) -> bytes:
    """A body in OpenAI's shape."""
    return json.dumps({"error": {"message": message, **members}}).encode()
