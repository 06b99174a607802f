"""Whoever leaves in the middle of an answer: it is read on, within limits, to what it took."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from proxy.relay import drains, outbound
from tests.gateway import Gateway, Line, lab, running
from tests.upstream import (
    Exchange,
    Upstream,
    completion,
    error,
    event,
    hang,
    stream,
    usage_event,
    words,
)

STREAM = {"model": "lab/json", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
ROLE = event({"role": "assistant", "content": ""})
A = event({"content": "a"})
TAIL = [event({"content": "b"}), event(finish="stop"), usage_event(70, 900), b"data: [DONE]\n\n"]


class Place:
    """A gateway and its upstream. ``left`` lets a script go on once its client is away."""

    def __init__(self, gateway: Gateway, upstream: Upstream) -> None:
        self.gateway, self.upstream = gateway, upstream
        self.left = asyncio.Event()
        self.tasks = self.count_tasks()

    def count_tasks(self) -> int:
        """All but the upstream's own, one for each connection."""
        names = [str(task.get_coro()) for task in asyncio.all_tasks()]
        return len([name for name in names if "upstream_server" not in name])

    def script(self, *before: bytes, after: Any = (), ends: str = "clean") -> None:
        """Streams ``before``, waits until the client has left, and streams ``after``."""

        async def script(exchange: Exchange) -> None:
            await exchange.head(content_type="text/event-stream", transfer_encoding="chunked")
            for part in before:
                await exchange.chunk(part)
            await self.left.wait()
            for part in after:
                await exchange.chunk(part)
            await (exchange.end() if ends == "clean" else exchange.close())
            if ends == "hang":
                await exchange.gone.wait()

        self.upstream.script = script

    async def leave(self, line: Line) -> None:
        await line.hang_up()
        await asyncio.sleep(0.05)
        self.left.set()

    async def dial(self, name: str, body: Any = STREAM) -> Line:
        return await self.gateway.dial(body, f"x-request-id: {name}")

    async def drained(self, name: str = "one", body: Any = STREAM, sees: bytes = A) -> Any:
        """The row of a client that leaves when it has seen ``sees``."""
        line = await self.dial(name, body)
        await (line.until(sees) if sees else self.upstream.asked())
        await self.leave(line)
        row = await self.gateway.attempt(name)
        assert (row["status"], row["client_status"]) == ("cancelled", 499)
        assert row["error_reason"] == "client_closed"
        return row

    async def in_flight(self) -> int:
        keys = (await self.gateway.client.get("/stats/keys")).json()["data"]
        return sum(key["in_flight"] for key in keys)

    async def settled(self) -> None:
        """Nothing is left of any call: no socket at the upstream, no task, no lease."""
        for _ in range(200):
            if not self.upstream.open and self.count_tasks() <= self.tasks:
                break
            await asyncio.sleep(0.01)
        assert not self.upstream.open
        assert self.count_tasks() <= self.tasks, asyncio.all_tasks()
        assert await self.in_flight() == 0


@asynccontextmanager
async def place(
    folder: Path, upstream: Upstream, on_disconnect: Any = "drain_for 20s", **more: Any
) -> AsyncIterator[Place]:
    config = {
        "providers": {
            "lab": lab(upstream.url, **more),
            "two": lab(upstream.url, "sk-two-1", "sk-two-2"),
        },
        "server": {"peek": "100ms", "on_disconnect": on_disconnect},
    }
    async with running(folder, config) as gateway:
        await gateway.client.get("/health/live")
        yield Place(gateway, upstream)


