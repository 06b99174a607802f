"""``provider_health``: how each provider and model has been doing, from the calls themselves.

Only what the provider answers for counts: a success, or one of ``FAILURES``. A client's mistake,
a hang-up, a limit and a bad key say nothing about a provider's health.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from sqlalchemy import Select, case, select
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.reasons import FAILURES
from proxy.store.tables import api_calls, provider_health
from proxy.store.upsert import replace
from proxy.types import CallRecord

WINDOW_SECONDS = 300
_BUCKET_MS = 10_000  # the window moves on in steps of this
_UNHEALTHY_AFTER = 3
_WEIGHT = 0.2  # of the newest value in a moving average

Key = tuple[str, str]


class Condition(msgspec.Struct, frozen=True):
    """The running state of one model at one provider; ``buckets`` is outcomes and failures by
    the time of their end, in units of ten seconds."""

    consecutive_failures: int = 0
    last_success_time: int | None = None
    last_failure_time: int | None = None
    last_error_reason: str | None = None
    last_http_status: int | None = None
    avg_latency_ms: float | None = None
    avg_ttft_ms: float | None = None
    buckets: Mapping[int, tuple[int, int]] = {}

    def after(self, call: CallRecord) -> Condition:
        """The state that follows from one more outcome."""
        failed = call.status != "success"
        at = call.finished_at
        counted, failures = self.buckets.get(at // _BUCKET_MS, (0, 0))
        buckets = {**self.buckets, at // _BUCKET_MS: (counted + 1, failures + failed)}
        if failed:
            return msgspec.structs.replace(
                self,
                buckets=buckets,
                consecutive_failures=self.consecutive_failures + 1,
                last_failure_time=at,
                last_error_reason=call.error_reason,
                last_http_status=call.http_status,
            )
        return msgspec.structs.replace(
            self,
            buckets=buckets,
            consecutive_failures=0,
            last_success_time=at,
            last_http_status=call.http_status,
            avg_latency_ms=_moved(self.avg_latency_ms, call.response_time_ms),
            avg_ttft_ms=_moved(self.avg_ttft_ms, call.time_to_first_token_ms),
        )

    def row(self, key: Key, now: int) -> dict[str, Any]:
        """The row of ``provider_health``."""
        counted = sum(count for count, _ in self.buckets.values())
        failures = sum(failed for _, failed in self.buckets.values())
        checks = [t for t in (self.last_success_time, self.last_failure_time) if t is not None]
        return {
            "provider": key[0],
            "model": key[1],
            "key_id": "",
            "is_healthy": self.consecutive_failures < _UNHEALTHY_AFTER,
            "failure_rate": failures / counted if counted else 0.0,
            "window_seconds": WINDOW_SECONDS,
            "sample_count": counted,
            "consecutive_failures": self.consecutive_failures,
            "last_success_time": self.last_success_time,
            "last_failure_time": self.last_failure_time,
            "last_check_time": max(checks, default=None),
            "last_error_reason": self.last_error_reason,
            "last_http_status": self.last_http_status,
            "avg_latency_ms": self.avg_latency_ms,
            "avg_ttft_ms": self.avg_ttft_ms,
            "updated_at": now,
        }


class Changes(msgspec.Struct, frozen=True):
    """The states that a batch changes, not yet adopted."""

    conditions: dict[Key, Condition]
    now: int

    async def save(self, connection: AsyncConnection) -> None:
        """Upsert their rows."""
        rows = [self.conditions[key].row(key, self.now) for key in sorted(self.conditions)]
        await replace(connection, provider_health, ("provider", "model", "key_id"), rows)


class Health:
    """The state of every provider and model."""

    def __init__(self, conditions: dict[Key, Condition] | None = None) -> None:
        self._conditions = conditions or {}

    @classmethod
    async def load(cls, connection: AsyncConnection, now: int) -> Health:
        """Take up where the tables left off: the states, and the outcomes of the window."""
        table = provider_health.c
        conditions = {}
        for row in (await connection.execute(select(provider_health))).mappings():
            names = [name for name in Condition.__struct_fields__ if name in table]
            fields = {name: row[name] for name in names}
            conditions[row["provider"], row["model"]] = Condition(**fields)
        buckets: dict[Key, dict[int, tuple[int, int]]] = {}
        for provider, model, at, failed in await connection.execute(_recent(now)):
            counts = buckets.setdefault((provider, model), {})
            counted, failures = counts.get(at // _BUCKET_MS, (0, 0))
            counts[at // _BUCKET_MS] = (counted + 1, failures + failed)
        for key, counts in buckets.items():
            known = conditions.get(key, Condition())
            conditions[key] = msgspec.structs.replace(known, buckets=counts)
        return cls(conditions)

    def after(self, calls: Iterable[CallRecord], now: int) -> Changes:
        """The states that follow from the calls; what is held here stays as it is."""
        changed: dict[Key, Condition] = {}
        for call in sorted(filter(_counts, calls), key=lambda call: call.finished_at):
            key = (call.provider, call.model)
            known = changed.get(key) or self._conditions.get(key) or Condition()
            changed[key] = known.after(call)
        return Changes({key: _forget(state, now) for key, state in changed.items()}, now)

    def adopt(self, changes: Changes) -> None:
        """Hold the new states: their rows are committed."""
        self._conditions.update(changes.conditions)


def _counts(call: CallRecord) -> bool:
    return call.status == "success" or call.error_reason in FAILURES


def _recent(now: int) -> Select[str, str, int, int]:
    # A call of this window may have begun before it; an hour is more than any takes.
    table = api_calls.c
    ended = table.finished_at >= now - WINDOW_SECONDS * 1000
    counts = (table.status == "success") | table.error_reason.in_(
        [reason.value for reason in FAILURES]
    )
    return select(
        table.provider,
        table.model,
        table.finished_at,
        case((table.status == "success", 0), else_=1),
    ).where(table.timestamp >= now - 3_600_000, ended, counts)


def _forget(state: Condition, now: int) -> Condition:
    oldest = (now - WINDOW_SECONDS * 1000) // _BUCKET_MS
    kept = {bucket: counts for bucket, counts in state.buckets.items() if bucket > oldest}
    return msgspec.structs.replace(state, buckets=kept)


def _moved(average: float | None, value: float | None) -> float | None:
    if value is None or average is None:
        return average if value is None else value
    return average + _WEIGHT * (value - average)
