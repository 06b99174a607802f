"""``errors``: a row for each failed attempt and each fault of our own."""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.errors import ErrorReason
from proxy.store.tables import errors
from proxy.types import CallRecord, FaultRecord

_INFO = {
    ErrorReason.INVALID_REQUEST,
    ErrorReason.CONTEXT_LENGTH,
    ErrorReason.CONTENT_FILTER,
    ErrorReason.TOO_LARGE,
    ErrorReason.NOT_FOUND,
    ErrorReason.FORBIDDEN,
}
_WARNING = {ErrorReason.RATE_LIMIT, ErrorReason.QUOTA_EXCEEDED, ErrorReason.OVERLOADED}
_VARIABLE = re.compile(r"[\w.]*\d[\w.]*")
"""Numbers and ids, in which messages of one kind differ."""


async def save(
    connection: AsyncConnection, calls: Iterable[CallRecord], faults: Iterable[FaultRecord]
) -> None:
    """Write the failures among the calls, and the faults."""
    rows = [_attempt(call) for call in calls if call.status in ("error", "timeout")]
    rows += [_fault(fault) for fault in faults]
    if rows:
        await connection.execute(insert(errors), rows)


def severity(reason: str | None) -> str:
    """How bad a failed attempt is: the client's matter, a limit's, the provider's or ours."""
    if reason in _INFO:
        return "info"
    if reason in _WARNING:
        return "warning"
    return "critical" if reason == ErrorReason.INTERNAL else "error"


def fingerprint(*parts: str) -> str:
    """16 characters that are the same for faults of one kind, to group them by."""
    return blake2b("\n".join(parts).encode(errors="replace"), digest_size=8).hexdigest()


def _pattern(message: str) -> str:
    return _VARIABLE.sub("#", message)


def _attempt(call: CallRecord) -> dict[str, Any]:
    reason = call.error_reason or call.status
    message = call.error_message or reason
    return {
        "timestamp": call.finished_at,
        "request_id": call.request_id,
        "attempt": call.attempt,
        "error_type": reason,
        "error_message": message,
        "stack_trace": None,
        "provider": call.provider,
        "model_name": call.model,
        "endpoint": call.endpoint,
        "client_id": call.client_id,
        "severity": severity(reason),
        "http_status": call.http_status,
        "fingerprint": fingerprint(reason, call.provider, call.model, _pattern(message)),
    }


def _fault(fault: FaultRecord) -> dict[str, Any]:
    frames = [line.strip() for line in (fault.stack_trace or "").splitlines() if "File " in line]
    where = frames[-1:]
    if fault.stack_trace is None:
        where = [fault.provider or "", fault.model_name or "", _pattern(fault.error_message)]
    return {
        "timestamp": fault.timestamp,
        "request_id": fault.request_id,
        "attempt": None,
        "error_type": fault.error_type,
        "error_message": fault.error_message,
        "stack_trace": fault.stack_trace,
        "provider": fault.provider,
        "model_name": fault.model_name,
        "endpoint": fault.endpoint,
        "client_id": fault.client_id,
        "severity": fault.severity,
        "http_status": fault.http_status,
        "fingerprint": fingerprint(fault.error_type, *where),
    }
