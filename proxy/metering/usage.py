"""Which of the usage objects in an answer counts.

Providers send the same usage several times, growing usage on every chunk, or zeros after the real
one. One rule fits them all: the object with the largest total wins, the later one on a tie, and
an all-zero object never replaces another. Members that only a losing object has (cost, details,
timings) are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proxy.bounds import MOST_TOKENS

RawUsage = dict[str, Any]

_PARTS = ("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens")
_NAMES = {*_PARTS, "total_tokens"}


def total(usage: Mapping[str, Any]) -> int:
    """The tokens an object accounts for; null and what is no number count as 0."""
    reported = _count(usage.get("total_tokens"))
    return max(reported, sum(_count(usage.get(name)) for name in _PARTS))


def pick(best: RawUsage | None, candidate: Any) -> RawUsage | None:
    """The better of two, with the members of both."""
    if not isinstance(candidate, dict):
        return best
    if candidate.keys().isdisjoint(_NAMES):
        return best  # Groq's x_groq.usage of plain bodies counts cache hits, not tokens
    if best is None:
        return candidate
    if total(candidate) and total(candidate) >= total(best):
        return {**best, **{k: v for k, v in candidate.items() if v is not None}}
    return {**candidate, **{k: v for k, v in best.items() if v is not None}}


def from_timings(timings: Any) -> RawUsage | None:
    """llama.cpp's ``timings`` as usage: prompt = evaluated + cached, completion = predicted."""
    if not isinstance(timings, dict) or "predicted_n" not in timings:
        return None
    cached = _count(timings.get("cache_n"))
    prompt = _count(timings.get("prompt_n")) + cached
    completion = _count(timings.get("predicted_n"))
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def _count(value: Any) -> int:
    return int(value) if isinstance(value, (int, float)) and 0 < value <= MOST_TOKENS else 0
