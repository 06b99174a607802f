from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from proxy import sealing as module
from proxy.content import Content, ContentRecord, unpack
from proxy.redact import Redactor
from proxy.sealing import Sealing

NOISE = " ".join(str(hash((1, n)) % 10**9) for n in range(95)).encode()[:950]
"""That does not compress well."""


class Desk:
    """A sealing, and what it handed on."""

    def __init__(self) -> None:
        self.kept: list[ContentRecord] = []
        self.written: list[object] = []
        self.threads: set[int] = set()
        self.redactor = Redactor(["sk-secret-1"])
        self.sealing = Sealing(self.redact, 1000, self.write, self.kept.append)

    def redact(self, text: str, length: int) -> str:
        self.threads.add(threading.get_ident())
        return self.redactor.whole(text, length)

    async def write(self, items: Sequence[object]) -> None:
        self.written += items

    def take(self, name: str, request: bytes) -> None:
        self.sealing.take(Content(name, 1, 0, request, len(request), None, None))


async def test_what_is_taken_is_sealed_in_a_thread_and_handed_on() -> None:
    desk = Desk()
    desk.take("a", b"it is sk-secret-1")
    assert not desk.kept
    await desk.sealing.drain(5)
    (record,) = desk.kept
    assert record.request is not None
    assert unpack(record.request) == "it is [redacted]"
    assert threading.get_ident() not in desk.threads


async def test_an_end_with_nothing_under_way_waits_for_nothing() -> None:
    await Desk().sealing.drain(5)


async def test_beyond_its_memory_contents_are_lost_until_some_are_written(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 1000)
    desk = Desk()
    desk.take("a", b"x" * 900)
    desk.take("b", b"x" * 900)
    desk.take("c", b"x" * 900)
    assert desk.sealing.lost == 2
    assert [record.message for record in caplog.records] == [
        "prompts and answers are lost: 900 bytes wait already"
    ]
    await desk.sealing.drain(5)
    desk.take("d", b"x" * 900)  # the first is small now
    await desk.sealing.drain(5)
    assert [record.request_id for record in desk.kept] == ["a", "d"]
    desk.take("e", NOISE[:850])
    await desk.sealing.drain(5)
    desk.take("f", NOISE)
    assert desk.sealing.lost == 3
    await desk.sealing.write(desk.kept)
    assert desk.written == desk.kept
    desk.take("g", b"x" * 990)
    assert desk.sealing.lost == 3
    await desk.sealing.drain(5)


async def test_what_could_not_be_written_still_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 1000)

    async def refuse(items: Sequence[object]) -> None:
        raise OSError("full")

    desk = Desk()
    sealing = Sealing(desk.redact, 1000, refuse, desk.kept.append)
    sealing.take(Content("a", 1, 0, NOISE, len(NOISE), None, None))
    await sealing.drain(5)
    with pytest.raises(OSError, match="full"):
        await sealing.write(desk.kept)
    sealing.take(Content("b", 1, 0, NOISE, len(NOISE), None, None))
    assert sealing.lost == 1
