from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from proxy.redact import Redactor
from proxy.telemetry.record import InvocationRecord, call, content, level
from proxy.types import CallRecord

NOON = 1_795_176_000_000  # 2026-11-20T12:00:00Z


def row(**told: Any) -> CallRecord:
    record = InvocationRecord(**{"model_name": "llama", **told})
    return call(record, now=NOON, redact=Redactor(("sk-of-the-caller",)))


def test_each_field_of_a_record_has_its_column() -> None:
    """S1-03."""
    made = row(
        invocation_id="i-1",
        agent_name="planner",
        tool_name="search",
        prompt_tokens=10,
        completion_tokens=5,
        total_tokens=16,
        cost_usd=0.000985,
        latency_ms=1500.5,
        status="error",
        error_message="it failed",
        privacy_level="metadata",
        timestamp=datetime(2026, 11, 20, 11, tzinfo=UTC),
        provider="groq",
        error_reason="server_error",
        cached_tokens=4,
        cache_write_tokens=2,
        reasoning_tokens=3,
        time_to_first_token_ms=200.0,
        session_id="s",
        trace_id="t",
        user_id="u-7",
        tags=["nightly", "a,b"],
    )
    assert (made.request_id, made.attempt, made.is_final) == ("i-1", 1, True)
    assert (made.provider, made.model, made.endpoint) == ("groq", "llama", "python")
    assert (made.agent_name, made.tool_name) == ("planner", "search")
    assert (made.session_id, made.trace_id) == ("s", "t")
    assert (made.user_id, made.tags) == ("u-7", '["nightly","a","b"]')
    assert (made.input_tokens, made.output_tokens, made.total_tokens) == (10, 5, 16)
    assert (made.cached_tokens, made.cache_write_tokens, made.reasoning_tokens) == (4, 2, 3)
    assert (made.cost_nano_usd, made.cost_source, made.usage_source) == (
        985_000,
        "provider",
        "provider",
    )
    assert (made.response_time_ms, made.total_duration_ms) == (1500.5, 1500.5)
    assert (made.time_to_first_token_ms, made.is_stream) == (200.0, True)
    assert (made.status, made.error_reason, made.error_message) == (
        "error",
        "server_error",
        "it failed",
    )
    begun = NOON - 3_600_000
    assert (made.timestamp, made.finished_at) == (begun, begun + 1501)
    assert made.privacy_level == "metadata"


def test_what_is_not_told_is_unknown_and_not_zero() -> None:
    made = row()
    assert (made.input_tokens, made.total_tokens, made.usage_source) == (None, None, "none")
    assert (made.cost_nano_usd, made.cost_source) == (None, "none")
    assert (made.response_time_ms, made.is_stream) == (None, False)


def test_an_explicit_zero_is_kept() -> None:
    made = row(prompt_tokens=0, cost_usd=0)
    assert (made.input_tokens, made.usage_source) == (0, "provider")
    assert (made.cost_nano_usd, made.cost_source) == (0, "provider")


def test_dollars_are_exact_to_the_billionth() -> None:
    assert row(cost_usd=Decimal("0.000000001")).cost_nano_usd == 1
    assert row(cost_usd=0.1).cost_nano_usd == 100_000_000


def test_tokens_are_added_where_the_total_is_not_told() -> None:
    assert row(prompt_tokens=3, completion_tokens=4).total_tokens == 7
    assert row(prompt_tokens=3).total_tokens is None


def test_without_a_timestamp_a_call_ends_as_it_is_logged() -> None:
    made = row(latency_ms=250)
    assert (made.timestamp, made.finished_at) == (NOON - 250, NOON)


def test_ids_are_made_where_none_is_given() -> None:
    first, second = InvocationRecord(model_name="a"), InvocationRecord(model_name="a")
    assert first.invocation_id != second.invocation_id


