"""Telling tool calls apart that came under one index, and touching nothing else.

Some versions of Ollama stream several whole calls, each in a delta of its own and all with
``"index":0`` (https://github.com/ollama/ollama/issues/15457). Clients of OpenAI join the deltas of
one index, so that two calls become one with two sets of arguments.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from proxy.metering.sse import payload

MARK = b'"tool_calls"'
"""What an event has to contain to be worth a look."""
MAX_CALLS = 16_384
"""Calls of one stream that are told apart; the rest passes as it came."""
MAX_INDEX = 1_000_000
"""A number beyond it is no index."""
MAX_ID = 300
"""Characters; what is longer proves nothing."""

_TOKEN = re.compile(
    rb'"index"\s*+:\s*+(?P<index>\d++)(?=\s*+[,}])'
    rb'|"(?P<key>\w++)"\s*+:\s*+(?=[\[{])'
    rb'|"[^"\\]*+(?:\\.[^"\\]*+)*+"?+'  # without its end too, or hostile text would cost its square
    rb"|(?P<open>[\[{])"
    rb"|(?P<close>[\]}])"
)
_CALL = [b"", b"choices", b"", b"delta", b"tool_calls", b""]
"""The way to a tool call: the keys of its containers, empty for those that have none."""
_decode = msgspec.json.Decoder().decode
_FAILURES = (msgspec.DecodeError, ValueError, RecursionError)


class ToolCalls:
    """The calls of one stream, choice by choice. ``mend`` is given its events in their order.

    By OpenAI's rule the deltas of one index are one call, and only the first needs an id. So an
    index is wrong where it comes again with another id. Such a call moves to the next free index,
    and what follows under the old index without an id goes with it. Until then nothing changes.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[int, int], tuple[str | None, int]] = {}
        self._known: dict[tuple[int, int, str], int] = {}
        self._taken: set[tuple[int, int]] = set()
        self._next: dict[int, int] = {}

    def mend(self, event: bytes) -> bytes:
        """The event with its wrong indices put right; every other byte stays. Never raises."""
        try:
            document = _decode(payload(event) or b"")
        except _FAILURES:
            return event
        indices = []
        wrong = False
        for choice, call in _calls(document):
            index = self._place(choice, call["index"], call.get("id"))
            wrong = wrong or index != call["index"]
            call["index"] = index
            indices.append(index)
        return _written(event, indices, document) if wrong else event

    def _place(self, choice: Any, index: int, id_: Any) -> int:
        """The index under which the client is to see what came under ``index``."""
        if not _is_index(choice) or choice > MAX_INDEX or index > MAX_INDEX:
            return index
        name = id_ if isinstance(id_, str) and 0 < len(id_) <= MAX_ID else None
        last_name, last = self._last.get((choice, index), (None, None))
        if name is not None and (choice, index, name) in self._known:
            place = self._known[choice, index, name]
        elif last is not None and (name is None or last_name is None):
            place = last
        elif len(self._taken) < MAX_CALLS:
            place = self._free(choice, index)
        else:
            return index
        self._last[choice, index] = (name or last_name, place)
        if name is not None:
            self._known[choice, index, name] = place
        return place

    def _free(self, choice: int, index: int) -> int:
        """Takes ``index`` for a new call, or the next one if another call has it."""
        after = self._next.get(choice, 0)
        place = after if (choice, index) in self._taken else index
        self._taken.add((choice, place))
        self._next[choice] = max(after, place + 1)
        return place


def _calls(document: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Each tool call of a chunk that has an index, in order, with the index of its choice."""
    for choice in _entries(document, "choices"):
        delta = choice.get("delta") if isinstance(choice, dict) else None
        for call in _entries(delta, "tool_calls"):
            if isinstance(call, dict) and _is_index(call.get("index")):
                yield choice.get("index"), call


def _entries(value: Any, name: str) -> list[Any]:
    found = value.get(name) if isinstance(value, dict) else None
    return found if isinstance(found, list) else []


def _is_index(value: Any) -> bool:
    return type(value) is int and value >= 0  # True is an int, too


def _written(event: bytes, indices: list[int], wanted: Any) -> bytes:
    """The event with these digits where its tool calls have theirs, if it then reads as wanted.

    Where it does not (a member that is there twice, a name with escapes) it stays as it came:
    written anew it would lose spellings that nobody has proved wrong.
    """
    spans = _spans(event)
    if len(spans) != len(indices):
        return event
    parts = []
    position = 0
    for (start, end), index in zip(spans, indices, strict=True):
        parts += [event[position:start], b"%d" % index]
        position = end
    written = b"".join([*parts, event[position:]])
    try:
        return written if _decode(payload(written) or b"") == wanted else event
    except _FAILURES:
        return event


def _spans(event: bytes) -> list[tuple[int, int]]:
    """Where the digits of each tool call's index stand."""
    spans = []
    way: list[bytes] = []
    key = b""
    for token in _TOKEN.finditer(event):
        kind = token.lastgroup
        if kind == "key":
            key = token["key"]
        elif kind == "open":
            way.append(key)
            key = b""
        elif kind == "close":
            del way[-1:]
        elif kind == "index" and way == _CALL:
            spans.append(token.span("index"))
    return spans
