"""Reading a chunk or a body: typed, quick, and never surprised.

Only the members that a meter needs are named; the others are skipped unread. Where a member has
an odd type the rest is still read.
"""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec


class Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct, gc=False):
    function: Function | None = None


class Message(msgspec.Struct, gc=False):
    """A delta of a stream or the message of a body: the members that carry output."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    thinking: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    reasoning_details: list[msgspec.Raw] | None = None
    audio: msgspec.Raw | None = None


class Choice(msgspec.Struct, gc=False):
    delta: Message | None = None
    message: Message | None = None
    text: str | None = None
    finish_reason: str | None = None
    error: Any = None


class Answer(msgspec.Struct, gc=False):
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
_decode_all = msgspec.json.Decoder(list[Answer]).decode
_decode_any = msgspec.json.Decoder().decode
_FAILURES = (msgspec.DecodeError, ValueError, RecursionError)


def decode(document: bytes) -> Answer | None:
    """Read a chunk or body; None if it is no JSON object. Members of an odd type are left out."""
    try:
        return _decode(document)
    except _FAILURES:
        loose = _loose(document)
    return _lenient(loose) if isinstance(loose, dict) else None


def decode_all(documents: bytes, count: int) -> list[Answer] | None:
    """Read ``count`` chunks, separated by commas, at once; None if they have to be read singly."""
    try:
        answers = _decode_all(b"[" + documents + b"]")
    except _FAILURES:
        return None
    return answers if len(answers) == count else None


def _loose(document: bytes) -> Any:
    """What servers send as JSON and is not quite (NaN, half a character, a byte order mark), and
    what is JSON and cannot be kept: a number without end.

    Such numbers become null; what is no text becomes a replacement character, so that it can be
    stored.
    """
    try:
        return _decode_any(document)
    except _FAILURES:
        pass
    try:
        text = document.decode("utf-8-sig", "replace")
        found = json.loads(text, parse_constant=lambda _: None, parse_float=_finite)
        return _decode_any(json.dumps(found, ensure_ascii=False).encode("utf-8", "replace"))
    except _FAILURES:
        return None


def _finite(number: str) -> float | None:
    return found if math.isfinite(found := float(number)) else None


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
    data = loose.get("data")
    if isinstance(data, list):
        answer.data = [msgspec.Raw(b"null")] * len(data)  # that there are some is what counts
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
            value = "".join(_part(part) for part in value)
        setattr(message, name, value if isinstance(value, str) else None)
    if isinstance(loose.get("tool_calls"), list):
        message.tool_calls = [
            ToolCall(_lenient_function(call["function"]))
            for call in loose["tool_calls"]
            if isinstance(call, dict) and isinstance(call.get("function"), dict)
        ]
    details = loose.get("reasoning_details")
    if isinstance(details, list):
        message.reasoning_details = [msgspec.Raw(b"null")] * len(details)
    if loose.get("audio") is not None:
        message.audio = msgspec.Raw(b"null")
    return message


def _lenient_function(loose: dict[str, Any]) -> Function:
    return Function(_text(loose.get("name")), _text(loose.get("arguments")))


def _part(part: Any) -> str:
    return _text(part.get("text")) or "" if isinstance(part, dict) else ""


def _text(value: Any) -> str | None:
    """A string as it is; arguments that came as an object, as JSON."""
    if value is None or isinstance(value, str):
        return value
    return msgspec.json.encode(value).decode()
