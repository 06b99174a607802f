"""Tags: short labels that calls are grouped by, such as a team or an experiment.

A row keeps them as a JSON list of texts, and NULL where there are none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

MOST = 10
"""How many a call has; more are left out."""
LONGEST = 64
"""Characters of one; the rest is cut off."""
LOOKED = 100
"""Entries of a list, with those that are no tags."""

_TAGS = msgspec.json.Decoder(tuple[str, ...])


def tags(told: Iterable[str]) -> tuple[str, ...]:
    """The tags in texts of which each has one or, between commas, several: each once, in order."""
    found: dict[str, None] = {}
    for text in told:
        for part in text.split(","):
            tag = part.strip().replace("\x00", "")[:LONGEST]
            if tag:
                found[tag] = None
                if len(found) == MOST:
                    return tuple(found)
    return tuple(found)


def whole(told: Sequence[str]) -> tuple[str, ...]:
    """Tags that a call keeps as they are. ValueError if it would not."""
    found = tags(told)
    if found != tuple(told):
        each = f"up to {LONGEST} characters, no comma, no space around them"
        raise ValueError(f"must be at most {MOST}, no two the same, each of {each}")
    return found


def listed(value: Any) -> tuple[str, ...]:
    """What a program told as its tags, a list or one text; of a list the first ``LOOKED``."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list | tuple):
        return tuple([each for each in value[:LOOKED] if isinstance(each, str)])
    return ()


def read(kept: str | None) -> tuple[str, ...]:
    """The tags that a row keeps."""
    return () if kept is None else _TAGS.decode(kept)


def written(found: tuple[str, ...]) -> str | None:
    """As a row keeps them."""
    return msgspec.json.encode(found).decode() if found else None
