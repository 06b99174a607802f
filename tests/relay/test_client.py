from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from proxy.relay.client import ClientWatch

Start = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class Wire:
    """What a server's ``receive`` says: whatever a test puts in, and then nothing."""

    def __init__(self, *messages: str) -> None:
        self.messages: asyncio.Queue[str] = asyncio.Queue()
        for message in messages:
            self.messages.put_nowait(message)

    async def receive(self) -> dict[str, Any]:
        return {"type": await self.messages.get()}


async def served(watch: ClientWatch, start: Start, seconds: float = 10) -> str:
    watch.begin(start)
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        return "cancelled"
    finally:
        watch.end()
    return "done"


@pytest.mark.parametrize("messages", [("http.disconnect",), ("http.request", "http.disconnect")])
async def test_a_client_that_leaves_ends_the_call(messages: tuple[str, ...]) -> None:
    watch = ClientWatch(Wire(*messages).receive)
    async with asyncio.TaskGroup() as tasks:
        assert await served(watch, tasks.create_task) == "cancelled"
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()
    assert watch.gone


async def test_a_client_that_stays_is_no_longer_watched_at_the_end() -> None:
    wire = Wire()
    watch = ClientWatch(wire.receive)
    async with asyncio.TaskGroup() as tasks:
        assert await served(watch, tasks.create_task, 0) == "done"
        wire.messages.put_nowait("http.disconnect")
    assert not watch.gone


async def test_nothing_of_a_call_that_is_over_waits_for_the_garbage_collector() -> None:
    watch = ClientWatch(Wire().receive)
    left = weakref.ref(watch)
    gc.disable()
    try:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(served(watch, tasks.create_task, 0.01))
            del watch
            await task
        del task
        assert left() is None
    finally:
        gc.enable()


async def test_a_client_that_leaves_as_the_call_ends_disturbs_nobody() -> None:
    wire = Wire("http.disconnect")
    watch = ClientWatch(wire.receive)
    async with asyncio.TaskGroup() as tasks:
        watch.begin(tasks.create_task)
        watch.end()
        await asyncio.sleep(0)
    assert not watch.gone


async def test_a_watch_that_never_began_ends() -> None:
    watch = ClientWatch(Wire().receive)
    watch.end()
    assert not watch.gone


async def test_a_call_may_go_on_for_a_while_without_its_client() -> None:
    lingered = asyncio.Event()
    watch = ClientWatch(Wire("http.disconnect").receive, lingered.wait)  # type: ignore[arg-type]
    async with asyncio.TaskGroup() as tasks:
        assert await served(watch, tasks.create_task, 0.02) == "done"
    assert watch.gone
    assert not lingered.is_set()


async def test_a_call_without_its_client_is_cancelled_in_the_end() -> None:
    async def linger() -> None:
        await asyncio.sleep(0.01)

    watch = ClientWatch(Wire("http.disconnect").receive, linger)
    async with asyncio.TaskGroup() as tasks:
        assert await served(watch, tasks.create_task) == "cancelled"
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()
    assert watch.gone
