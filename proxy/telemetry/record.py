"""One call of a model as the program that made it tells it, and the row that becomes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec

from proxy.bounds import LONGEST_ID, MOST_TOKENS, MOST_USD
from proxy.clock import new_id
from proxy.content import Content
from proxy.errors import ErrorReason
from proxy.metering.echo import without_echo
from proxy.metering.rates import nano_dollars
from proxy.redact import shorten
from proxy.store.sets import STATUSES
from proxy.tags import listed, tags, written
from proxy.telemetry.dates import moment
from proxy.types import BESIDE, CallRecord

LEVELS = ("metadata", "full", "none")

_NAMES = ("invocation_id", "model_name", "provider")
_TEXTS = (
    *("agent_name", "tool_name", "session_id", "trace_id", "user_id"),
    *("error_message", "prompt", "response"),
)
_COUNTS = (
    *("prompt_tokens", "completion_tokens", "total_tokens"),
    *("cached_tokens", "cache_write_tokens", "reasoning_tokens"),
)
_AMOUNTS = {"cost_usd": MOST_USD, "latency_ms": 1e9, "time_to_first_token_ms": 1e9}
"""And the most that one can be."""
_UNTOLD: dict[str, Any] = dict.fromkeys(CallRecord.__struct_fields__[: -len(BESIDE)])


class InvocationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One invocation. What is not known is None, never 0.

    ``timestamp`` is when the call began, ``latency_ms`` how long it took, by a clock that never
    steps back; without a timestamp it is taken to end as it is logged. Counts are inclusive: cached
    tokens are inside the prompt, reasoning inside the completion. ``status`` is success, error,
    timeout, cancelled or rejected, ``error_reason`` one of ``ErrorReason``. ``privacy_level`` may
    be lower than the logger's: with none the record is not kept. ``prompt`` and ``response`` are
    kept at the level full, and dropped at any other. ValueError where a value cannot be: the
    program has a mistake.
    """

    invocation_id: str = msgspec.field(default_factory=new_id)
    agent_name: str | None = None
    tool_name: str | None = None
    model_name: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    cost_usd: float | Decimal | None = None
    latency_ms: float | None = None
    status: str = "success"
    error_message: str | None = None
    privacy_level: str | None = None
    timestamp: datetime | str | None = None
    provider: str = ""
    error_reason: str | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    time_to_first_token_ms: float | None = None
    session_id: str | None = None
    trace_id: str | None = None
    user_id: str | None = None
    tags: Sequence[str] | None = None
    prompt: str | None = None
    response: str | None = None

    def __post_init__(self) -> None:
        for name in _NAMES:
            _check_text(name, getattr(self, name))
        for name in ("invocation_id", "model_name"):
            if not getattr(self, name):
                raise ValueError(f"{name}: must not be empty")
        for name in _TEXTS:
            if getattr(self, name) is not None:
                _check_text(name, getattr(self, name))
        for each in self.tags or ():
            _check_text("tags", each)
        _one_of("status", self.status, STATUSES)
        if self.privacy_level is not None:
            level("privacy_level", self.privacy_level)
        if self.error_reason is not None:
            _one_of("error_reason", self.error_reason, tuple(ErrorReason))
            if self.status == "success":
                raise ValueError("error_reason: a call that succeeded has none")
        for name in _COUNTS:
            _check_count(name, getattr(self, name))
        cached = (self.cached_tokens or 0) + (self.cache_write_tokens or 0)
        _check_share("cached_tokens", cached, self.prompt_tokens)
        _check_share("reasoning_tokens", self.reasoning_tokens or 0, self.completion_tokens)
        both = (self.prompt_tokens or 0) + (self.completion_tokens or 0)
        _check_share("total_tokens", both, self.total_tokens)
        for name, most in _AMOUNTS.items():
            _check_amount(name, getattr(self, name), most)
        if self.timestamp is not None:
            try:
                moment(self.timestamp)
            except ValueError as error:
                raise ValueError(f"timestamp: {error}") from None


def level(name: str, value: str) -> None:
    """ValueError unless the privacy level is one that there is."""
    _one_of(name, value, LEVELS)


