"""Putting an alias where the upstream wrote its own model name, and touching nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import islice

import msgspec

from proxy.metering.sse import payload

MAX_TRIES = 16
"""Members called ``model`` that are looked at: each costs reading the document."""

_MODEL = re.compile(rb'"model"\s*:\s*("(?:[^"\\]|\\.)*")')
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def model_rewriter(alias: str) -> Callable[[bytes], bytes]:
    """A function that puts ``alias`` into the top-level ``model`` of an event or document.

    Every other byte stays. What cannot be read is handed back as it is.
    """
    value = msgspec.json.encode(alias)
    model = msgspec.Raw(value)

    def rewrite(document: bytes) -> bytes:
        for found in islice(_MODEL.finditer(document), MAX_TRIES):
            candidate = document[: found.start(1)] + value + document[found.end(1) :]
            if _is_rewritten(document, candidate, model):
                return candidate
        return document

    return rewrite


def _is_rewritten(before: bytes, after: bytes, model: msgspec.Raw) -> bool:
    """Whether ``after`` has this model at its top, and all else as it was."""
    try:
        old, new = _members(payload(before) or before), _members(payload(after) or after)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    old.pop("model", None)
    return new.pop("model", None) == model and old == new
