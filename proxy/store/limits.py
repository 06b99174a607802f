"""``rate_limits``: the newest state of each limit, as answers' headers tell it.

Headers: ``x-ratelimit-{limit,remaining,reset}-{requests,tokens}`` as OpenAI and Groq send them
(https://console.groq.com/docs/rate-limits), with ``-minute`` or ``-day`` behind where a provider
says it, and OpenRouter's bare ``x-ratelimit-{limit,remaining,reset}``, which counts requests.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from sqlalchemy import func
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.duration import duration
from proxy.errors import ErrorReason
from proxy.store.tables import rate_limits
from proxy.store.upsert import Insert, insert_into
from proxy.types import CallRecord

_KEY = ("provider", "model", "key_id", "account", "limit_type")
_NAME = re.compile(
    rb"x-ratelimit-(limit|remaining|reset)(?:-(requests|tokens)(?:-(minute|hour|day))?)?"
)
_PERIODS = {"minute": 60, "hour": 3600, "day": 86_400}
_REFUSED = (ErrorReason.RATE_LIMIT, ErrorReason.QUOTA_EXCEEDED)
_FARTHEST_SECONDS = 400 * 86_400
_LARGEST = 2**63 - 1


async def save_headers(
    connection: AsyncConnection,
    calls: Iterable[CallRecord],
    windows: Mapping[str, Mapping[str, int]],
) -> None:
    """Upsert the limits that the newest answers of the batch tell."""
    newest: dict[tuple[str, ...], dict[str, Any]] = {}
    for call in _telling(calls):
        for limit in read(call, windows.get(call.provider, {})):
            key = tuple(limit[name] for name in _KEY)
            known = newest.get(key)
            if known is None or known["last_updated"] <= limit["last_updated"]:
                hits = limit["hit_count"] + (known["hit_count"] if known else 0)
                newest[key] = limit | {"hit_count": hits}
    if not newest:
        return
    rows = [newest[key] for key in sorted(newest)]
    await connection.execute(_newest_figures(connection.dialect.name), rows)


def _telling(calls: Iterable[CallRecord]) -> list[CallRecord]:
    """The calls whose headers are worth reading: refusals, and the newest of each key and model.

    In a busy second hundreds of answers say the same.
    """
    refused = []
    newest: dict[tuple[str, str, str | None], CallRecord] = {}
    for call in calls:
        if not call.rate_headers:
            continue
        if call.error_reason in _REFUSED:
            refused.append(call)
            continue
        key = (call.provider, call.model, call.key_id)
        known = newest.get(key)
        if known is None or known.finished_at <= call.finished_at:
            newest[key] = call
    return refused + list(newest.values())


@cache
def _newest_figures(dialect: str) -> Insert:
    insert = insert_into(rate_limits, dialect)
    old, new = rate_limits.c, insert.excluded
    return insert.on_conflict_do_update(
        index_elements=_KEY,
        set_={
            "current_count": new.current_count,
            "limit_limit": func.coalesce(new.limit_limit, old.limit_limit),
            "remaining": new.remaining,
            "window_seconds": new.window_seconds,
            "reset_time": new.reset_time,
            "hit_count": old.hit_count + new.hit_count,
            "last_hit_at": func.coalesce(new.last_hit_at, old.last_hit_at),
            "source": new.source,
            "last_updated": new.last_updated,
        },
        where=new.last_updated >= old.last_updated,
    )


def read(call: CallRecord, windows: Mapping[str, int]) -> list[dict[str, Any]]:
    """A row for each kind of limit that the answer's headers tell."""
    told: dict[str, dict[str, str]] = {}
    for name, value in call.rate_headers:
        match = _NAME.fullmatch(name)
        if match is None:
            continue
        figure, unit, period = (part.decode() if part else "" for part in match.groups())
        kind = "_".join(part for part in (unit or "requests", period) if part)
        told.setdefault(kind, {})[figure] = value.decode("latin-1").strip()
    at = call.finished_at if call.ttfb_ms is None else call.timestamp + round(call.ttfb_ms)
    rows = []
    for kind, figures in told.items():
        limit, remaining = count(figures.get("limit")), count(figures.get("remaining"))
        if limit is None and remaining is None:
            continue
        rows.append(
            _row(call, kind, at)
            | _figures(limit, remaining)
            | {
                "reset_time": instant(figures.get("reset"), at),
                "window_seconds": _PERIODS.get(kind.partition("_")[2], windows.get(kind)),
            }
            | _hit(call, remaining, at)
        )
    return rows


def count(value: str | None) -> int | None:
    """A whole number, None if it is none; further words (``100, 100;w=60``) are left out."""
    match = re.match(r"\d+", value or "")
    number = int(match[0]) if match and len(match[0]) < 20 else None
    return number if number is None or number <= _LARGEST else None


def instant(value: str | None, at: int) -> int | None:
    """When a limit is reset, UTC milliseconds, as heard at ``at``; None if that is no time.

    Go's durations (``2m59.56s``, ``172.799999ms``) and plain seconds count from ``at``; above a
    thousand million a number is an epoch, in milliseconds above a hundred thousand million.
    """
    seconds = _seconds(value or "", at / 1000)
    if seconds is None or not 0 <= seconds <= _FARTHEST_SECONDS:
        return None
    return at + round(seconds * 1000)


def _seconds(value: str, now: float) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return duration(value)
    if number > 1e11:
        return max(0.0, number / 1000 - now)
    return max(0.0, number - now) if number > 1e9 else number


def _row(call: CallRecord, kind: str, at: int) -> dict[str, Any]:
    return {
        "provider": call.provider,
        "model": call.model,
        "key_id": call.key_id or "",
        "account": call.account or "",
        "limit_type": kind,
        "source": "header",
        "last_updated": at,
    }


def _figures(limit: int | None, remaining: int | None) -> dict[str, Any]:
    used = None if limit is None or remaining is None else max(0, limit - remaining)
    return {"limit_limit": limit, "remaining": remaining, "current_count": used}


def _hit(call: CallRecord, remaining: int | None, at: int) -> dict[str, Any]:
    hit = remaining == 0 and call.error_reason in _REFUSED
    return {"hit_count": int(hit), "last_hit_at": at if hit else None}
