"""Reading the members of JSON that somebody else wrote: what is odd is unknown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proxy.bounds import MOST_TOKENS

_LARGEST = 2**53  # a count beyond this is no count


def number(value: Any) -> int | None:
    """A count: a whole number that is not negative and not absurd, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 <= value <= _LARGEST and value == int(value) else None


def tokens(value: Any) -> int | None:
    """A count of tokens that one call can have, else None."""
    count = value if type(value) is int else number(value)
    return count if count is not None and 0 <= count <= MOST_TOKENS else None


def text(value: Any) -> str | None:
    """A name: a string, neither empty nor endless, else None."""
    return value if isinstance(value, str) and 0 < len(value) <= 300 else None


def inner(entry: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A member that is an object; empty where it is absent or something else."""
    value = entry.get(name)
    return value if isinstance(value, Mapping) else {}


def first(entry: Mapping[str, Any], *names: str) -> int | None:
    """The first of the members that is a count of tokens; 0 is one, null is none."""
    for name in names:
        value = entry.get(name)
        if value is not None and (count := tokens(value)) is not None:
            return count
    return None