@pytest.mark.parametrize("status", ["success", "error", "timeout", "cancelled", "rejected"])
def test_a_status_is_one_of_five(status: str) -> None:
    """S1-05."""
    made = row(status=status)
    assert made.status == status
    assert made.error_reason == ("timeout" if status == "timeout" else None)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("status", "failed"),
        ("error_reason", "bad luck"),
        ("privacy_level", "secret"),
        ("prompt_tokens", -1),
        ("completion_tokens", 1.5),
        ("total_tokens", True),
        ("reasoning_tokens", 10**12 + 1),
        ("cost_usd", -0.1),
        ("cost_usd", float("nan")),
        ("cost_usd", Decimal("NaN")),
        ("cost_usd", Decimal("sNaN")),
        ("cost_usd", 1_000_001),
        ("cost_usd", 10**400),
        ("latency_ms", float("inf")),
        ("model_name", None),
        ("provider", None),
        ("invocation_id", 7),
        ("agent_name", 5),
        ("tool_name", b"search"),
        ("session_id", {"a": 1}),
        ("trace_id", ["t"]),
        ("error_message", ValueError("x")),
        ("prompt", [{"role": "user"}]),
        ("response", b"Ho"),
        ("timestamp", 1_795_176_000),
        ("latency_ms", "fast"),
        ("timestamp", "yesterday"),
    ],
)
def test_a_value_that_cannot_be_is_told_by_its_name(name: str, bad: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}: "):
        InvocationRecord(**{"model_name": "llama", name: bad})


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ({"prompt_tokens": 10, "cached_tokens": 11}, "cached_tokens"),
        ({"prompt_tokens": 10, "cached_tokens": 8, "cache_write_tokens": 3}, "cached_tokens"),
        ({"completion_tokens": 5, "reasoning_tokens": 6}, "reasoning_tokens"),
        ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 14}, "total_tokens"),
        ({"status": "success", "error_reason": "timeout"}, "error_reason"),
    ],
)
def test_what_does_not_fit_together_is_refused(told: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: "):
        InvocationRecord(model_name="llama", **told)


def test_what_fits_just_so_is_taken() -> None:
    counts = {"prompt_tokens": 10, "cached_tokens": 8, "cache_write_tokens": 2}
    made = row(**counts, completion_tokens=5, reasoning_tokens=5, total_tokens=15)
    assert (made.cached_tokens, made.reasoning_tokens, made.total_tokens) == (8, 5, 15)
    assert row(cached_tokens=7, reasoning_tokens=6).cached_tokens == 7


def test_what_is_refused_of_a_prompt_is_not_quoted() -> None:
    with pytest.raises(ValueError, match="must be a text") as refused:
        InvocationRecord(model_name="llama", prompt=[{"content": "the gold"}])  # type: ignore[arg-type]
    assert "gold" not in str(refused.value)


def test_an_error_message_is_cut_and_holds_no_key() -> None:
    """S1-12, the error echo."""
    said = row(status="error", error_message="sk-of-the-caller was refused " + "x" * 600)
    assert said.error_message is not None
    assert said.error_message.startswith("[redacted] was refused")
    assert len(said.error_message) == 500


def test_what_was_said_is_told_apart_from_the_row() -> None:
    """S1-13."""
    made = row()
    assert made.privacy_level == "metadata"
    assert content(made, None, None) is None
    said = content(made, "Grüße", None)
    assert said is not None
    assert (said.request_id, said.attempt, said.timestamp) == (made.request_id, 1, made.timestamp)
    assert (said.request, said.request_length) == ("Grüße".encode(), 7)
    assert (said.answer, said.answer_length) == (None, None)
    answered = content(made, None, "Ho")
    assert answered is not None
    assert (answered.request, answered.answer, answered.answer_length) == (None, b"Ho", 2)


@pytest.mark.parametrize("name", ["metadata", "full", "none"])
def test_there_are_three_levels(name: str) -> None:
    level("privacy_level", name)


def test_an_error_message_quotes_nothing_of_what_is_told_beside_it() -> None:
    """S1-12, the error echo."""
    said = {"prompt": "where is the gold hidden", "response": "under the old oak tree"}
    told = "filtered: where is the gold hidden / under the old oak tree!"
    assert row(status="error", error_message=told, **said).error_message == "filtered: […] / […]!"
    assert row(status="error", error_message=told).error_message == told


@pytest.mark.parametrize("name", ["invocation_id", "model_name"])
def test_what_names_a_call_is_not_empty(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: must not be empty"):
        InvocationRecord(**{"model_name": "m", name: ""})
