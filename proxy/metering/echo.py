"""What an error quotes of the request it answers: providers send prompts back in their messages.

Sixteen bytes in a row that stand in the request are taken out. Names of members are no prompt, nor
is the name of the model; the rest of a request is looked at as its reader would see it, without
JSON's escapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

RUN = 16
"""Bytes. Shorter pieces stay: words that any message may have."""

MAX_TEXT = 256 * 1024
"""Bytes of a request that are compared, within some milliseconds; of a longer one nothing is
known, so that no message is kept that may quote it."""

MAX_MESSAGE = 2_000
"""Characters of a message that are looked at; the rest is dropped, a row keeps fewer anyway."""

UNTOLD = "[the provider's message is not kept: it may quote the request]"
_CUT = b"[\xe2\x80\xa6]"
_BLOCK = 8
"""Of each run of sixteen bytes, one of the text's blocks of eight lies within."""

_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|([\"'\\/bfnrt]))")
_decode = msgspec.json.Decoder().decode


def without_echo(message: str, request: bytes | None) -> str:
    """The message, less what it quotes. None: nobody knows any more what was asked."""
    told = _flat(_ESCAPE.sub(_meant, message[:MAX_MESSAGE]))
    if len(told) < RUN:
        return message
    said = None if request is None else _text(request)
    if said is None:
        return UNTOLD
    quoted = _quoted(told, said)
    if not any(quoted):
        return message
    kept = bytearray()
    for place, byte in enumerate(told):
        if not quoted[place]:
            kept.append(byte)
        elif not place or not quoted[place - 1]:
            kept += _CUT
    return kept.decode("utf-8", "ignore")


def _quoted(told: bytes, said: bytes) -> list[bool]:
    """For each byte whether it belongs to a run that both have."""
    known = {told[place : place + _BLOCK] for place in range(len(told) - _BLOCK + 1)}
    around = {
        said[max(0, place - _BLOCK) : place + RUN]
        for place in range(0, len(said), _BLOCK)
        if said[place : place + _BLOCK] in known
    }
    runs = {text[at : at + RUN] for text in around for at in range(len(text) - RUN + 1)}
    quoted = [False] * len(told)
    for start in range(len(told) - RUN + 1):
        if told[start : start + RUN] in runs:
            quoted[start : start + RUN] = [True] * RUN
    return quoted


def _text(request: bytes) -> bytes | None:
    """Every text in a request; None if that is too much to look at."""
    if len(request) > 2 * MAX_TEXT:
        return None
    try:
        read = _decode(request)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _flat(request.decode("utf-8", "replace"))
    if isinstance(read, dict):
        read.pop("model", None)
    text = b"\0".join(map(_flat, _texts(read)))
    return text if len(text) <= MAX_TEXT else None


def _texts(value: Any) -> Iterator[str]:
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _meant(escape: re.Match[str]) -> str:
    """The character behind one of JSON's or Python's escapes; white is white."""
    code, plain = escape.groups()
    return chr(int(code, 16)) if code else " " if plain in "bfnrt" else plain


def _flat(text: str) -> bytes:
    """Line ends and spaces differ from one quotation to the next."""
    return " ".join(text.split()).encode("utf-8", "replace")
