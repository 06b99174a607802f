from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.sharing.frames import (
    Answers,
    Ask,
    Begin,
    Change,
    Claim,
    Claimed,
    Counted,
    Frames,
    FromHub,
    FromWorker,
    Held,
    Hold,
    Ready,
    Reload,
    Rests,
    frame,
)
from proxy.sharing.types import Denial, Rest, Settlement, WindowClaim

REST = Rest("p", 5, "rate_limit", "cooling", 1)
FROM_WORKER = [
    Ready([("lab", 2)], None),
    Reload(),
    Claim(7, ["p"], [WindowClaim("w", 9, 60, 1, 3)], "q", 1000),
    Hold(8, "s", 3, "t"),
    Change(["p"], [REST], [Settlement("w", 60, None, -3, 5)], [("s", "t")]),
    Begin([], []),
    Ask(1, "keys", b"\x00" * 70_000),
]
FROM_HUB = [
    Reload(),
    Claimed(7, Denial("p", 0.5, REST), 5, [3]),
    Held(8, False),
    Rests(3, [REST]),
    Counted(1, {"w": 2}),
    Answers(1, [b"", b"x"]),
]


@given(cuts=st.lists(st.integers(1, 9000), max_size=20))
def test_messages_come_whole_however_the_bytes_are_cut(cuts: list[int]) -> None:
    frames: Frames[FromWorker] = Frames(msgspec.msgpack.Decoder(FromWorker))
    data = b"".join(map(frame, FROM_WORKER))
    found = []
    for cut in cuts:
        found += frames.feed(data[:cut])
        data = data[cut:]
    found += frames.feed(data)
    assert found == FROM_WORKER


def test_the_other_way_too() -> None:
    frames: Frames[FromHub] = Frames(msgspec.msgpack.Decoder(FromHub))
    assert list(frames.feed(b"".join(map(frame, FROM_HUB)))) == FROM_HUB
    assert not list(frames.feed(b"\x00\x00"))


def test_what_is_no_message_is_an_error() -> None:
    frames: Frames[FromHub] = Frames(msgspec.msgpack.Decoder(FromHub))
    with pytest.raises(msgspec.DecodeError):
        list(frames.feed(b"\x00\x00\x00\x01\x01"))
