from __future__ import annotations

from typing import Any

import pytest

from proxy.metering.attempt import Attempt
from proxy.metering.figures import figures
from proxy.types import Memory, Target
from tests.metering.streams import watch, whole
from tests.transcripts import stream

NOTHING = {"gpu_memory_used_mb": None, "is_cold_start": None}


def told(document: Any = None, memory: Memory | None = None) -> dict[str, Any]:
    """The figures of an attempt that was answered with a document."""
    attempt = Attempt(1, Target("lab", "m"), 10.0, leased=10.0)
    attempt.memory = memory
    if document is not None:
        attempt.tap, attempt.http_status = whole(document), 200
    return figures(attempt)


def usage(**more: Any) -> dict[str, Any]:
    counts = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    return {"choices": [{"text": "a"}], "usage": {**counts, **more}}


def test_ollama_tells_nanoseconds() -> None:
    found = told(
        usage(load_duration=101_397_084, prompt_eval_duration=13_074_791, eval_duration=52_479_709)
    )
    assert found["model_load_ms"] == 101.397
    assert found["prompt_eval_ms"] == 13.075
    assert found["generation_ms"] == 52.48


def test_groq_tells_seconds_and_llama_cpp_milliseconds() -> None:
    for name, prompt, generation in (("T1", 3.985, 14.172), ("T20", 251.51, 137.375)):
        attempt = Attempt(1, Target("lab", "m"), 10.0, leased=10.0)
        attempt.tap, _ = watch(stream(name))
        found = figures(attempt)
        assert (found["prompt_eval_ms"], found["generation_ms"]) == (prompt, generation)
        assert "model_load_ms" not in found
        assert found["is_cold_start"] is None


def test_what_nobody_told_is_not_there() -> None:
    assert told() == told(usage()) == NOTHING


@pytest.mark.parametrize("value", [-1, True, False, "5", None, 1e300, [], {}])
def test_what_is_no_duration_is_not_there(value: Any) -> None:
    assert told(usage(eval_duration=value)) == NOTHING
    assert told({"choices": [{"text": "a"}], "timings": {"predicted_ms": value}}) == NOTHING
    assert told({"choices": [{"text": "a"}], "timings": value}) == NOTHING


@pytest.mark.parametrize(
    ("load_ms", "memory", "cold"),
    [
        (499, None, False),
        (500, None, True),
        (None, Memory(4000.0, 4000.0), False),
        (None, Memory(4000.0, 0.0), False),  # loaded, and on no GPU
        (None, Memory(), True),
        (100, Memory(), True),  # a small one is loaded in no time
        (9000, Memory(4000.0, 4000.0), True),  # it was put out, or made way for a longer context
        (None, None, None),
    ],
)
def test_a_start_is_cold_where_the_model_had_to_be_loaded(
    load_ms: int | None, memory: Memory | None, cold: bool | None
) -> None:
    load = {} if load_ms is None else {"load_duration": load_ms * 1_000_000}
    assert told(usage(**load), memory)["is_cold_start"] is cold


def test_a_call_that_ran_out_of_time_may_have_been_a_cold_start() -> None:
    assert told(memory=Memory())["is_cold_start"]


def test_who_is_refused_has_loaded_nothing() -> None:
    attempt = Attempt(1, Target("lab", "m"), 10.0, leased=10.0)
    attempt.memory, attempt.http_status = Memory(), 404
    assert "is_cold_start" not in figures(attempt)


def test_memory_is_what_was_noted() -> None:
    attempt = Attempt(1, Target("lab", "m"), 10.0, leased=10.0)
    attempt.memory, attempt.gpu_memory_mb = Memory(5120.0, 4096.5), 9000.25
    found = figures(attempt)
    assert (found["model_memory_mb"], found["model_vram_mb"]) == (5120.0, 4096.5)
    assert found["gpu_memory_used_mb"] == 9000.25
