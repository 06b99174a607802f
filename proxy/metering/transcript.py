"""The words of an answer, put together while it goes by. Made only where they are to be kept.

A stream becomes one JSON document in the shape that an answer without a stream has; a body stays
as it came.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import msgspec

_WORDS = ("content", "reasoning", "reasoning_content", "thinking", "refusal")
_FAILURES = (msgspec.DecodeError, ValueError, RecursionError)
_decode = msgspec.json.Decoder().decode


class Transcript:
    """What an answer says, up to twice ``limit`` characters: what is cut there is seen to be."""

    def __init__(self, limit: int) -> None:
        self._room = 2 * limit
        self._dropped = 0
        self._body: bytes | None = None
        self._choices: dict[int, _Choice] = {}

    def read(self, document: bytes) -> None:
        """One event's data, or that of several separated by commas."""
        with suppress(*_FAILURES):  # what is no JSON says nothing
            for chunk in _decode(b"[" + document + b"]"):
                for choice in _objects(chunk, "choices"):
                    self._note(choice)

    def whole(self, body: bytes) -> None:
        """A body that is no stream."""
        self._body = body

    def written(self) -> tuple[bytes | None, int | None]:
        """The answer as JSON, and how many bytes it had (of a stream that was cut, about); None:
        nothing came."""
        text = self._body
        if text is None and self._choices:
            choices = [self._choices[index].written(index) for index in sorted(self._choices)]
            text = msgspec.json.encode({"choices": choices})
        return text, None if text is None else len(text) + self._dropped

    def _note(self, choice: dict[str, Any]) -> None:
        known = self._choices.setdefault(_index(choice, 0), _Choice())
        if isinstance(reason := choice.get("finish_reason"), str):
            known.finish_reason = reason
        self._add(known.texts, "text", choice.get("text"))
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            return
        for name in _WORDS:
            self._add(known.message, name, delta.get(name))
        for place, call in enumerate(_objects(delta, "tool_calls")):
            function = call.get("function")
            if isinstance(function, dict):
                into = known.call(_index(call, place), call.get("id"))
                self._add(into, "name", function.get("name"))
                self._add(into, "arguments", function.get("arguments"))

    def _add(self, parts: dict[str, list[str]], name: str, said: Any) -> None:
        """Keep a piece, while there is room."""
        if isinstance(said, list):  # content in parts
            said = "".join(part["text"] for part in said if _has_text(part))
        if not isinstance(said, str) or not said:
            return
        if self._room < len(said):
            self._dropped += len(said)
            return
        self._room -= len(said)
        parts.setdefault(name, []).append(said)


class _Choice:
    """The pieces of one choice."""

    def __init__(self) -> None:
        self.texts: dict[str, list[str]] = {}
        self.message: dict[str, list[str]] = {}
        self.finish_reason: str | None = None
        self._calls: list[tuple[Any, dict[str, list[str]]]] = []
        self._at: dict[int, int] = {}

    def call(self, index: int, id_: Any) -> dict[str, list[str]]:
        """The tool call that a piece belongs to. Another id under an index is another call."""
        place = self._at.get(index)
        if place is None or (id_ and self._calls[place][0] not in (None, id_)):
            place = self._at[index] = len(self._calls)
            self._calls.append((id_, {}))
        return self._calls[place][1]

    def written(self, index: int) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, **_joined(self.texts)}
        message: dict[str, Any] = _joined(self.message)
        if self._calls:
            message["tool_calls"] = [
                {"id": id_, "type": "function", "function": _joined(parts)}
                for id_, parts in self._calls
            ]
        if message:
            choice["message"] = {"role": "assistant", **message}
        return {**choice, "finish_reason": self.finish_reason}


def _joined(parts: dict[str, list[str]]) -> dict[str, Any]:
    return {name: "".join(pieces) for name, pieces in parts.items()}


def _objects(value: Any, name: str) -> Iterator[dict[str, Any]]:
    found = value.get(name) if isinstance(value, dict) else None
    return (
        (each for each in found if isinstance(each, dict)) if isinstance(found, list) else iter(())
    )


def _index(value: dict[str, Any], otherwise: int) -> int:
    index = value.get("index")
    return index if isinstance(index, int) and 0 <= index < 1_000 else otherwise


def _has_text(part: Any) -> bool:
    return isinstance(part, dict) and isinstance(part.get("text"), str)
