from __future__ import annotations

from pathlib import Path

import pytest

from proxy.store.engine import Store
from proxy.store.faults import fingerprint, severity
from proxy.types import FaultRecord
from tests.store.rows import call, failed, rows


async def test_each_failed_attempt_has_a_row_and_nothing_else_does(
    store: Store, path: Path
) -> None:
    await store.write(
        [
            call(),
            failed("rate_limit", http_status=429, request_id="r", is_final=False, client_id="c"),
            failed("timeout", http_status=None),
            call(status="cancelled", error_reason="client_closed"),
            call(status="rejected", error_reason="invalid_request"),
        ]
    )
    limited, late = rows(path, "SELECT * FROM errors ORDER BY id")
    assert limited["error_type"] == "rate_limit"
    assert limited["error_message"] == "it failed: rate_limit"
    assert (limited["severity"], limited["http_status"]) == ("warning", 429)
    assert (limited["request_id"], limited["attempt"], limited["client_id"]) == ("r", 1, "c")
    assert limited["stack_trace"] is None
    assert (late["error_type"], late["severity"]) == ("timeout", "error")


async def test_a_fault_of_our_own_keeps_its_stack(store: Store, path: Path) -> None:
    stack = 'Traceback:\n  File "a.py", line 1, in f\n  File "b.py", line 2, in g\nKeyError: 1'
    await store.write(
        [FaultRecord(1, "KeyError", "1", stack), FaultRecord(2, "KeyError", "2", stack)]
    )
    first, second = rows(path, "SELECT * FROM errors ORDER BY id")
    assert first["stack_trace"] == stack
    assert first["severity"] == "critical"
    assert first["fingerprint"] == second["fingerprint"]


async def test_failures_that_differ_in_numbers_are_of_one_kind(store: Store, path: Path) -> None:
    messages = ("after 3.5 s, req_01ab", "after 12 s, req_99zz", "something else")
    await store.write([failed(error_message=message) for message in messages])
    a, b, c = (row["fingerprint"] for row in rows(path, "SELECT * FROM errors ORDER BY id"))
    assert a != c
    assert fingerprint("x") != fingerprint("y")
    assert len(a) == 16
    assert a == b


@pytest.mark.parametrize(
    ("reason", "level"),
    [
        ("context_length", "info"),
        ("quota_exceeded", "warning"),
        ("authentication", "error"),
        ("internal", "critical"),
        (None, "error"),
    ],
)
def test_severity_follows_the_reason(reason: str | None, level: str) -> None:
    assert severity(reason) == level
