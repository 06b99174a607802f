"""What a row keeps of a stranger's text: names and numbers. The rest may be somebody's words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from proxy.types import Fault

_WORD = re.compile(r"[A-Za-z0-9_.:-]{1,32}")
_PLACE = re.compile(r"[A-Za-z0-9_.:\[\]-]{1,64}")
_TITLE = re.compile(r"(?=.{1,32}\Z)[A-Za-z0-9_.:-]+(?: [A-Za-z0-9_.:-]+){0,2}")
_IDENTIFIER = re.compile(r"[A-Za-z0-9_.:/=+@-]{1,128}")


def word(text: str | None) -> str | None:
    """A word of a program's, such as ``content_filter``; else None."""
    return _whole(_WORD, text)


def title(text: str | None) -> str | None:
    """A name of up to three words, such as ``Google AI Studio``; else None."""
    return _whole(_TITLE, text)


def identifier(text: str | None) -> str | None:
    """An id, such as ``req_01J`` or ``@cf/meta/llama-3.2:free``; else None."""
    return _whole(_IDENTIFIER, text)


def numbers(members: Mapping[str, Any]) -> dict[str, Any]:
    """The members that are numbers or switches, and those of objects among them."""
    inner = {name: _flat(value) for name, value in members.items() if isinstance(value, Mapping)}
    return _flat(members) | {name: some for name, some in inner.items() if some and word(name)}


def outline(fault: Fault) -> str:
    """What a provider told of a fault, in our words."""
    told = {
        "status": None if fault.status is None else str(fault.status),
        "type": _whole(_PLACE, fault.type),
        "code": _whole(_PLACE, fault.code),
        "param": _whole(_PLACE, fault.param),
    }
    known = ", ".join(f"{name} {value}" for name, value in told.items() if value is not None)
    return f"the provider's error: {known}" if known else "the provider's error"


def _flat(members: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in members.items()
        if isinstance(value, int | float) and word(name) is not None
    }


def _whole(pattern: re.Pattern[str], text: str | None) -> str | None:
    return text if isinstance(text, str) and pattern.fullmatch(text) else None
