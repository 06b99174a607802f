"""What the workers of one host and their supervisor say to each other: a frame is the length of a
message in four bytes, and the message in MessagePack.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

import msgspec

from proxy.sharing.types import Denial, Rest, Settlement, WindowClaim

HEAD = 4
"""Bytes of the length."""

_T = TypeVar("_T")


class Ready(msgspec.Struct, frozen=True, tag=True):
    """A worker serves: the providers with their number of keys, and a model to try."""

    providers: list[tuple[str, int]]
    example: str | None


class Reload(msgspec.Struct, frozen=True, tag=True):
    """Read the configuration again. From a worker: it has, and so should the others."""


class Claim(msgspec.Struct, frozen=True, tag=True):
    """``id`` is the worker's own, as in all questions; the answer bears it, too."""

    id: int
    places: Sequence[str]
    windows: Sequence[WindowClaim]
    probe: str | None
    probe_ms: int


class Claimed(msgspec.Struct, frozen=True, tag=True):
    """No denial is a grant, counted ``at``; ``used`` is what each of the windows holds now."""

    id: int
    denial: Denial | None
    at: int
    used: Sequence[int] = ()


class Hold(msgspec.Struct, frozen=True, tag=True):
    """Take one of ``limit`` slots of this name."""

    id: int
    name: str
    limit: int
    token: str


class Held(msgspec.Struct, frozen=True, tag=True):
    id: int
    granted: bool


class Change(msgspec.Struct, frozen=True, tag=True):
    """Lifts, then rests, what claims were off by, and slots that are free again: their names and
    tokens."""

    lifts: Sequence[str] = ()
    rests: Sequence[Rest] = ()
    offs: Sequence[Settlement] = ()
    frees: Sequence[tuple[str, str]] = ()


class Begin(msgspec.Struct, frozen=True, tag=True):
    """What a worker has restored: the first word of one of them counts."""

    rests: Sequence[Rest]
    uses: Sequence[Settlement]


class Rests(msgspec.Struct, frozen=True, tag=True):
    """All rests, with the first ``seen`` changes of rests that came from who is told them."""

    seen: int
    rests: list[Rest]


class Count(msgspec.Struct, frozen=True, tag=True):
    id: int


class Counted(msgspec.Struct, frozen=True, tag=True):
    """What is counted in the windows by their names."""

    id: int
    counts: dict[str, int]


class Ask(msgspec.Struct, frozen=True, tag=True):
    """A question to every other worker."""

    id: int
    what: str
    argument: bytes


class Answer(msgspec.Struct, frozen=True, tag=True):
    id: int
    payload: bytes


class Answers(msgspec.Struct, frozen=True, tag=True):
    """Of all who have answered in time."""

    id: int
    payloads: list[bytes]


FromWorker = Ready | Reload | Claim | Hold | Change | Begin | Count | Ask | Answer
FromHub = Reload | Claimed | Held | Rests | Counted | Ask | Answers

_encode = msgspec.msgpack.Encoder().encode


def frame(message: FromWorker | FromHub) -> bytes:
    return framed(_encode(message))


def framed(payload: bytes) -> bytes:
    return len(payload).to_bytes(HEAD) + payload


class Frames(Generic[_T]):
    """The messages of a stream of bytes, however that is cut. Raises msgspec.DecodeError for what
    is no message of this type."""

    def __init__(self, decode: msgspec.msgpack.Decoder[_T]) -> None:
        self._decode = decode.decode
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[_T]:
        """Every message that is whole by now."""
        self._data += data
        place, size = 0, len(self._data)
        while place + HEAD <= size:
            end = place + HEAD + int.from_bytes(self._data[place : place + HEAD])
            if end > size:
                break
            yield self._decode(self._data[place + HEAD : end])
            place = end
        del self._data[:place]
