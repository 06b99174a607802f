"""What the server of a model measured itself, and what the model held in memory as a call began."""

from __future__ import annotations

from typing import Any

from proxy.metering.attempt import Attempt
from proxy.types import Memory

COLD_LOAD_MS = 500.0
"""A load that takes this long is no look-up of a loaded model (Ollama tells a few to a hundred
milliseconds for that): starting a runner and reading gigabytes of weights takes longer."""

_ENDLESS = 1e15
"""Beyond this a number is no duration: ten days, in nanoseconds."""

TOLD = {
    # Ollama, in nanoseconds: https://docs.ollama.com/api/usage
    "load_duration": ("model_load_ms", 1e-6),
    "prompt_eval_duration": ("prompt_eval_ms", 1e-6),
    "eval_duration": ("generation_ms", 1e-6),
    # llama.cpp's ``timings``
    "prompt_ms": ("prompt_eval_ms", 1.0),
    "predicted_ms": ("generation_ms", 1.0),
    # Groq, in seconds
    "prompt_time": ("prompt_eval_ms", 1e3),
    "completion_time": ("generation_ms", 1e3),
}
"""The members by which servers tell durations: our column, and the milliseconds of their unit."""


def figures(attempt: Attempt) -> dict[str, Any]:
    """The columns of a row that the gateway did not measure, as far as they are known."""
    found: dict[str, Any] = {"gpu_memory_used_mb": attempt.gpu_memory_mb}
    tap, memory = attempt.tap, attempt.memory
    if tap is not None:
        timings = tap.details.get("timings")
        for told in (timings, tap.usage):
            if isinstance(told, dict):
                found |= _durations(told)
    if memory is not None:
        found["model_memory_mb"], found["model_vram_mb"] = memory.total_mb, memory.vram_mb
    if tap is not None or attempt.http_status is None:  # else it was refused, and loaded nothing
        found["is_cold_start"] = _is_cold(found.get("model_load_ms"), memory)
    return found


def _durations(told: dict[str, Any]) -> dict[str, float]:
    found = {}
    for name, (column, unit) in TOLD.items():
        value = told.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _ENDLESS:
            found[column] = round(value * unit, 3)
    return found


def _is_cold(load_ms: float | None, memory: Memory | None) -> bool | None:
    """Whether the model had to be loaded; None where nothing tells."""
    if load_ms is None and memory is None:
        return None
    loaded = memory is None or memory.total_mb > 0
    return not loaded or (load_ms is not None and load_ms >= COLD_LOAD_MS)
