"""Answers of Ollama's own paths in OpenAI's words: https://docs.ollama.com/api.

Its streams are lines of JSON (NDJSON). The last has the counts, and in nanoseconds the durations
that the server measured itself, which its OpenAI paths do not tell: they stand in ``usage`` under
Ollama's names.
"""

from __future__ import annotations

import base64
import struct
from array import array
from collections.abc import Callable, Mapping
from secrets import token_hex
from typing import Any

import httpx
import msgspec

from proxy.clock import now_ms
from proxy.providers.faults import mappings
from proxy.providers.members import inner, number

MAX_HELD = 64 * 1024 * 1024
"""Bytes that are held of a line, or of an answer that is one JSON object."""

_DURATIONS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")

Members = Mapping[str, Any]


class AnswerStream:
    """The lines of a stream as server-sent events. Without a last line there is no end, and an
    error in a line is an event with that error, as OpenAI's servers send it."""

    content_type = b"text/event-stream"

    def __init__(self, chat: bool) -> None:
        self._chat = chat
        name, kind = ("chatcmpl", "chat.completion.chunk") if chat else ("cmpl", "text_completion")
        self._head = {"id": f"{name}-{token_hex(12)}", "object": kind, "created": now_ms() // 1000}
        self._held = _Held()
        self._begun = False
        self._ended = False
        self._calls = 0

    def feed(self, data: bytes) -> bytes:
        if b"\n" not in data:
            self._held.add(data)
            return b""
        lines = self._held.take(data).split(b"\n")
        self._held.add(lines.pop())
        return b"".join(map(self._events, lines))

    def finish(self) -> bytes:
        return self._events(self._held.take())

    def _events(self, line: bytes) -> bytes:
        found = _decoded(line)
        if found is None or self._ended:
            return b""
        if found.get("error"):
            self._ended = True
            return _event({"error": _error(found["error"])})
        head = {**self._head, "model": found.get("model")}
        output = self._output(found)
        events = [] if output is None else [_event({**head, "choices": [output]})]
        if found.get("done") is True:
            self._ended = True
            empty: dict[str, Any] = {"delta": {}} if self._chat else {"text": ""}
            last = {"index": 0, **empty, "finish_reason": _finish_reason(found, self._calls)}
            events.append(_event({**head, "choices": [last]}))
            events.append(_event({**head, "choices": [], "usage": usage(found)}))
            events.append(b"data: [DONE]\n\n")
        return b"".join(events)

    def _output(self, found: Members) -> dict[str, Any] | None:
        """The choice of a chunk; None where a line says nothing."""
        if not self._chat:
            text = _text(found.get("response"))
            return {"index": 0, "text": text, "finish_reason": None} if text else None
        message = inner(found, "message")
        delta = _said(message)
        calls = [_call(call) for call in mappings(message.get("tool_calls"))]
        if calls:
            delta["tool_calls"] = [
                {"index": self._calls + n, **call} for n, call in enumerate(calls)
            ]
            self._calls += len(calls)
        if not self._begun:
            self._begun = True
            delta = {"role": "assistant", "content": "", **delta}
        if not delta:
            return None
        return {"index": 0, "delta": delta, **_logprobs(found), "finish_reason": None}


class AnswerBody:
    """An answer that is one JSON object; ``make`` puts it into OpenAI's words. What is none stays
    as it came, so that whoever reads it sees that."""

    content_type = b"application/json"

    def __init__(self, make: Callable[[Members], dict[str, Any]]) -> None:
        self._make = make
        self._held = _Held()

    def feed(self, data: bytes) -> bytes:
        self._held.add(data)
        return b""

    def finish(self) -> bytes:
        body = self._held.take()
        found = _decoded(body)
        if found is None:
            return body
        if found.get("error"):
            return msgspec.json.encode({"error": _error(found["error"])})
        return msgspec.json.encode(self._make(found))


def completion(found: Members) -> dict[str, Any]:
    """The answer of ``/api/chat``."""
    given = inner(found, "message")
    message = {"role": "assistant", "content": "", **_said(given)}
    calls = [_call(call) for call in mappings(given.get("tool_calls"))]
    if calls:
        message["tool_calls"] = calls
    reason = _finish_reason(found, len(calls))
    choice = {"index": 0, "message": message, **_logprobs(found), "finish_reason": reason}
    return _document("chatcmpl", "chat.completion", found, choice)


def text_completion(found: Members) -> dict[str, Any]:
    """The answer of ``/api/generate``."""
    text, reason = _text(found.get("response")), _finish_reason(found, 0)
    choice = {"index": 0, "text": text, "finish_reason": reason}
    return _document("cmpl", "text_completion", found, choice)


def embeddings(found: Members, *, packed: bool) -> dict[str, Any]:
    """The answer of ``/api/embed``. ``packed``: vectors as base64 of little-endian floats."""
    vectors = found.get("embeddings")
    counts = usage(found)
    del counts["completion_tokens"]
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": n, "embedding": _packed(each) if packed else each}
            for n, each in enumerate(vectors if isinstance(vectors, list) else ())
        ],
        "model": found.get("model"),
        "usage": counts,
    }


def usage(last: Members) -> dict[str, Any]:
    """The counts and durations of an answer's last object. A count of 0 is not sent."""
    given = number(last.get("prompt_eval_count")) or 0
    made = number(last.get("eval_count")) or 0
    counts = {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}
    return {**counts, **{name: last[name] for name in _DURATIONS if name in last}}


class _Held:
    """Bytes that wait for more of them; RemoteProtocolError where that has no end."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._size > MAX_HELD:
            raise httpx.RemoteProtocolError("the answer is longer than can be translated")

    def take(self, data: bytes = b"") -> bytes:
        """All of them, with ``data`` behind them."""
        whole = b"".join([*self._parts, data])
        self._parts.clear()
        self._size = 0
        return whole


def _document(name: str, kind: str, found: Members, choice: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": f"{name}-{token_hex(12)}",
        "object": kind,
        "created": now_ms() // 1000,
        "model": found.get("model"),
        "choices": [choice],
        "usage": usage(found),
    }


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(document) + b"\n\n"


def _decoded(line: bytes) -> Members | None:
    """A line as an object; None for what is none."""
    try:
        found = msgspec.json.decode(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, Mapping) else None


def _error(error: Any) -> Any:
    if isinstance(error, Mapping):
        return error
    return {"message": str(error), "type": "stream_error", "param": None, "code": None}


def _said(message: Members) -> dict[str, Any]:
    """Thoughts and text, as far as there are any."""
    said = {"reasoning": _text(message.get("thinking")), "content": _text(message.get("content"))}
    return {name: text for name, text in said.items() if text}


def _call(call: Members) -> dict[str, Any]:
    function = inner(call, "function")
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        arguments = msgspec.json.encode(arguments or {}).decode()
    return {
        "id": _text(call.get("id")) or f"call_{token_hex(8)}",
        "type": "function",
        "function": {"name": _text(function.get("name")), "arguments": arguments},
    }


def _logprobs(found: Members) -> dict[str, Any]:
    told = found.get("logprobs")
    return {"logprobs": {"content": told}} if isinstance(told, list) and told else {}


def _finish_reason(found: Members, calls: int) -> str:
    if found.get("done_reason") == "length":
        return "length"
    return "tool_calls" if calls else "stop"


def _packed(vector: Any) -> Any:
    try:
        floats = array("f", vector)
    except (TypeError, ValueError, OverflowError):
        return vector
    return base64.b64encode(struct.pack(f"<{len(floats)}f", *floats)).decode()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
