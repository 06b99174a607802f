"""The upstream client against servers that break the rules: never a hang, never a wrong answer."""

from __future__ import annotations

import asyncio
import tracemalloc
from contextlib import suppress

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.providers.head import MAX_FIELDS
from proxy.providers.transport import Transport
from tests.providers.sockets import (
    CHUNKED,
    OK,
    Line,
    Peer,
    always,
    body_of,
    fetch,
    listening,
    once,
    post,
    rest,
    until,
)

HEAD = b"HTTP/1.1 200 OK\r\n"
LENGTH = b"content-length: 5\r\n"
CHUNKS = b"transfer-encoding: chunked\r\n"


# Every way of cutting an answer into reads.

ANSWERS = {
    "sized": (HEAD + b"Content-Length: 4\r\n\r\nabcd", b"abcd", True),
    "empty": (HEAD + b"content-length: 0\r\n\r\n", b"", True),
    "chunked": (CHUNKED + b"3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n", b"abcd", True),
    "extensions": (
        CHUNKED + b'3;a=b;c="d e"\r\nabc\r\n01;x\r\nd\r\n000;last\r\n\r\n',
        b"abcd",
        True,
    ),
    "trailers": (CHUNKED + b"4\r\nabcd\r\n0\r\nx-sum: 1\r\nx-end: yes\r\n\r\n", b"abcd", True),
    "upper case sizes": (CHUNKED + b"0A\r\n0123456789\r\n0\r\n\r\n", b"0123456789", True),
    "interim answers": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
        + HEAD
        + b"content-length: 4\r\n\r\nabcd",
        b"abcd",
        True,
    ),
    "no content": (b"HTTP/1.1 204 No Content\r\nx: y\r\n\r\n", b"", True),
    "not modified": (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n", b"", True),
    "empty lines before": (b"\r\n\r\n" + HEAD + b"content-length: 4\r\n\r\nabcd", b"abcd", True),
    "closing": (
        HEAD + b"Connection: close\r\ncontent-length: 4\r\n\r\nabcd",
        b"abcd",
        False,
    ),
    "old": (b"HTTP/1.0 200 OK\r\ncontent-length: 4\r\n\r\nabcd", b"abcd", False),
    "old and kept": (
        b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 4\r\n\r\nabcd",
        b"abcd",
        True,
    ),
    "offering another protocol": (
        HEAD + b"upgrade: h2c\r\nconnection: upgrade\r\ncontent-length: 4\r\n\r\nabcd",
        b"abcd",
        True,
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_is_the_same_wherever_its_reads_end(client: Transport, name: str) -> None:
    answer, body, kept = ANSWERS[name]
    ways = [[answer[:cut], answer[cut:]] for cut in range(len(answer))]
    ways.append([answer[i : i + 1] for i in range(len(answer))])
    for reads in ways:
        line = Line(client)
        status, got = await line.ask(*reads)
        assert status >= 200
        assert got == body
        assert line.closed is not kept
        if kept:
            assert await line.ask(OK) == (200, b"ok")
        line.abort()


async def test_an_answer_may_come_byte_by_byte(client: Transport) -> None:
    answer = ANSWERS["trailers"][0]
    async with listening(always(*(answer[i : i + 1] for i in range(len(answer))))) as server:
        assert await fetch(client, post(server.url)) == b"abcd"
        assert await fetch(client, post(server.url)) == b"abcd"
        assert len(server.peers) == 1


@pytest.mark.parametrize("name", [name for name, (_, _, kept) in ANSWERS.items() if not kept])
async def test_a_connection_that_is_not_kept_is_closed(client: Transport, name: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(ANSWERS[name][0])
        await peer.gone()

    async with listening(script) as server:
        for _ in range(2):
            assert await fetch(client, post(server.url)) == b"abcd"
        assert len(server.peers) == 2
        await until(lambda: all(peer.left for peer in server.peers))


async def test_a_body_without_a_length_ends_with_the_connection(client: Transport) -> None:
    async with listening(once(HEAD + b"\r\nab", b"cd")) as server:
        assert await fetch(client, post(server.url)) == b"abcd"
        assert not client._open


# What is not HTTP, or is in doubt.

MALFORMED = {
    "not HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "TLS": b"\x15\x03\x01\x00\x02\x02F",
    "HTTP/2": b"\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0d",
    "a page": b"<html>\r\n\r\n",
    "another version": b"HTTP/3.1 200 OK\r\n\r\n",
    "no status": b"HTTP/1.1 \r\n\r\n",
    "a status of two digits": b"HTTP/1.1 99 X\r\n\r\n",
    "a status of nothing": b"HTTP/1.1 000 X\r\ncontent-length: 0\r\n\r\n",
    "another protocol": b"HTTP/1.1 101 X\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\nPRI",
    "another protocol unasked": b"HTTP/1.1 101 X\r\n\r\n" + OK,
    "bare line feeds": b"HTTP/1.1 200 OK\ncontent-length: 2\n\nok",
    "a bare carriage return": HEAD + b"x: a\rset-cookie: b\r\n\r\n",
    "a NUL": HEAD + b"x: a\0b\r\n\r\n",
    "a folded line": HEAD + b"x: a\r\n b\r\n\r\n",
    "a field without a name": HEAD + b": a\r\n\r\n",
    "a space after a name": HEAD + b"content-length : 2\r\n\r\nok",
    "no colon": HEAD + b"content-length\r\n\r\n",
    "two lengths": HEAD + b"content-length: 2\r\ncontent-length: 2\r\n\r\nok",
    "two different lengths": HEAD + b"content-length: 2\r\ncontent-length: 3\r\n\r\nok!",
    "a list of lengths": HEAD + b"content-length: 2, 2\r\n\r\nok",
    "a signed length": HEAD + b"content-length: +2\r\n\r\nok",
    "a negative length": HEAD + b"content-length: -2\r\n\r\nok",
    "a hexadecimal length": HEAD + b"content-length: 0x2\r\n\r\nok",
    "an empty length": HEAD + b"content-length:\r\n\r\nok",
    "a huge length": HEAD + b"content-length: 99999999999999999999\r\n\r\nok",
    "a length and chunks": HEAD + LENGTH + CHUNKS + b"\r\n0\r\n\r\n",
    "chunks and a length": HEAD + CHUNKS + LENGTH + b"\r\n0\r\n\r\n",
    "gzip as framing": HEAD + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "an unknown framing": HEAD + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked not last": HEAD + b"transfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "an endless reason": b"HTTP/1.1 200 " + b"O" * 1_000_000,
    "an endless name": HEAD + b"x" * 1_000_000,
    "an endless value": HEAD + b"x: " + b"y" * 1_000_000,
    "a head of a megabyte": HEAD + b"x: " + b"y" * 1_000_000 + b"\r\ncontent-length: 2\r\n\r\nok",
    "ten thousand fields": HEAD + b"a: b\r\n" * 10_000 + b"content-length: 2\r\n\r\nok",
    "one field too many": HEAD + b"a: b\r\n" * MAX_FIELDS + b"content-length: 2\r\n\r\nok",
    "interim answers without end": b"HTTP/1.1 100 Continue\r\n\r\n" * 40_000,
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_what_is_no_answer_is_an_error_and_ends_the_connection(
    client: Transport, name: str
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(MALFORMED[name])
        await peer.gone()

    async with listening(script) as server:
        with pytest.raises(httpx.RemoteProtocolError):
            await fetch(client, post(server.url))
        await until(lambda: server.peers[0].left)
        assert not client._open
        assert len(server.requests) == 1


BROKEN_CHUNKS = {
    "a prefix": b"0x2\r\nno\r\n",
    "a sign": b"+2\r\nno\r\n",
    "a minus": b"-2\r\nno\r\n",
    "no digit": b"\r\nno\r\n",
    "no number": b"zz\r\nno\r\n",
    "a space": b"2 \r\nno\r\n",
    "a space before": b" 2\r\nno\r\n",
    "an overflow": b"FFFFFFFFFFFFFFFFF\r\nno\r\n",
    "a bare line feed": b"2\nno\r\n",
    "too long a chunk": b"2\r\nnot\r\n",
    "a line break in an extension": b'2;a="x\r\ny"\r\nno\r\n',
    "a length among the trailers": b"0\r\ncontent-length: 5\r\n\r\n",
    "a malformed trailer": b"0\r\nx y\r\n\r\n",
    "a trailer without end": b"0\r\nx: " + b"y" * 1_000_000,
    "an extension without end": b"2;" + b"y" * 1_000_000,
    "trailers without end": b"0\r\n" + b"x: y\r\n" * 200_000,
}


@pytest.mark.parametrize("name", BROKEN_CHUNKS)
async def test_what_was_right_is_handed_on_before_what_is_wrong(
    client: Transport, name: str
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED, b"2\r\nok\r\n", BROKEN_CHUNKS[name])
        await peer.gone()

    got = bytearray()

    async def read(response: httpx.Response) -> None:
        async for chunk in body_of(response):
            got.extend(chunk)

    async with listening(script) as server:
        response = await client.handle_async_request(post(server.url))
        with pytest.raises(httpx.RemoteProtocolError):
            await read(response)
        assert got.startswith(b"ok")
        assert b"y" not in got
        await until(lambda: server.peers[0].left)
        assert not client._open


async def test_a_length_that_is_too_long_is_an_answer_cut_off(client: Transport) -> None:
    async with listening(once(HEAD + b"content-length: 5\r\n\r\nok")) as server:
        with pytest.raises(httpx.RemoteProtocolError, match="cut"):
            await fetch(client, post(server.url))


SURPLUS = {
    "more body": b"more",
    "half a line": b"HT",
    "a second answer": OK,
    "the beginning of a second answer": HEAD,
    "chunks after a 204": b"0\r\n\r\n",
}


@pytest.mark.parametrize("name", SURPLUS)
@pytest.mark.parametrize("together", [True, False], ids=["in one read", "in the next"])
async def test_what_comes_after_an_answer_ends_the_connection(
    client: Transport, name: str, together: bool
) -> None:
    """Else it would be taken for the answer to the next request."""
    line = Line(client)
    reads = [OK + SURPLUS[name]] if together else [OK, SURPLUS[name]]
    assert await line.ask(*reads) == (200, b"ok")
    assert line.closed
    assert client._take_idle(line.origin) is None


async def test_an_idle_connection_that_says_something_is_closed(client: Transport) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await until(lambda: any(client._idle.values()))
        await peer.send(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n")
        await peer.gone()

    async with listening(script) as server:
        await fetch(client, post(server.url))
        await until(lambda: not client._open)
        assert await fetch(client, post(server.url)) == b"ok"


async def test_who_speaks_before_being_asked_is_not_asked(client: Transport) -> None:
    line = Line(client)
    line.feed(OK)
    with pytest.raises(httpx.ConnectError, match="at once"):
        await line.ask(OK)
    assert line.written == b""


async def test_a_cancellation_does_not_take_a_connection_that_another_has_by_now(
    client: Transport,
) -> None:
    """The answer is whole and the connection was given on, when its first user is cancelled."""
    line = Line(client)
    first = asyncio.ensure_future(line.connection.exchange(b"GET", {}))
    await asyncio.sleep(0)
    line.feed(OK)
    first.cancel()
    taken = client._take_idle(line.origin)
    assert taken is line.connection
    second = taken.exchange(b"GET", {})
    second.send(None)
    with pytest.raises(asyncio.CancelledError):
        await first
    assert not line.closed
    line.feed(OK)
    with pytest.raises(StopIteration) as ended:
        second.send(None)
    assert await rest(ended.value.value) == [b"ok"]


async def test_an_error_and_a_cancellation_at_once_leave_nothing_behind(client: Transport) -> None:
    line = Line(client)
    asking = asyncio.ensure_future(line.connection.exchange(b"GET", {}))
    await asyncio.sleep(0)
    line.feed(b"garbage")
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert line.closed


async def test_bytes_for_a_call_that_was_cancelled_are_dropped(client: Transport) -> None:
    line = Line(client)
    asking = asyncio.ensure_future(line.connection.exchange(b"GET", {}))
    await asyncio.sleep(0)
    asking.cancel()
    line.feed(CHUNKED + b"2\r\nok\r\n0\r\n\r\n")
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert line.closed
    assert client._take_idle(line.origin) is None


@pytest.mark.parametrize(
    "endless",
    [HEAD + b"x: ", b"HTTP/1.1 200 ", CHUNKED + b"2;", CHUNKED + b"0\r\nx: "],
    ids=["value", "reason", "extension", "trailer"],
)
async def test_what_has_no_end_takes_no_memory(client: Transport, endless: bytes) -> None:
    line = Line(client)
    asking = asyncio.ensure_future(line.connection.exchange(b"GET", {}))
    await asyncio.sleep(0)
    line.feed(endless)
    read = b"y" * 10_000
    tracemalloc.start()
    for _ in range(1000):
        line.feed(read)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert line.closed
    assert held < 200_000
    with pytest.raises(httpx.RemoteProtocolError):
        await rest(await asking)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=5), st.sampled_from([b"", HEAD, CHUNKED]))
def test_no_bytes_bring_the_client_down(reads: list[bytes], begin: bytes) -> None:
    async def call() -> None:
        client = Transport()
        line = Line(client)
        asking = asyncio.ensure_future(line.connection.exchange(b"GET", {}))
        await asyncio.sleep(0)
        for read in (begin, *reads):
            line.feed(read)
        line.abort()
        with suppress(httpx.HTTPError):
            await rest(await asking)
        await asyncio.sleep(0)
        assert not client._open

    asyncio.run(call())
