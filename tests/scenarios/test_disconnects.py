"""A client may leave at any moment: with ``on_disconnect: cancel`` nothing goes on for it, and its
row says what was seen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.gateway import Gateway, Line, lab, running
from tests.upstream import (
    Exchange,
    Upstream,
    completion,
    error,
    event,
    hang,
    stream,
    upstream_server,
    words,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

STREAM = {"model": "lab/json", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
ROLE = event({"role": "assistant", "content": ""})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[tuple[Gateway, Upstream]]:
    async with upstream_server() as upstream:
        config = {
            "providers": {
                "lab": lab(upstream.url),
                "two": lab(upstream.url, "sk-two-1", "sk-two-2"),
            },
            "prices": {"lab/json": {"input": 0.5, "output": 1.5}},
            "server": {"peek": "100ms", "on_disconnect": "cancel"},
        }
        async with running(tmp_path_factory.mktemp("disconnects"), config) as gateway:
            yield gateway, upstream


@pytest.fixture
def gateway(place: tuple[Gateway, Upstream]) -> Gateway:
    return place[0]


@pytest.fixture
def upstream(place: tuple[Gateway, Upstream]) -> Upstream:
    place[1].reset()
    return place[1]


class Leaver:
    """Knows how it was before a call, and checks that all is as before once its client has left."""

    def __init__(self, gateway: Gateway, upstream: Upstream, name: str) -> None:
        self.gateway, self.upstream, self.name = gateway, upstream, name
        self.tasks = 0

    async def dial(self, body: Any, *fields: str) -> Line:
        self.tasks = len(asyncio.all_tasks())
        return await self.gateway.dial(body, f"x-request-id: {self.name}", *fields)

    async def leaves(self, line: Line) -> list[dict[str, Any]]:
        await line.hang_up()
        for _ in range(100):  # a second
            if not self.upstream.open and len(asyncio.all_tasks()) <= self.tasks:
                break
            await asyncio.sleep(0.01)
        assert not self.upstream.open, "the upstream is still working"
        assert len(asyncio.all_tasks()) <= self.tasks, asyncio.all_tasks()
        keys = (await self.gateway.client.get("/stats/keys")).json()["data"]
        assert {key["in_flight"] for key in keys} == {0}
        assert {key["state"] for key in keys} == {"healthy"}
        rows = await self.gateway.attempts(self.name)
        last = rows[-1]
        assert (last["status"], last["error_reason"]) == ("cancelled", "client_closed")
        assert (last["client_status"], last["is_final"]) == (499, 1)
        return rows


@pytest.fixture
def leaver(gateway: Gateway, upstream: Upstream, request: pytest.FixtureRequest) -> Leaver:
    return Leaver(gateway, upstream, request.node.name[:120])


async def test_a_client_may_leave_before_the_upstream_answers(
    leaver: Leaver, upstream: Upstream
) -> None:
    upstream.script = hang
    line = await leaver.dial(STREAM)
    await upstream.asked()
    [row] = await leaver.leaves(line)
    assert (row["http_status"], row["output_tokens"]) == (None, None)
    assert (row["usage_source"], row["cost_estimate_usd"]) == ("none", None)
    assert (row["key_id"], row["model"], row["prompt_length"]) == ("k1", "json", 5)
    assert row["total_duration_ms"] > 0


async def test_a_client_may_leave_while_the_head_is_held_back(
    leaver: Leaver, upstream: Upstream
) -> None:
    upstream.script = stream([ROLE], ends="hang")
    line = await leaver.dial(STREAM)
    await upstream.asked()
    await asyncio.sleep(0.02)
    [row] = await leaver.leaves(line)
    assert line.received == b""
    assert row["time_to_first_token_ms"] is None


async def test_a_client_may_leave_between_the_head_and_the_first_token(
    leaver: Leaver, upstream: Upstream
) -> None:
    upstream.script = stream([ROLE], ends="hang")
    line = await leaver.dial(STREAM)
    await line.until(ROLE)
    [row] = await leaver.leaves(line)
    assert (row["http_status"], row["time_to_first_token_ms"]) == (200, None)
    assert row["ttfb_ms"] > 0
    assert row["output_tokens"] is None


async def test_a_client_that_leaves_in_mid_stream_is_counted_for_what_it_saw(
    leaver: Leaver, upstream: Upstream
) -> None:
    upstream.script = stream([ROLE, *(event({"content": t}) for t in "abc")], ends="hang")
    line = await leaver.dial(STREAM)
    await line.until(event({"content": "c"}))
    [row] = await leaver.leaves(line)
    assert (row["output_tokens"], row["chunk_count"], row["response_length"]) == (3, 3, 3)
    assert row["input_tokens"] > 0
    assert row["total_tokens"] == row["input_tokens"] + 3
    assert (row["usage_source"], row["cost_source"]) == ("estimated", "config")
    assert row["cost_estimate_usd"] > 0
    assert row["time_to_first_token_ms"] > 0
    assert (row["finish_reason"], row["success"]) == (None, 0)


async def test_a_client_may_leave_while_it_is_still_sending(
    leaver: Leaver, upstream: Upstream
) -> None:
    line = await leaver.dial(b'{"model": "lab/', "content-length: 100000")
    await asyncio.sleep(0.02)
    [row] = await leaver.leaves(line)
    assert not upstream.calls
    assert (row["attempt"], row["key_id"], row["requested_model"]) == (1, None, None)


async def test_a_client_may_leave_in_the_middle_of_a_body(
    leaver: Leaver, upstream: Upstream
) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head(content_type="application/json", content_length="1000")
        await exchange.send(b'{"choices":[')
        await exchange.gone.wait()

    upstream.script = script
    line = await leaver.dial({**STREAM, "stream": False})
    await upstream.asked()
    await asyncio.sleep(0.02)
    [row] = await leaver.leaves(line)
    assert (row["http_status"], row["is_stream"]) == (200, 0)


async def test_a_client_may_leave_during_the_second_try(leaver: Leaver, upstream: Upstream) -> None:
    upstream.script = hang
    upstream.by_key["sk-two-1"] = error(500, "boom")
    line = await leaver.dial({**STREAM, "model": "two/m"})
    await upstream.asked(2)
    failed, left = await leaver.leaves(line)
    assert (failed["error_reason"], failed["is_final"]) == ("server_error", 0)
    assert (failed["key_id"], left["key_id"]) == ("k1", "k2")


async def test_a_client_that_stops_reading_holds_the_upstream_up_and_may_leave(
    leaver: Leaver, upstream: Upstream
) -> None:
    sent = 0

    async def script(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.head(content_type="text/event-stream", transfer_encoding="chunked")
        while True:
            await exchange.chunk(event({"content": "x" * 65536}))
            sent += 1

    upstream.script = script
    line = await leaver.dial(STREAM)
    line.writer.transport.pause_reading()
    before = -1
    while sent != before:  # until nobody takes any more
        before = sent
        await asyncio.sleep(0.05)
    assert sent < 1000, "somebody holds all that a client does not read"
    [row] = await leaver.leaves(line)
    assert row["chunk_count"] > 0


async def test_a_client_that_leaves_after_the_end_was_served(
    gateway: Gateway, upstream: Upstream
) -> None:
    """Clients go at ``[DONE]``; the end of the transfer may come after that, or never."""
    upstream.script = stream(words("a", "b"), ends="hang")
    line = await gateway.dial(STREAM, "x-request-id: served")
    await line.until(b"[DONE]")
    await line.hang_up()
    row = await gateway.attempt("served")
    assert (row["status"], row["error_reason"]) == ("success", None)
    assert (row["output_tokens"], row["usage_source"]) == (2, "provider")


async def test_the_gateway_serves_on_after_all_that(gateway: Gateway, upstream: Upstream) -> None:
    upstream.script = completion("still here")
    got = await gateway.chat("lab/json")
    assert got.json()["choices"][0]["message"]["content"] == "still here"
    totals = (await gateway.client.get("/stats")).json()["totals"]
    assert totals["cancelled"] >= 5
    assert totals["errors"] == 0


async def test_a_client_that_leaves_because_of_an_error_was_not_the_cause(
    gateway: Gateway, upstream: Upstream
) -> None:
    """OpenAI's clients hang up on an error event, while the upstream may still be there."""
    broken = b'data: {"error": {"message": "out of memory", "code": 500}}\n\n'
    upstream.script = stream([ROLE, event({"content": "a"}), 0.05, broken], ends="hang")
    line = await gateway.dial(STREAM, "x-request-id: told")
    await line.until(b"out of memory")
    await line.hang_up()
    row = await gateway.attempt("told")
    assert (row["status"], row["error_reason"]) == ("error", "stream_error")
