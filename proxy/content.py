"""Prompts and answers for those who want them kept: without keys, without images, and small.

What is worth a row is sealed first: long runs of base64 become a note of their length, keys are
masked, what is too long is cut, and the rest is compressed by zlib. That takes milliseconds for a
long prompt, so it belongs in a thread.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable

import msgspec

MAX_BYTES = 256 * 1024
"""How much is kept of each side unless the configuration says otherwise."""

MAX_WAITING = 64 * 1024 * 1024
"""Bytes of contents that wait to be sealed or written; more is lost, and counted."""

_BASE64 = re.compile(r"(?<![A-Za-z0-9+/])(?:[A-Za-z0-9+/]|\\/){512,}+={0,2}")
"""An image, a sound, a file, a vector. No language has words of that length."""


class Content(msgspec.Struct, frozen=True):
    """One call's prompt and answer as they came, and how many bytes each was; None: none came."""

    request_id: str
    attempt: int
    timestamp: int
    request: bytes | None
    request_length: int | None
    answer: bytes | None
    answer_length: int | None


class ContentRecord(msgspec.Struct, frozen=True):
    """A row of ``call_contents``: both sides sealed, ``*_length`` in bytes before that, and whether
    something was cut from the end of either."""

    request_id: str
    attempt: int
    timestamp: int
    request: bytes | None
    request_length: int | None
    request_cut: bool
    answer: bytes | None
    answer_length: int | None
    answer_cut: bool

    @property
    def size(self) -> int:
        """Bytes of both sides."""
        return len(self.request or b"") + len(self.answer or b"")


def seal(content: Content, redact: Callable[[str, int], str], limit: int) -> ContentRecord:
    """The record of a call's content. ``redact`` masks a text of which so many characters are
    to be kept; ``limit`` is bytes for each side."""
    request, request_cut = _sealed(content.request, redact, limit)
    answer, answer_cut = _sealed(content.answer, redact, limit)
    return ContentRecord(
        request_id=content.request_id,
        attempt=content.attempt,
        timestamp=content.timestamp,
        request=request,
        request_length=content.request_length,
        request_cut=request_cut,
        answer=answer,
        answer_length=content.answer_length,
        answer_cut=answer_cut,
    )


def pack(text: str) -> bytes:
    """A text as it is stored; ``unpack`` gives it back."""
    return zlib.compress(text.encode())


def unpack(packed: bytes) -> str:
    return zlib.decompress(packed).decode()


def _sealed(
    side: bytes | None, redact: Callable[[str, int], str], limit: int
) -> tuple[bytes | None, bool]:
    """One side, and whether it was cut."""
    if side is None:
        return None, False
    text = _BASE64.sub(_note, side.decode("utf-8", "replace"))
    masked = redact(text, limit).encode("utf-8", "replace")
    kept = masked[:limit].decode("utf-8", "ignore")  # less what is left of a character
    return pack(kept), len(text) > limit or len(masked) > limit


def _note(match: re.Match[str]) -> str:
    return f"[base64, {len(match[0])} characters]"