def counts(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["usage_source"], row["input_tokens"], row["output_tokens"]


async def leave_by_the_dozen(folder: Path, upstream: Upstream, count: int) -> None:
    """Each client leaves after so many chunks; the upstream keeps a log of what it told."""
    log: dict[str, tuple[str, int, int]] = {}
    left: dict[str, asyncio.Event] = {}
    finished: dict[str, asyncio.Event] = {}

    async def script(exchange: Exchange) -> None:
        name = exchange.request.json["messages"][0]["content"]
        number = int(name)
        tokens = (5 + number, 1000 + number)
        await exchange.head(content_type="text/event-stream", transfer_encoding="chunked")
        for part in [ROLE, *[A] * (number % 7)]:
            await exchange.chunk(part)
        await left[name].wait()
        for part in [A, A, event(finish="stop"), usage_event(*tokens), b"data: [DONE]\n\n"]:
            await exchange.chunk(part)
        log[name] = ("drained", *tokens)
        await exchange.end()
        finished[name].set()

    upstream.script = script
    async with place(folder, upstream) as here:
        turns = asyncio.Semaphore(drains.AT_ONCE // 2)

        async def client(number: int) -> None:
            name = str(number)
            left[name], finished[name] = asyncio.Event(), asyncio.Event()
            async with turns:
                body = {**STREAM, "messages": [{"role": "user", "content": name}]}
                line = await here.dial(name, body)
                seen = number % 7
                await line.until(ROLE)
                while line.received.count(A) < seen:
                    line.received += await asyncio.wait_for(line.reader.read(65536), 20)
                await line.hang_up()
                await asyncio.sleep(0.05)
                left[name].set()
                await asyncio.wait_for(finished[name].wait(), 20)

        async with asyncio.TaskGroup() as tasks:
            for number in range(count):
                tasks.create_task(client(number))
        await here.settled()
        rows = await here.gateway.rows(count)
    assert {row["client_request_id"]: counts(row) for row in rows} == log
    assert len(rows) == count == len(upstream.calls)
    assert {(row["status"], row["client_status"]) for row in rows} == {("cancelled", 499)}
    assert {row["is_final"] for row in rows} == {1}


async def test_of_200_who_leave_each_row_says_what_the_upstream_said(
    tmp_path: Path, upstream: Upstream
) -> None:
    await leave_by_the_dozen(tmp_path, upstream, 200)


@pytest.mark.soak
async def test_of_1000_who_leave_each_row_says_what_the_upstream_said(
    tmp_path: Path, upstream: Upstream
) -> None:
    await leave_by_the_dozen(tmp_path, upstream, 1000)


@pytest.mark.parametrize("mode", ["drain", "drain_for 20s", {"drain_for": "20s"}])
async def test_an_answer_is_read_on_to_its_usage(
    tmp_path: Path, upstream: Upstream, mode: Any
) -> None:
    async with place(tmp_path, upstream, mode) as here:
        here.script(ROLE, A, after=TAIL)
        row = await here.drained()
        assert counts(row) == ("drained", 70, 900)
        assert (row["chunk_count"], row["finish_reason"]) == (2, "stop")
        await here.settled()
        connections = upstream.connections
        upstream.script = completion()
        assert (await here.gateway.chat("lab/json")).status_code == 200
        assert upstream.connections == connections, "the drained connection was not kept"


async def test_cancel_lets_go_of_the_upstream_at_once(tmp_path: Path, upstream: Upstream) -> None:
    async with place(tmp_path, upstream, "cancel") as here:
        here.upstream.script = stream([ROLE, A], ends="hang")
        assert counts(await here.drained())[::2] == ("estimated", 1)
        await here.settled()


async def test_the_key_is_in_use_until_the_drain_ends(tmp_path: Path, upstream: Upstream) -> None:
    async with place(tmp_path, upstream) as here:
        here.script(ROLE, A, after=TAIL)
        line = await here.dial("one")
        await line.until(A)
        await line.hang_up()
        await asyncio.sleep(0.1)
        assert await here.in_flight() == 1
        assert not here.gateway.select("SELECT * FROM api_calls")
        here.left.set()
        await here.settled()
        assert len(await here.gateway.rows()) == 1


async def test_a_drain_waits_for_the_first_byte(tmp_path: Path, upstream: Upstream) -> None:
    async with place(tmp_path, upstream) as here:

        async def script(exchange: Exchange) -> None:
            await here.left.wait()
            await stream([ROLE, A, *TAIL])(exchange)

        upstream.script = script
        assert counts(await here.drained(sees=b"")) == ("drained", 70, 900)
        await here.settled()


async def test_a_plain_answer_is_waited_for(tmp_path: Path, upstream: Upstream) -> None:
    async with place(tmp_path, upstream) as here:

        async def script(exchange: Exchange) -> None:
            await here.left.wait()
            await completion(prompt=70, output=900)(exchange)

        upstream.script = script
        row = await here.drained(body={**STREAM, "stream": False}, sees=b"")
        assert counts(row) == ("drained", 70, 900)
        await here.settled()


async def test_nothing_is_tried_again_for_who_has_left(tmp_path: Path, upstream: Upstream) -> None:
    async with place(tmp_path, upstream) as here:

        async def script(exchange: Exchange) -> None:
            await here.left.wait()
            await error(500, "boom")(exchange)

        upstream.script = script
        row = await here.drained(body={**STREAM, "model": "two/m"}, sees=b"")
        assert (row["attempt"], row["http_status"], row["usage_source"]) == (1, 500, "none")
        assert len(upstream.calls) == 1
        await here.settled()


async def test_what_a_drain_meets_is_learnt(tmp_path: Path, upstream: Upstream) -> None:
    """A key that is refused rests, though nobody waits for its answer."""
    async with place(tmp_path, upstream) as here:

        async def script(exchange: Exchange) -> None:
            await here.left.wait()
            await error(429, "slow down", retry_after="60")(exchange)

        upstream.script = script
        await here.drained(sees=b"")
        keys = (await here.gateway.client.get("/stats/keys")).json()["data"]
        assert "cooling" in {key["state"] for key in keys if key["provider"] == "lab"}


async def test_a_drained_stream_may_end_in_an_error(tmp_path: Path, upstream: Upstream) -> None:
    broken = b'data: {"error": {"message": "boom", "code": 500}}\n\n'
    async with place(tmp_path, upstream) as here:
        here.script(ROLE, A, after=[broken])
        row = await here.drained()
        assert counts(row)[::2] == ("estimated", 1)
        await here.settled()


async def test_a_drain_ends_with_an_upstream_that_breaks(
    tmp_path: Path, upstream: Upstream
) -> None:
    async with place(tmp_path, upstream) as here:
        here.script(ROLE, A, after=TAIL[:1], ends="cut")
        assert counts(await here.drained())[::2] == ("estimated", 2)
        await here.settled()


async def test_a_drain_ends_with_an_upstream_that_idles(tmp_path: Path, upstream: Upstream) -> None:
    async with place(tmp_path, upstream, "drain", timeouts={"idle": "200ms"}) as here:
        upstream.script = stream([ROLE, A], ends="hang")
        assert counts(await here.drained())[::2] == ("estimated", 1)
        await here.settled()


@pytest.mark.parametrize("script", [hang, stream([ROLE, A], ends="hang")])
async def test_a_drain_ends_when_its_time_is_over(
    tmp_path: Path, upstream: Upstream, script: Any
) -> None:
    async with place(tmp_path, upstream, "drain_for 200ms") as here:
        upstream.script = script
        row = await here.drained(sees=b"" if script is hang else A)
        assert row["usage_source"] == ("none" if script is hang else "estimated")
        await here.settled()


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_drain_ends_after_so_many_bytes(
    tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    monkeypatch.setattr(outbound, "MAX_DRAINED", 20_000)
    kind = "text/event-stream" if streamed else "application/json"
    async with place(tmp_path, upstream) as here:

        async def script(exchange: Exchange) -> None:
            await exchange.head(content_type=kind, transfer_encoding="chunked")
            await exchange.chunk(A)
            await here.left.wait()
            while True:
                await exchange.chunk(event({"content": "x" * 1000}))

        upstream.script = script
        row = await here.drained(body={**STREAM, "stream": streamed}, sees=A if streamed else b"")
        assert row["usage_source"] == ("estimated" if streamed else "none")
        await here.settled()
        keys = (await here.gateway.client.get("/stats/keys")).json()["data"]
        assert {key["state"] for key in keys} == {"healthy"}


async def test_more_than_so_many_at_a_time_are_not_read_on(
    tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drains, "AT_ONCE", 2)
    async with place(tmp_path, upstream) as here:
        here.script(ROLE, A, after=TAIL)
        for name in ("one", "two", "three"):
            line = await here.dial(name)
            await line.until(A)
            await line.hang_up()
            await asyncio.sleep(0.05)
        assert counts(await here.gateway.attempt("three"))[::2] == ("estimated", 1)
        assert await here.in_flight() == 2
        here.left.set()
        for name in ("one", "two"):
            assert counts(await here.gateway.attempt(name)) == ("drained", 70, 900)
        await here.settled()
        here.left.clear()
        assert counts(await here.drained("four")) == ("drained", 70, 900)


async def test_who_waits_for_a_key_leaves_nothing_to_read(
    tmp_path: Path, upstream: Upstream
) -> None:
    config = {
        "providers": {"lab": lab(upstream.url, limits={"models": {"*": {"concurrency": 1}}})},
        "routing": {"max_wait": "20s"},
    }
    async with running(tmp_path, config) as gateway:
        upstream.script = hang
        first = await gateway.dial(STREAM, "x-request-id: first")
        await upstream.asked()
        second = await gateway.dial(STREAM, "x-request-id: second")
        await asyncio.sleep(0.05)
        await second.hang_up()
        row = await gateway.attempt("second")
        assert (row["status"], row["usage_source"]) == ("cancelled", "none")
        assert len(upstream.calls) == 1
        await first.hang_up()


async def test_a_stop_ends_a_drain_and_keeps_its_row(tmp_path: Path, upstream: Upstream) -> None:
    upstream.script = stream([ROLE, A], ends="hang")
    async with place(tmp_path, upstream, "drain") as here:
        line = await here.dial("one")
        await line.until(A)
        await line.hang_up()
        await asyncio.sleep(0.05)
        assert await here.in_flight() == 1
    [row] = here.gateway.select("SELECT * FROM api_calls")
    assert (row["status"], row["client_status"]) == ("cancelled", 499)
    assert counts(row)[::2] == ("estimated", 1)


async def test_usage_that_had_come_before_is_the_provider_s(
    tmp_path: Path, upstream: Upstream
) -> None:
    async with place(tmp_path, upstream) as here:
        here.script(ROLE, event(finish="stop"), usage_event(70, 900), A)
        row = await here.drained()
        assert counts(row)[1:] == (70, 900)
        assert row["usage_source"] == "provider"


async def test_a_client_may_stop_reading_before_it_leaves(
    tmp_path: Path, upstream: Upstream
) -> None:
    big = event({"content": "x" * 65536})
    async with place(tmp_path, upstream) as here:
        sent = 0

        async def script(exchange: Exchange) -> None:
            nonlocal sent
            await exchange.head(content_type="text/event-stream", transfer_encoding="chunked")
            while sent < 400 and not here.left.is_set():
                await exchange.chunk(big)
                sent += 1
            for part in TAIL:
                await exchange.chunk(part)
            await exchange.end()

        upstream.script = script
        line = await here.dial("one")
        line.writer.transport.pause_reading()
        before = -1
        while sent != before:
            before = sent
            await asyncio.sleep(0.05)
        assert sent < 400
        here.left.set()  # what is on its way is less than what is read on at most
        await here.leave(line)
        row = await here.gateway.attempt("one")
        assert (row["status"], *counts(row)) == ("cancelled", "drained", 70, 900)
        await here.settled()


async def test_a_drained_row_is_told_as_waste(tmp_path: Path, upstream: Upstream) -> None:
    async with place(tmp_path, upstream) as here:
        here.script(*words("a")[:2], after=TAIL)
        await here.drained()
        waste = json.dumps((await here.gateway.client.get("/stats/waste")).json())
        assert "970" in waste
