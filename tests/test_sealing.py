from __future__ import annotations

import threading

import pytest

from proxy import sealing as module
from proxy.content import Content, ContentRecord, unpack
from proxy.redact import Redactor
from proxy.sealing import Sealing


class Desk:
    """A sealing, and what it handed on."""

    def __init__(self) -> None:
        self.kept: list[ContentRecord] = []
        self.threads: set[int] = set()
        self.redactor = Redactor(["sk-secret-1"])
        self.sealing = Sealing(self.redact, 1000, self.kept.append)

    def redact(self, text: str, length: int) -> str:
        self.threads.add(threading.get_ident())
        return self.redactor.whole(text, length)

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


async def test_beyond_its_memory_contents_are_lost_until_some_are_sealed(
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
    desk.take("d", b"x" * 900)  # the first waits no more
    await desk.sealing.drain(5)
    assert [record.request_id for record in desk.kept] == ["a", "d"]
    assert desk.sealing.lost == 2
