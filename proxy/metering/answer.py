"""Reading a chunk or a body: typed, quick, and never surprised.

Only the members that a meter needs are named; the others are skipped unread. Where a member has
an odd type the rest is still read.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct):
    function: Function | None = None


class Message(msgspec.Struct):
    """A delta of a stream or the message of a body: the members that carry output."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    thinking: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    reasoning_details: list[msgspec.Raw] | None = None
    audio: msgspec.Raw | None = None


class Choice(msgspec.Struct):
    delta: Message | None = None
    message: Message | None = None
    text: str | None = None
    finish_reason: str | None = None
    error: Any = None


class Answer(msgspec.Struct):
    """A chunk or a whole body. What is not named here passes unseen."""

    choices: list[Choice] | None = None
    usage: Any = None
    error: Any = None
    x_groq: Any = None
    timings: Any = None
    model: str | None = None
    system_fingerprint: str | None = None
    service_tier: str | None = None
    provider: str | None = None
    data: list[msgspec.Raw] | None = None


_decode = msgspec.json.Decoder(Answer).decode
_decode_any = msgspec.json.Decoder().decode


def decode(document: bytes) -> Answer | None:
    """Read a chunk or body; None if it is no JSON object. Members of an odd type are left out."""
    try:
        return _decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        loose = _decode_any(document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return _lenient(loose) if isinstance(loose, dict) else None


def _lenient(loose: dict[str, Any]) -> Answer:
    answer = Answer()
    for name in ("usage", "error", "x_groq", "timings"):
        setattr(answer, name, loose.get(name))
    for name in ("model", "system_fingerprint", "service_tier", "provider"):
        value = loose.get(name)
        setattr(answer, name, value if isinstance(value, str) else None)
    choices = loose.get("choices")
    if isinstance(choices, list):
        answer.choices = [_lenient_choice(c) for c in choices if isinstance(c, dict)]
    return answer


def _lenient_choice(loose: dict[str, Any]) -> Choice:
    choice = Choice(error=loose.get("error"))
    for name in ("text", "finish_reason"):
        value = loose.get(name)
        setattr(choice, name, value if isinstance(value, str) else None)
    for name in ("delta", "message"):
        message = loose.get(name)
        if isinstance(message, dict):
            setattr(choice, name, _lenient_message(message))
    return choice


def _lenient_message(loose: dict[str, Any]) -> Message:
    message = Message()
    for name in ("content", "reasoning", "reasoning_content", "thinking", "refusal"):
        value = loose.get(name)
        if isinstance(value, list):  # content in parts
            value = "".join(p.get("text") or "" for p in value if isinstance(p, dict))
        setattr(message, name, value if isinstance(value, str) else None)
    if isinstance(loose.get("tool_calls"), list):
        message.tool_calls = [
            ToolCall(Function(arguments=str(c["function"].get("arguments") or "")))
            for c in loose["tool_calls"]
            if isinstance(c, dict) and isinstance(c.get("function"), dict)
        ]
    return message
