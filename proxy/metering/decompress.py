"""Reading an answer that came compressed although identity was asked for.

The client gets the bytes as they came; the meter reads a copy.
"""

from __future__ import annotations

import zlib

MAX_OUTPUT = 64 * 1024 * 1024
"""A bomb stops here: what is beyond stays unread."""

_WINDOW = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


class Decompressor:
    """Incremental; gives nothing for encodings that the standard library does not know."""

    def __init__(self, encoding: str) -> None:
        window = _WINDOW.get(encoding.strip().lower())
        self._inflate = zlib.decompressobj(window) if window is not None else None
        self._left = MAX_OUTPUT

    def feed(self, data: bytes) -> bytes:
        if self._inflate is None:
            return b""
        try:
            text = self._inflate.decompress(data, self._left)
        except zlib.error:
            self._inflate = None
            return b""
        self._left -= len(text)
        if self._inflate.eof or self._left <= 0:
            self._inflate = None  # what follows would be gathered in it, unread
        return text
