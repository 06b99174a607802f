from __future__ import annotations

import asyncio

import httpx
import pytest

from proxy.providers import body as body_module
from proxy.providers.body import Body


class Source:
    """A connection that writes down what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.waits: list[float | None] = []

    def expect(self, seconds: float | None) -> None:
        self.waits.append(seconds)

    def pause(self) -> None:
        self.asked.append("pause")

    def resume(self) -> None:
        self.asked.append("resume")

    def abort(self) -> None:
        self.asked.append("abort")


def make(seconds: float | None = 7.0) -> tuple[Body, Source]:
    source = Source()
    return Body(source, asyncio.get_running_loop(), seconds), source


async def test_what_came_together_is_handed_on_together() -> None:
    body, _ = make()
    body.push(b"a")
    body.push(b"b")
    assert await anext(body) == b"ab"
    body.push(b"c")
    assert await anext(body) == b"c"
    body.complete()
    with pytest.raises(StopAsyncIteration):
        await anext(body)


async def test_somebody_is_late_only_while_the_reader_waits() -> None:
    body, source = make()
    body.push(b"a")
    await anext(body)
    assert source.waits == [None]
    reading = asyncio.ensure_future(anext(body))
    await asyncio.sleep(0)
    assert source.waits == [None, 7.0]
    body.push(b"b")
    body.wake()
    assert await reading == b"b"
    assert source.waits == [None, 7.0, None]


async def test_waking_without_anything_new_changes_nothing() -> None:
    body, _ = make()
    reading = asyncio.ensure_future(anext(body))
    await asyncio.sleep(0)
    body.wake()
    await asyncio.sleep(0)
    assert not reading.done()
    body.complete()
    with pytest.raises(StopAsyncIteration):
        await reading


async def test_an_error_comes_after_what_was_read_before_it() -> None:
    body, _ = make()
    body.push(b"a")
    body.complete(httpx.ReadError("cut"))
    assert await anext(body) == b"a"
    for _ in range(2):
        with pytest.raises(httpx.ReadError, match="cut"):
            await anext(body)


async def test_a_slow_reader_stops_the_socket_and_starts_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(body_module, "HIGH_WATER", 10)
    body, source = make()
    body.push(b"x" * 10)
    assert source.asked == []
    body.push(b"x")
    body.push(b"x")
    assert source.asked == ["pause"]
    assert len(await anext(body)) == 12
    assert source.asked == ["pause", "resume"]
    body.push(b"x")
    assert source.asked == ["pause", "resume"]


async def test_closing_gives_the_connection_up_once() -> None:
    body, source = make()
    body.push(b"a")
    await body.aclose()
    await body.aclose()
    assert source.asked == ["abort"]
    with pytest.raises(StopAsyncIteration):
        await anext(body)


async def test_closing_after_the_end_leaves_the_connection_alone() -> None:
    body, source = make()
    body.complete()
    await body.aclose()
    assert source.asked == []


async def test_a_reader_that_gave_up_waiting_can_come_back() -> None:
    body, _ = make()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await anext(body)
    body.push(b"a")
    body.wake()
    assert await anext(body) == b"a"


async def test_nothing_is_lost_when_a_chunk_and_a_cancellation_come_together() -> None:
    body, _ = make()
    reading = asyncio.ensure_future(anext(body))
    await asyncio.sleep(0)
    body.push(b"a")
    body.wake()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert await anext(body) == b"a"
