"""How SQLite keeps a call: in fewer bytes than its columns show.

A word of ``WORDS`` is kept as its place there, a number of ``THOUSANDTHS`` as how many there are of
them (a duration in microseconds), money in nano-dollars, and a ``requested_model`` that names the
model itself as a code. These are whole numbers; what cannot be told by one is kept as it is.

What is kept of a column X stands in ``X_kept``. X itself is computed from that when it is read and
takes no room. The expressions stand in migration 0006: a word may only be added by another.
"""

from __future__ import annotations

from typing import Any

import msgspec

from proxy.types import CallRecord

WORDS = {
    "endpoint": (
        *("/v1/chat/completions", "/v1/completions", "/v1/embeddings"),
        *("/track/inference", "python"),
    ),
    "status": ("success", "error", "timeout", "cancelled", "rejected"),
    "error_reason": (
        *("rate_limit", "quota_exceeded", "credit", "authentication", "forbidden", "not_found"),
        *("invalid_request", "context_length", "content_filter", "too_large", "server_error"),
        *("overloaded", "connect", "timeout", "stream_error", "truncated", "empty_response"),
        *("bad_response", "client_closed", "no_keys", "interrupted", "internal"),
    ),
    "finish_reason": ("stop", "length", "tool_calls", "content_filter", "function_call"),
    "usage_source": ("provider", "drained", "estimated", "none"),
    "cost_source": ("provider", "config", "catalog", "none"),
    "privacy_level": ("metadata", "full", "none"),
}
THOUSANDTHS = (
    *("response_time_ms", "total_duration_ms", "queue_time_ms", "processing_time_ms"),
    *("overhead_ms", "overhead_before_ms", "overhead_after_ms", "ttfb_ms"),
    *("time_to_first_token_ms", "first_reasoning_ms", "first_content_ms", "first_tool_ms"),
    *("last_token_ms", "inter_token_avg_ms", "inter_token_p50_ms", "inter_token_p95_ms"),
    *("max_stall_ms", "model_load_ms", "prompt_eval_ms", "generation_ms"),
    *("temperature", "top_p", "frequency_penalty", "presence_penalty"),
)
_MONEY = {"cost_nano_usd": "cost_estimate_usd", "list_cost_nano_usd": "list_cost_usd"}
_SAME_MODEL, _WITH_PROVIDER = 0, 1
_MOST = 1e12
"""Thousandths of more than that are no matter."""

_FIELDS = CallRecord.__struct_fields__[:-1]
_PACKED = {*WORDS, *THOUSANDTHS, *_MONEY.values(), "requested_model"}
_CODES = [
    (_FIELDS.index(name), {word: place for place, word in enumerate(words)})
    for name, words in WORDS.items()
]
_SCALED = [_FIELDS.index(name) for name in THOUSANDTHS]
_REQUESTED = _FIELDS.index("requested_model")

COLUMNS = tuple(
    f"{name}_kept" if name in _PACKED else name
    for name in (_MONEY.get(field, field) for field in _FIELDS)
)
"""The columns that a packed call fills, in the order of the fields of a CallRecord."""


def packed(call: CallRecord) -> tuple[Any, ...]:
    """The values of ``COLUMNS``."""
    values = list(msgspec.structs.astuple(call))
    del values[-1]
    for place, codes in _CODES:
        values[place] = codes.get(values[place], values[place])
    for place in _SCALED:
        if values[place] is not None:
            values[place] = _thousandths(values[place])
    if call.requested_model == call.model:
        values[_REQUESTED] = _SAME_MODEL
    elif call.requested_model == f"{call.provider}/{call.model}":
        values[_REQUESTED] = _WITH_PROVIDER
    return tuple(values)


def _thousandths(value: float) -> float:
    if -_MOST < value < _MOST:
        whole = round(value * 1000)
        if whole / 1000 == value:
            return whole
    return float(value)
