"""The tokens of an attempt, and who says so."""

from __future__ import annotations

import msgspec

from proxy.metering import estimate, tokenizer
from proxy.metering.attempt import Asked, Attempt
from proxy.metering.tap import StreamTap, Tap
from proxy.metering.tokenizer import Sample
from proxy.types import Usage


def spent(
    attempt: Attempt, status: str, asked: Asked, prompt: Sample | None = None
) -> tuple[Usage | None, str]:
    """The tokens of an attempt and who says so.

    Without a word from the provider they are estimated, but only where output was seen: a refused
    call used nothing that is known. ``prompt`` is its text where that can be counted.
    """
    tap = attempt.tap
    if tap is None:
        return None, "none"
    usage = _told(attempt)
    if usage is not None:
        drained = attempt.left is not None and attempt.left.gained(tap)
        final = drained and tap.complete and usage.output_tokens
        stopped = status != "success" and not final and isinstance(tap, StreamTap)
        if stopped and (usage.output_tokens or 0) < tap.seen_tokens:
            # Usage that grows with the stream (Gemini) or starts at zero stops where we stopped.
            given, seen = usage.input_tokens, _seen(tap)
            total = given + seen if given is not None else None
            usage = msgspec.structs.replace(usage, output_tokens=seen, total_tokens=total)
            return usage, "estimated"
        return usage, "drained" if drained else "provider"
    if not tap.seen_tokens:
        return None, "none"
    given, seen = prompt_tokens(asked, prompt), _seen(tap)
    total = given + seen if given is not None else None
    return Usage(input_tokens=given, output_tokens=seen, total_tokens=total), "estimated"


def _told(attempt: Attempt) -> Usage | None:
    """The provider's own word; None if it said nothing, or nothing that can be."""
    raw = attempt.tap.usage if attempt.tap is not None else None
    if raw is None or attempt.normalise is None:
        return None
    usage = attempt.normalise(raw)
    counts = (usage.input_tokens, usage.output_tokens, usage.total_tokens, usage.cost_nano_usd)
    return None if counts == (None,) * len(counts) else usage


def _seen(tap: Tap) -> int:
    """The tokens of the output that came."""
    if tap.sample is None or not tap.sample.length:
        return tap.seen_tokens
    tap.details["estimate"] = tokenizer.NAME
    return tap.sample.tokens()


def prompt_tokens(asked: Asked, prompt: Sample | None) -> int | None:
    """The tokens of a prompt that nobody has counted yet; None if not even its length is known."""
    if prompt is None or asked.prompt_length is None:
        return estimate.prompt_tokens(asked.prompt_length, asked.message_count)
    return prompt.tokens() + estimate.framing(asked.message_count)
