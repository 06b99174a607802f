"""The upstream client in time: deadlines, callers and servers that leave, back-pressure."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import AsyncIterator
from contextlib import suppress

import httpx
import pytest

from proxy.providers.transport import Transport
from tests.providers.sockets import (
    CHUNKED,
    OK,
    Peer,
    always,
    body_of,
    deaf,
    fetch,
    idle,
    listening,
    post,
    rest,
    until,
)

# Deadlines.


async def test_an_answer_that_does_not_begin_in_time(client: Transport) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nx:")
        await peer.gone()

    async with listening(script) as server:
        with pytest.raises(httpx.ReadTimeout, match="an answer"):
            await fetch(client, post(server.url, first_byte=0.03))
        await until(lambda: server.peers[0].left)
        assert not client._open
        assert len(server.requests) == 1


async def test_the_time_to_the_first_byte_is_the_time_between_chunks_if_not_given(
    client: Transport,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.gone()

    async with listening(script) as server:
        request = post(server.url)
        request.extensions["timeout"] = {"connect": 5.0, "read": 0.03, "write": 5.0, "pool": 5.0}
        with pytest.raises(httpx.ReadTimeout, match="an answer"):
            await fetch(client, request)


@pytest.mark.parametrize(
    "crumbs", [b"", b"2;ext=" + b"e" * 1000], ids=["nothing", "framing without content"]
)
async def test_a_stream_that_stops_ends_in_a_timeout(client: Transport, crumbs: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED, b"2\r\nhi\r\n")
        for index in range(len(crumbs)):
            await peer.send(crumbs[index : index + 1])
            await asyncio.sleep(0.005)
        await peer.gone()

    async with listening(script) as server:
        response = await client.handle_async_request(post(server.url, read=0.05))
        chunks = aiter(body_of(response))
        assert await anext(chunks) == b"hi"
        with pytest.raises(httpx.ReadTimeout, match="the next chunk"):
            await anext(chunks)
        await until(lambda: server.peers[0].left)
        assert not client._open


async def test_a_trickle_within_the_limit_is_no_timeout(client: Transport) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED)
        for _ in range(12):
            await asyncio.sleep(0.2)
            await peer.send(b"1\r\nx\r\n")
        await peer.send(b"0\r\n\r\n")

    async with listening(script) as server:
        assert await fetch(client, post(server.url, first_byte=2, read=2)) == b"x" * 12


async def test_a_reader_may_take_its_time(client: Transport) -> None:
    async with listening(always(CHUNKED, b"2\r\nhi\r\n", b"2\r\nho\r\n0\r\n\r\n")) as server:
        response = await client.handle_async_request(post(server.url, read=0.02))
        await asyncio.sleep(0.05)
        chunks = aiter(body_of(response))
        text = await anext(chunks)
        await asyncio.sleep(0.05)
        text += b"".join([chunk async for chunk in chunks])
        assert text == b"hiho"


async def test_a_deadline_that_has_passed_in_peace_does_not_end_the_next_exchange(
    client: Transport,
) -> None:
    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await asyncio.sleep(0.6 if len(server.requests) == 2 else 0)
            await peer.send(OK)

    async with listening(script) as server:
        await fetch(client, post(server.url, first_byte=0.5))
        assert await fetch(client, post(server.url, first_byte=5.0)) == b"ok"
        assert len(server.peers) == 1


# Given up.


async def test_cancelled_while_connecting(client: Transport) -> None:
    with deaf() as port:
        task = asyncio.ensure_future(fetch(client, post(f"http://127.0.0.1:{port}/v1")))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not client._open
    gc.collect()  # a socket that nobody closed warns, and a warning is a failure


@pytest.mark.parametrize("sent", [b"", CHUNKED[:20], CHUNKED + b"2\r\nhi\r\n"])
async def test_cancelled_while_the_server_is_at_work(client: Transport, sent: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(sent)
        await peer.gone()

    async def call() -> None:
        response = await client.handle_async_request(post(server.url))
        try:
            await rest(response)
        finally:
            await response.aclose()

    async with listening(script) as server:
        task = asyncio.ensure_future(call())
        await until(lambda: server.requests)
        await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: server.peers[0].left)
        assert not client._open
        assert idle(client) == 0


async def test_cancelled_at_any_step(client: Transport) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED)
        await peer.send(b"2\r\nhi\r\n")
        await peer.send(b"0\r\n\r\n")
        await peer.gone()

    async def call() -> None:
        response = await client.handle_async_request(post(server.url))
        try:
            await rest(response)
        finally:
            await response.aclose()

    async with listening(script) as server:
        for steps in range(25):
            task = asyncio.ensure_future(call())
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await until(lambda: len(client._open) == idle(client))
            for connection in list(client._open):
                connection.abort()
        await until(lambda: all(peer.left for peer in server.peers))
        assert not client._open


async def test_leaving_a_body_closes_its_connection(client: Transport) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED, b"2\r\nhi\r\n")
        await peer.gone()

    async with listening(script) as server:
        response = await client.handle_async_request(post(server.url))
        assert await anext(aiter(body_of(response))) == b"hi"
        await response.aclose()
        await response.aclose()
        await until(lambda: server.peers[0].left)
        assert not client._open


async def test_leaving_a_body_that_has_arrived_keeps_its_connection(client: Transport) -> None:
    async with listening(always(OK)) as server:
        for _ in range(3):
            response = await client.handle_async_request(post(server.url))
            await until(lambda: idle(client) == 1)
            await response.aclose()
        assert len(server.peers) == 1


async def test_closing_the_client_ends_what_is_under_way_and_sends_nothing_again() -> None:
    client = Transport()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        await peer.gone()

    async with listening(script) as server:
        await fetch(client, post(server.url))
        task = asyncio.ensure_future(fetch(client, post(server.url)))
        await until(lambda: len(server.requests) == 2)
        await client.aclose()
        with pytest.raises(httpx.ReadError, match="was closed"):
            await task
        await until(lambda: not client._open)
        assert len(server.peers) == 1


# Half-closed: a server that has said its last is hung up on.


async def test_the_end_of_a_connection_ends_a_body_that_nothing_else_ends(
    client: Transport,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nall of it")
        peer.half_close()
        await peer.gone()

    async with listening(script) as server:
        assert await fetch(client, post(server.url)) == b"all of it"
        await until(lambda: server.peers[0].left)
        assert not client._open


@pytest.mark.parametrize("way", ["close", "reset", "half_close"])
@pytest.mark.parametrize(
    "answer",
    [CHUNKED + b"2\r\nhi\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi"],
    ids=["chunked", "sized"],
)
async def test_a_body_that_is_cut_off_is_an_error(
    client: Transport, answer: bytes, way: str
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer)
        await until(lambda: received)
        getattr(peer, way)()
        await peer.gone()

    received: list[bytes] = []
    async with listening(script) as server:
        response = await client.handle_async_request(post(server.url))
        chunks = aiter(body_of(response))
        received.append(await anext(chunks))
        with pytest.raises(httpx.RemoteProtocolError, match="cut its answer off"):
            await anext(chunks)
        assert received == [b"hi"]
        assert not client._open
        assert len(server.requests) == 1


async def test_a_reset_ends_no_body_that_only_a_close_can_end(client: Transport) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\npart")
        await until(lambda: received)
        peer.reset()

    received: list[bytes] = []
    async with listening(script) as server:
        response = await client.handle_async_request(post(server.url))
        chunks = aiter(body_of(response))
        received.append(await anext(chunks))
        with pytest.raises(httpx.RemoteProtocolError, match="cut its answer off"):
            await anext(chunks)


async def test_a_half_close_on_an_idle_connection_closes_it(client: Transport) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        peer.half_close()
        await peer.gone()

    async with listening(script) as server:
        await fetch(client, post(server.url))
        await until(lambda: server.peers[0].left)
        assert idle(client) == 0


# Back-pressure.


async def test_a_reader_that_stops_stops_the_server(client: Transport) -> None:
    size = 50 * 1024 * 1024
    piece = b"x" * 65_536
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        while sent < size:
            await peer.send(piece)
            sent += len(piece)
        await peer.gone()

    async with listening(script) as server:
        response = await client.handle_async_request(post(server.url))
        chunks = aiter(body_of(response))
        got = len(await anext(chunks))
        before = -1
        while before != sent:
            before = sent
            await asyncio.sleep(0.03)
        assert sent < size / 2  # what the kernel's buffers hold, and not the rest
        assert body_of(response)._size <= 768 * 1024
        async for chunk in chunks:
            got += len(chunk)
        assert got == size


async def test_an_answer_before_the_end_of_the_request_counts_and_the_rest_is_not_sent(
    client: Transport,
) -> None:
    answer = b"HTTP/1.1 413 Large\r\ncontent-length: 2\r\n\r\nno"

    async def script(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await peer.send(answer)
        await asyncio.Event().wait()

    async with listening(script) as server:
        response = await client.handle_async_request(post(server.url, b"x" * 32 * 1024 * 1024))
        assert response.status_code == 413
        assert await rest(response) == [b"no"]
        await until(lambda: not client._open)
        assert idle(client) == 0


async def test_a_large_request_arrives_whole(client: Transport) -> None:
    async with listening(always(OK)) as server:
        body = random.Random(1).randbytes(4 * 1024 * 1024)
        assert await fetch(client, post(server.url, body)) == b"ok"
        assert server.requests[0].endswith(b"\r\n\r\n" + body)


async def test_a_request_may_have_a_body_that_is_read_first(client: Transport) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"

    async with listening(always(OK)) as server:
        request = httpx.Request("POST", server.url, content=parts())
        assert await fetch(client, request) == b"ok"
        assert server.requests[0].endswith(b"content-length: 6\r\n\r\nonetwo")
