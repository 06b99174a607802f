"""What a program's own message quotes of the prompt and the answer that it tells beside it.

Eight bytes in a row that stand in these are taken out, in capital letters or small ones. Where both
are JSON, they are looked at as their reader would see them, without its escapes.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote_plus

import msgspec

RUN = 8
"""Bytes. Shorter pieces stay: words that any message may have."""

MAX_TEXT = 256 * 1024
"""Bytes that are compared, within some milliseconds; beside longer ones no message is kept."""

MAX_MESSAGE = 2_000
"""Characters of a message that are looked at; the rest is dropped, a row keeps fewer anyway."""

UNTOLD = "[the message is not kept: it may quote the call]"
_CUT = b"[\xe2\x80\xa6]"
_BLOCK = 4
"""Of each run of eight bytes, one of the text's blocks of four lies within."""

_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|([\"'\\/bfnrt]))")
_decode = msgspec.json.Decoder().decode


def without_echo(message: str, words: bytes) -> str:
    """The message, less what it quotes of the words; ``UNTOLD`` where that cannot be taken out."""
    message = message[:MAX_MESSAGE]
    told = _flat(_ESCAPE.sub(_meant, message))
    if len(told) < RUN:
        return message
    said = _text(words)
    small = _small(told)
    if said is None or len(small) != len(told):
        return UNTOLD
    said = _small(said)
    for plain in {unquote_plus(message), html.unescape(message)} - {message}:
        if any(_quoted(_small(_flat(plain)), said)):
            return UNTOLD
    quoted = _quoted(small, said)
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


def _small(text: bytes) -> bytes:
    """In small letters; of another length where a letter has none of its size."""
    return text.decode("utf-8", "replace").lower().encode()


def _text(words: bytes) -> bytes | None:
    """Every text in the words; None if that is too much to look at."""
    if len(words) > 2 * MAX_TEXT:
        return None
    try:
        read = _decode(words)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _flat(words.decode("utf-8", "replace"))
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
