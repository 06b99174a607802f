"""The nouns, and how a rest is written."""

from __future__ import annotations

import msgspec
import pytest

from proxy.sharing.types import Rest

REST = Rest("place", 1_700_000_000_000, "rate_limit", "cooling", 2)


def test_a_rest_can_be_written_and_read_again() -> None:
    for rest in (REST, msgspec.structs.replace(REST, probe_at=1)):
        assert msgspec.json.decode(msgspec.json.encode(rest), type=Rest) == rest


def test_a_rest_without_a_probe_does_not_name_one() -> None:
    """The server's JSON has a null of its own, which is not nothing."""
    assert b"probe_at" not in msgspec.json.encode(REST)


def test_a_rest_is_not_changed_in_place() -> None:
    with pytest.raises(AttributeError):
        REST.count = 3  # type: ignore[misc]
