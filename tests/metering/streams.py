"""Streams in pieces, and taps that have watched them."""

from __future__ import annotations

import json
from typing import Any

from proxy.metering.sse import EventSplitter
from proxy.metering.tap import BodyTap, StreamTap
from tests.transcripts import stream


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> bytes:
    """An event of a stream, as OpenAI sends it."""
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish}
    return event({"id": "c", "model": "up", "choices": [choice], **more})


def event(document: Any) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def watch(*reads: bytes, **options: Any) -> tuple[StreamTap, bytes]:
    """A tap that has seen a whole stream, read n at second n; and what the client got."""
    tap = StreamTap(**options)
    out = b"".join([tap.feed(read, float(at)) for at, read in enumerate(reads)])
    return tap, out + tap.finish()


def events(name: str) -> list[bytes]:
    return EventSplitter().feed(stream(name))


def facts(tap: StreamTap) -> dict[str, Any]:
    """All that a row is made of, but for times."""
    names = ("usage", "error", "finish_reason", "done", "model", "fingerprint", "details")
    more = ("response_length", "seen_tokens", "saw_reasoning", "chunk_count", "meaningful")
    return {name: getattr(tap, name) for name in names + more}


def whole(document: Any, **options: Any) -> BodyTap:
    """A tap that has seen one document, in two reads."""
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    tap = BodyTap(**options)
    middle = len(data) // 2
    assert tap.feed(data[:middle], 1.0) + tap.feed(data[middle:], 2.0) == data
    tap.finish()
    tap.finish()
    return tap
