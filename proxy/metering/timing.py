"""The moments of an attempt as the durations of its row, in milliseconds."""

from __future__ import annotations

from typing import Any

from proxy.metering.attempt import Attempt
from proxy.metering.tap import STALL, StreamTap
from proxy.types import Usage

_STALLED = 10
"""Times its median gap that a stream has to pause to have stalled: a slow one is not one that
stalls."""


def timing(attempt: Attempt, admitted: float, ended: float) -> dict[str, Any]:
    """All but the whole request's duration and the speed. ``admitted`` is when the request had
    arrived whole, ``ended`` when its client was told; an attempt that was never made has none."""
    times: dict[str, Any] = {}
    if isinstance(attempt.tap, StreamTap):
        times |= _stream(attempt.tap, attempt.sent)
    if attempt.called:
        last = attempt.ended if attempt.ended is not None else ended
        waited = attempt.leased - attempt.began  # in line for a key, which is not our own time
        before = attempt.sent - (admitted if attempt.number == 1 else attempt.began) - waited
        after = ended - last
        times["ttfb_ms"] = _since(attempt.sent, attempt.first_byte)
        times["response_time_ms"] = ms(last - attempt.began)
        times["queue_time_ms"] = ms(waited)
        times["processing_time_ms"] = ms(last - attempt.sent)
        times["overhead_ms"] = ms(before + after)
        times["overhead_before_ms"] = ms(before)
        times["overhead_after_ms"] = ms(after)
    return times


def _stream(tap: StreamTap, sent: float) -> dict[str, Any]:
    """When output came, and how evenly."""
    times: dict[str, Any] = {
        "time_to_first_token_ms": _since(sent, tap.first_token),
        "first_reasoning_ms": _since(sent, tap.first_reasoning),
        "first_content_ms": _since(sent, tap.first_content),
        "first_tool_ms": _since(sent, tap.first_tool),
        "last_token_ms": _since(sent, tap.last_token),
    }
    if tap.gaps:
        gaps = sorted(tap.gaps)
        median = percentile(gaps, 0.5)
        times["inter_token_avg_ms"] = ms(sum(gaps) / len(gaps))
        times["inter_token_p50_ms"] = ms(median)
        times["inter_token_p95_ms"] = ms(percentile(gaps, 0.95))
        times["max_stall_ms"] = ms(tap.max_gap) if tap.max_gap is not None else None
        stall = max(STALL, _STALLED * median)
        times["stall_count"] = sum(gap > stall for gap in tap.long_gaps)
    return times


def speed(tap: StreamTap | None, usage: Usage | None, source: str) -> float | None:
    """Tokens a second between the first and the last streamed one; None where that says nothing.

    What the provider kept to itself (thoughts that were billed but not sent) does not count.
    """
    if tap is None or usage is None or usage.output_tokens is None:
        return None
    if tap.first_token is None or tap.last_token is None:
        return None
    streamed = usage.output_tokens - (usage.hidden_tokens or 0)
    if not tap.saw_reasoning and source != "estimated" and usage.hidden_tokens is None:
        streamed -= usage.reasoning_tokens or 0
    seconds = tap.last_token - tap.first_token
    if streamed < 2 or seconds <= 0:
        return None
    return (streamed - 1) / seconds


def percentile(ordered: list[float], share: float) -> float:
    """The percentile of a sorted list, by linear interpolation."""
    place = (len(ordered) - 1) * share
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def ms(seconds: float) -> float:
    """Milliseconds, to the microsecond."""
    return round(seconds * 1000, 3)


def _since(start: float, moment: float | None) -> float | None:
    return ms(moment - start) if moment is not None else None
