"""``provider_health``: how each provider and model has been doing, from the calls themselves.

Only what the provider answers for counts: a success, or one of ``FAILURES``. A client's mistake,
a hang-up, a limit and a bad key say nothing about a provider's health.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any

import msgspec
from sqlalchemy import Select, case, select
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.reasons import FAILURES
from proxy.store.running import States
from proxy.store.tables import api_calls, provider_health
from proxy.store.upsert import replace
from proxy.types import CallRecord

WINDOW_SECONDS = 300
_BUCKET_MS = 10_000  # the window moves on in steps of this
_UNHEALTHY_AFTER = 3
_WEIGHT = 0.2  # of the newest value in a moving average

Key = tuple[str, str, str]
"""Of a running figure: "health", provider, model."""


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
            "provider": key[1],
            "model": key[2],
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


_CONDITION = msgspec.json.Decoder(Condition)


def outcomes(calls: Iterable[CallRecord]) -> dict[Key, list[CallRecord]]:
    """The calls that count, by whose health they tell of, in the order in which they ended."""
    found: dict[Key, list[CallRecord]] = {}
    for call in sorted(filter(_counts, calls), key=lambda call: call.finished_at):
        found.setdefault(("health", call.provider, call.model), []).append(call)
    return found


async def save(
    connection: AsyncConnection, ended: Mapping[Key, list[CallRecord]], old: States, now: int
) -> States:
    """Let the calls, whose rows are in this transaction already, change the conditions they tell
    of, and return their states."""
    conditions: dict[Key, Condition] = {}
    for key in sorted(ended):
        before = _CONDITION.decode(old[key]) if key in old else await _load(connection, key)
        condition = reduce(Condition.after, ended[key], before)
        if key not in old:
            buckets = await _recent(connection, key, now)
            condition = msgspec.structs.replace(condition, buckets=buckets)
        conditions[key] = _forget(condition, now)
    rows = [condition.row(key, now) for key, condition in conditions.items()]
    await replace(connection, provider_health, ("provider", "model", "key_id"), rows)
    return {key: msgspec.json.encode(condition) for key, condition in conditions.items()}


async def _load(connection: AsyncConnection, key: Key) -> Condition:
    """What the row tells, without the buckets."""
    table = provider_health.c
    names = [name for name in Condition.__struct_fields__ if name in table]
    query = select(*(table[name] for name in names)).where(
        table.provider == key[1], table.model == key[2], table.key_id == ""
    )
    row = (await connection.execute(query)).mappings().first()
    return Condition(**row) if row is not None else Condition()


async def _recent(connection: AsyncConnection, key: Key, now: int) -> dict[int, tuple[int, int]]:
    """The buckets as the calls of the window tell them."""
    buckets: dict[int, tuple[int, int]] = {}
    for at, failed in await connection.execute(_ended(key, now)):
        counted, failures = buckets.get(at // _BUCKET_MS, (0, 0))
        buckets[at // _BUCKET_MS] = (counted + 1, failures + failed)
    return buckets


def _counts(call: CallRecord) -> bool:
    return call.status == "success" or call.error_reason in FAILURES


def _ended(key: Key, now: int) -> Select[int, int]:
    # A call of this window may have begun before it; an hour is more than any takes.
    table = api_calls.c
    ended = table.finished_at >= now - WINDOW_SECONDS * 1000
    counts = (table.status == "success") | table.error_reason.in_(
        [reason.value for reason in FAILURES]
    )
    failed = case((table.status == "success", 0), else_=1)
    mine = (table.provider == key[1], table.model == key[2])
    begun = table.timestamp >= now - 3_600_000
    return select(table.finished_at, failed).where(*mine, begun, ended, counts)


def _forget(state: Condition, now: int) -> Condition:
    oldest = (now - WINDOW_SECONDS * 1000) // _BUCKET_MS
    kept = {bucket: counts for bucket, counts in state.buckets.items() if bucket > oldest}
    return msgspec.structs.replace(state, buckets=kept)


def _moved(average: float | None, value: float | None) -> float | None:
    if value is None or average is None:
        return average if value is None else value
    return average + _WEIGHT * (value - average)
