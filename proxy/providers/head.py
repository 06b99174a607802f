"""Heads on the wire: writing a request's, and what an answer's says about its body (RFC 9112)."""

from __future__ import annotations

from collections.abc import Sequence

import httpx

MAX_HEAD = 64 * 1024
"""Bytes of an answer that may come before its body, or between two pieces of it."""
MAX_FIELDS = 256
TOO_LARGE = "too much comes beside its body"

Fields = Sequence[tuple[bytes, bytes]]


class Malformed(Exception):
    """An answer whose parts can be read, and whose meaning is in doubt."""


def serialise(request: httpx.Request, content: bytes) -> bytes:
    """The request as it travels; LocalProtocolError for a field that could smuggle another."""
    lines = [b"%s %s HTTP/1.1" % (request.method.encode(), request.url.raw_path)]
    for name, value in request.headers.raw:
        if name.lower() not in (b"content-length", b"transfer-encoding"):
            lines.append(b"%s: %s" % (name, value))
    if content or request.method == "POST":
        lines.append(b"content-length: %d" % len(content))
    head = b"\r\n".join(lines)
    breaks = len(lines) - 1
    if head.count(b"\n") != breaks or head.count(b"\r") != breaks or b"\0" in head:
        raise httpx.LocalProtocolError(f"a control character in {_where(lines)}")
    return b"%b\r\n\r\n%b" % (head, content)


def _where(lines: list[bytes]) -> str:
    """The line with the control character, by its name: the value may be a secret."""
    (index, line), *_ = (
        (i, line) for i, line in enumerate(lines) if not {0, 0x0A, 0x0D}.isdisjoint(line)
    )
    return f"the header {line.partition(b':')[0]!r}" if index else "the request line"


def ends_with_the_connection(status: int, fields: Fields) -> bool:
    """Whether nothing but the end of the connection tells where the body ends (section 6.3).

    Raises Malformed. The parser has refused a second content-length already, and one beside a
    transfer coding.
    """
    framed = status in (204, 304)
    for name, value in fields:
        if name == b"content-length":
            framed = True
        elif name == b"transfer-encoding":
            if value.strip().lower() != b"chunked":
                raise Malformed("a transfer coding other than chunked")
            framed = True
    return not framed


def check_size(fields: Fields, received: int) -> None:
    """Raises Malformed for a head that is too large; ``received`` are the bytes it came in."""
    if len(fields) > MAX_FIELDS:
        raise Malformed(TOO_LARGE)
    if received > MAX_HEAD and sum(len(name) + len(value) for name, value in fields) > MAX_HEAD:
        raise Malformed(TOO_LARGE)