def content(row: CallRecord, prompt: str | None, response: str | None) -> Content | None:
    """What the call of a row said; None: nothing."""
    if prompt is None and response is None:
        return None
    request = None if prompt is None else prompt.encode("utf-8", "replace")
    answer = None if response is None else response.encode("utf-8", "replace")
    return Content(
        request_id=row.request_id,
        attempt=row.attempt,
        timestamp=row.timestamp,
        request=request,
        request_length=None if request is None else len(request),
        answer=answer,
        answer_length=None if answer is None else len(answer),
    )


def call(
    record: InvocationRecord,
    *,
    now: int,
    endpoint: str = "python",
    client_id: str | None = None,
    redact: Callable[[str], str],
    level: str = "metadata",
) -> CallRecord:
    """The row. ``now`` is UTC milliseconds, ``level`` what holds for it."""
    latency = None if record.latency_ms is None else float(record.latency_ms)
    took = math.ceil(latency or 0)
    start = max(0, now - took) if record.timestamp is None else moment(record.timestamp)
    given, made, total = record.prompt_tokens, record.completion_tokens, record.total_tokens
    if total is None and given is not None and made is not None:
        total = given + made
    message = record.error_message
    if message is not None:
        message = shorten(_without_words(record, redact(message)))

    def name(value: str | None) -> str | None:
        return None if value is None else redact(value)[:LONGEST_ID]

    told = {
        "request_id": redact(record.invocation_id),
        "attempt": 1,
        "is_final": True,
        "timestamp": start,
        "finished_at": start + took,
        "endpoint": endpoint,
        "provider": redact(record.provider),
        "model": redact(record.model_name),
        "requested_model": redact(record.model_name),
        "client_id": client_id,
        "agent_name": name(record.agent_name),
        "tool_name": name(record.tool_name),
        "session_id": name(record.session_id),
        "trace_id": name(record.trace_id),
        "user_id": name(record.user_id),
        "tags": written(tags(map(redact, _told_tags(record)))),
        "is_stream": record.time_to_first_token_ms is not None,
        "status": record.status,
        "error_reason": _reason(record),
        "error_message": message,
        "response_time_ms": latency,
        "total_duration_ms": latency,
        "time_to_first_token_ms": record.time_to_first_token_ms,
        "input_tokens": given,
        "output_tokens": made,
        "total_tokens": total,
        "cached_tokens": record.cached_tokens,
        "cache_write_tokens": record.cache_write_tokens,
        "reasoning_tokens": record.reasoning_tokens,
        "usage_source": "none" if given is None and made is None and total is None else "provider",
        "cost_nano_usd": nano_dollars(record.cost_usd),
        "cost_source": "none" if record.cost_usd is None else "provider",
        "privacy_level": level,
    }
    return CallRecord(**_UNTOLD | told)


def _told_tags(record: InvocationRecord) -> Iterator[str]:
    """Half a character, which a text of Python may have, is none of JSON's."""
    for each in listed(record.tags):
        yield each.encode("utf-8", "replace").decode()


def _without_words(record: InvocationRecord, message: str) -> str:
    """A message without what it quotes of the call, as far as that was told."""
    said = "\0".join(filter(None, (record.prompt, record.response)))
    return without_echo(message, said.encode("utf-8", "replace")) if said else message


def _reason(record: InvocationRecord) -> str | None:
    if record.status == "timeout":
        return record.error_reason or ErrorReason.TIMEOUT.value
    return record.error_reason


def _one_of(name: str, value: object, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise ValueError(f"{name}: must be one of {', '.join(accepted)} (got {value!r})")


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{name}: must be a text (got a {type(value).__name__})")


def _check_count(name: str, value: Any) -> None:
    if value is None:
        return
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not 0 <= value <= MOST_TOKENS:
        raise ValueError(
            f"{name}: must be a whole number from 0 to {MOST_TOKENS:,}, or None (got {value!r})"
        )


def _check_share(name: str, part: int, whole: int | None) -> None:
    if whole is not None and part > whole:
        raise ValueError(f"{name}: no part can be more than its whole (got {part} of {whole})")


def _check_amount(name: str, value: Any, most: float) -> None:
    if value is None:
        return
    number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    nothing = isinstance(value, Decimal) and value.is_nan()  # which cannot be compared
    if not number or nothing or not 0 <= value <= most:
        raise ValueError(f"{name}: must be a number from 0 to {most:,.0f}, or None (got {value!r})")
