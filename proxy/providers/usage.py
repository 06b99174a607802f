"""A provider's ``usage`` object as our counts, whichever way it counts.

Ours are inclusive: cached tokens are inside the input, reasoning inside the output. So are those of
OpenAI, Groq, Gemini, OpenRouter and DeepSeek. Others put a share beside its whole: Anthropic's
``cache_read_input_tokens`` and ``cache_creation_input_tokens`` beside ``input_tokens``, servers in
front of such models their cached tokens beside ``prompt_tokens``, xAI its reasoning beside
``completion_tokens``. Where an object leaves it open, the reading counts that adds up to its
``total_tokens``.

    https://platform.openai.com/docs/api-reference/chat/object
    https://docs.anthropic.com/en/docs/build-with-claude/prompt-caching
    https://api-docs.deepseek.com/api/create-chat-completion
    https://openrouter.ai/docs/use-cases/usage-accounting
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, NamedTuple

from proxy.bounds import MOST_NANO_USD, MOST_USD
from proxy.providers.members import first, inner, tokens
from proxy.types import Usage


class _Told(NamedTuple):
    """What the object says, share by share. ``beside``: its names say that cached tokens are not
    in the input."""

    given: int | None
    made: int | None
    total: int | None
    read: int | None
    written: int | None
    thought: int | None
    beside: bool


def count(raw: Mapping[str, Any]) -> Usage:
    """The counts of a usage object; what it does not tell is None, and its 0 is 0.

    ``cost`` is US dollars where a provider sends it; where OpenRouter uses a key that it was given
    (``is_byok``) it is OpenRouter's fee, and what that key is charged stands beside it. Some tell
    shares that cannot be (OpenRouter has sent more reasoning than output), so a share is never
    more than its whole.
    """
    given = inner(raw, "prompt_tokens_details") or inner(raw, "input_tokens_details")
    made = inner(raw, "completion_tokens_details") or inner(raw, "output_tokens_details")
    told = _told(raw, given, made)
    input_tokens, output_tokens = _whole(told)
    total = told.total
    if total is None and input_tokens is not None and output_tokens is not None:
        total = input_tokens + output_tokens
    read = _share(told.read, input_tokens)
    written = _share(told.written, None if input_tokens is None else input_tokens - (read or 0))
    return Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        total_tokens=total,
        cached_tokens=read,
        cache_write_tokens=written,
        reasoning_tokens=_share(told.thought, output_tokens),
        input_audio_tokens=_share(first(given, "audio_tokens"), input_tokens),
        output_audio_tokens=_share(first(made, "audio_tokens"), output_tokens),
        input_image_tokens=_share(first(given, "image_tokens"), input_tokens),
        output_image_tokens=_share(first(made, "image_tokens"), output_tokens),
        cost_nano_usd=_cost(raw),
    )


def _told(raw: Mapping[str, Any], given: Mapping[str, Any], made: Mapping[str, Any]) -> _Told:
    read = first(given, "cached_tokens")
    if read is None:  # Anthropic, DeepSeek, Moonshot
        read = first(raw, "cache_read_input_tokens", "prompt_cache_hit_tokens", "cached_tokens")
    written = first(given, "cache_write_tokens", "cache_creation_tokens")
    if written is None:
        written = first(raw, "cache_creation_input_tokens")
    prompt, own = first(raw, "prompt_tokens"), first(raw, "input_tokens")
    return _Told(
        given=first(raw, "prompt_tokens", "input_tokens", "prompt_cache_miss_tokens"),
        made=first(raw, "completion_tokens", "output_tokens"),
        total=_total(raw),
        read=read,
        written=written,
        thought=first(made, "reasoning_tokens"),
        beside=prompt is None and (own is None or "cache_read_input_tokens" in raw),
    )


def _total(raw: Mapping[str, Any]) -> int | None:
    """The total, unless it is less than its parts, as one that was sent before them may be."""
    total = tokens(raw.get("total_tokens"))
    given = first(raw, "prompt_tokens", "input_tokens") or 0
    made = first(raw, "completion_tokens", "output_tokens") or 0
    return None if total is not None and total < given + made else total


def _whole(told: _Told) -> tuple[int | None, int | None]:
    """Input and output with all their shares in them."""
    given, made, total = told.given, told.made, told.total
    if given is None:
        return None, made
    cache = (told.read or 0) + (told.written or 0)
    if total is None:
        # A share cannot be more than the whole that it is inside of.
        return (given + cache if told.beside or cache > given else given), made
    if made is None:  # embeddings tell only these two
        return given, max(0, total - given)
    beside = total - given - made
    if not beside:
        return given, made
    thought = told.thought or 0
    if beside == thought:
        return given, made + thought
    if beside == cache:
        return given + cache, made
    if beside == cache + thought:
        return given + cache, made + thought
    return given, made


def _share(share: int | None, whole: int | None) -> int | None:
    return share if share is None or whole is None else min(share, whole)


def _cost(raw: Mapping[str, Any]) -> int | None:
    told = _nano(raw.get("cost"))
    if told is None or raw.get("is_byok") is not True:
        return told
    beside = _nano(inner(raw, "cost_details").get("upstream_inference_cost")) or 0
    return min(told + beside, MOST_NANO_USD)


def _nano(value: Any) -> int | None:
    """Dollars as whole nano-dollars, half up; a float counts as the decimal that it prints as."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST_USD:
        return None
    return int(Decimal(str(value)).scaleb(9).to_integral_value(ROUND_HALF_UP))
