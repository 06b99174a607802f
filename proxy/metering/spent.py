"""The tokens of an attempt, and who says so."""

from __future__ import annotations

import msgspec

from proxy.metering import estimate
from proxy.metering.attempt import Asked, Attempt
from proxy.types import Usage


def spent(attempt: Attempt, status: str, asked: Asked) -> tuple[Usage | None, str]:
    """The tokens of an attempt and who says so.

    Without a word from the provider they are estimated, but only where output was seen: a refused
    call used nothing that is known.
    """
    tap = attempt.tap
    if tap is None:
        return None, "none"
    if tap.usage is not None and attempt.normalise is not None:
        usage = attempt.normalise(tap.usage)
        drained = attempt.left is not None and attempt.left.gained(tap)
        final = drained and tap.complete and usage.output_tokens
        if status == "cancelled" and not final and (usage.output_tokens or 0) < tap.seen_tokens:
            # Usage that grows with the stream (Gemini) or starts at zero stops where we stopped.
            given, seen = usage.input_tokens, tap.seen_tokens
            total = given + seen if given is not None else None
            usage = msgspec.structs.replace(usage, output_tokens=seen, total_tokens=total)
            return usage, "estimated"
        return usage, "drained" if drained else "provider"
    if not tap.seen_tokens:
        return None, "none"
    prompt = estimate.prompt_tokens(asked.prompt_length, asked.message_count)
    total = prompt + tap.seen_tokens if prompt is not None else None
    usage = Usage(input_tokens=prompt, output_tokens=tap.seen_tokens, total_tokens=total)
    return usage, "estimated"
