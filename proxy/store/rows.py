"""A call as a row of ``api_calls``, and how SQLite keeps it: in fewer bytes than its columns show.

A word of ``WORDS`` is kept as its place there, a number of ``THOUSANDTHS`` as how many there are of
them (a duration in microseconds), and a ``requested_model`` that names the model itself as a code.
These are whole numbers; what cannot be told by one is kept as it is.

What is kept of a column X stands in ``X_kept``. X itself is computed from that when it is read and
takes no room. The expressions stand in migration 0007: a word may only be added by another. What
programs ask for most is no such column: ``PRAGMA table_info`` does not show them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from proxy.money import dollars
from proxy.store.sets import TOLD
from proxy.types import BESIDE, CallRecord

WORDS = {
    "endpoint": (
        *("/v1/chat/completions", "/v1/completions", "/v1/embeddings"),
        *TOLD,
    ),
    "finish_reason": ("stop", "length", "tool_calls", "content_filter", "function_call"),
    "privacy_level": ("metadata", "full", "none"),
}
THOUSANDTHS = (
    *("queue_time_ms", "processing_time_ms", "ttfb_ms"),
    *("overhead_ms", "overhead_before_ms", "overhead_after_ms"),
    *("first_reasoning_ms", "first_content_ms", "first_tool_ms"),
    *("last_token_ms", "inter_token_avg_ms", "inter_token_p50_ms", "inter_token_p95_ms"),
    *("max_stall_ms", "model_load_ms", "prompt_eval_ms", "generation_ms"),
    *("temperature", "top_p", "frequency_penalty", "presence_penalty"),
)
_SAME_MODEL, _WITH_PROVIDER = 0, 1
_MOST = 1e12
"""Thousandths of more than that are no matter."""

_FIELDS = CallRecord.__struct_fields__
_COST = _FIELDS.index("cost_nano_usd")  # and the list price next to it
_BESIDE = -len(BESIDE)
COLUMNS = (*_FIELDS[:_COST], "cost_estimate_usd", "list_cost_usd", *_FIELDS[_COST + 2 : _BESIDE])
"""The columns that a CallRecord fills, in the order of its fields."""

_CODES = {name: {word: place for place, word in enumerate(WORDS[name])} for name in WORDS}
_SCALED = frozenset(THOUSANDTHS)


def row(call: CallRecord) -> tuple[Any, ...]:
    """The values of ``COLUMNS``."""
    values = msgspec.structs.astuple(call)
    cost, listed = values[_COST : _COST + 2]
    return (*values[:_COST], dollars(cost), dollars(listed), *values[_COST + 2 : _BESIDE])


def kept(calls: Sequence[CallRecord]) -> dict[str, Sequence[Any]]:
    """The columns of SQLite that hold ``COLUMNS``, each with the values of all calls. Those that no
    call fills are left out: the driver is quick with numbers and texts, and has to think about each
    None.
    """
    nothing = (None,) * len(calls)
    columns: dict[str, Sequence[Any]] = {}
    for name, values in zip(COLUMNS, zip(*map(row, calls), strict=True), strict=True):
        if values == nothing:
            continue
        if name in _SCALED:
            columns[f"{name}_kept"] = [v if v is None else _thousandths(v) for v in values]
        elif name in _CODES:
            codes = _CODES[name]
            columns[f"{name}_kept"] = [codes.get(v, v) for v in values]
        elif name == "requested_model":
            columns[f"{name}_kept"] = [_asked(call) for call in calls]
        else:
            columns[name] = values
    return columns


def _thousandths(value: float) -> float:
    if -_MOST < value < _MOST:
        whole = round(value * 1000)
        if whole / 1000 == value:
            return whole
    return float(value)


def _asked(call: CallRecord) -> str | int | None:
    if call.requested_model == call.model:
        return _SAME_MODEL
    if call.requested_model == f"{call.provider}/{call.model}":
        return _WITH_PROVIDER
    return call.requested_model
