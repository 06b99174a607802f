"""The upstream client against real sockets: which connection, and whether a request goes twice."""

from __future__ import annotations

import asyncio
import random
import socket
from contextlib import suppress

import httpx
import pytest

from proxy.clock import monotonic
from proxy.providers import transport as transport_module
from proxy.providers.transport import Transport
from tests.providers.sockets import (
    OK,
    Peer,
    always,
    deaf,
    fetch,
    idle,
    listening,
    once,
    post,
    rest,
    until,
)

# Connections.


async def test_an_answer_comes_as_it_was_sent(client: Transport) -> None:
    answer = b"HTTP/1.1 207 Any\r\nX-Odd: \xff ;\r\nX-Odd: 2\r\nContent-Length: 3\r\n\r\n\0\xff\n"
    async with listening(always(answer)) as server:
        response = await client.handle_async_request(post(server.url, b'{"a":1}'))
        assert response.status_code == 207
        assert [f for f in response.headers.raw if f[0] == b"x-odd"] == [
            (b"x-odd", b"\xff ;"),
            (b"x-odd", b"2"),
        ]
        assert b"".join(await rest(response)) == b"\0\xff\n"
    assert server.requests == [
        b"POST /v1 HTTP/1.1\r\nhost: up\r\nauthorization: Bearer sk-1\r\n"
        b'content-length: 7\r\n\r\n{"a":1}'
    ]


async def test_one_connection_serves_one_request_after_the_other(client: Transport) -> None:
    async with listening(always(OK)) as server:
        for number in range(5):
            assert await fetch(client, post(server.url, b"%d" % number)) == b"ok"
        assert len(server.peers) == 1
        assert [request[-1:] for request in server.requests] == [b"0", b"1", b"2", b"3", b"4"]
        assert (len(client._open), idle(client)) == (1, 1)


async def test_two_at_once_take_two_connections_and_the_last_one_back_is_used_next(
    client: Transport,
) -> None:
    released = {b"a": asyncio.Event(), b"b": asyncio.Event(), b"c": asyncio.Event()}

    async def script(peer: Peer) -> None:
        while True:
            body = (await peer.request())[-1:]
            await released[body].wait()
            await peer.send(OK)

    async with listening(script) as server:
        one = asyncio.ensure_future(fetch(client, post(server.url, b"a")))
        await until(lambda: len(server.requests) == 1)
        two = asyncio.ensure_future(fetch(client, post(server.url, b"b")))
        await until(lambda: len(server.requests) == 2)
        assert len(server.peers) == 2
        released[b"b"].set()
        await two
        released[b"a"].set()
        await one
        assert idle(client) == 2
        last = client._idle[(b"http", "127.0.0.1", server.port)][-1]
        three = asyncio.ensure_future(fetch(client, post(server.url, b"c")))
        await until(lambda: len(server.requests) == 3)
        assert last not in client._idle[(b"http", "127.0.0.1", server.port)]
        released[b"c"].set()
        await three
        assert len(server.peers) == 2


async def test_origins_do_not_share_connections(client: Transport) -> None:
    async with listening(always(OK)) as here, listening(always(OK)) as there:
        for server in (here, there, here, there):
            await fetch(client, post(server.url))
        assert (len(here.peers), len(there.peers)) == (1, 1)


async def test_fifty_at_once_and_when_they_have_idled_long_enough_they_go(
    client: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport_module, "IDLE_SECONDS", 0.1)
    together = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        if len(server.requests) == 50:
            together.set()
        await together.wait()
        await peer.send(OK)
        await peer.gone()

    async with listening(script) as server:
        answers = await asyncio.gather(*(fetch(client, post(server.url)) for _ in range(50)))
        assert answers == [b"ok"] * 50
        assert len(server.peers) == 50
        await until(lambda: all(peer.left for peer in server.peers))
        await until(lambda: not client._open)
        assert idle(client) == 0
        assert client._sweep is None


async def test_only_so_many_wait_idle_and_the_stalest_goes_first(
    client: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport_module, "MAX_IDLE", 2)
    async with listening(always(OK)) as server:
        await asyncio.gather(*(fetch(client, post(server.url)) for _ in range(5)))
        await until(lambda: len(client._open) == 2)
        assert idle(client) == 2


async def test_a_connection_that_idled_too_long_is_not_used_again(
    client: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening(always(OK)) as server:
        await fetch(client, post(server.url))
        monkeypatch.setattr(transport_module, "IDLE_SECONDS", 0.0)
        await fetch(client, post(server.url))
        assert len(server.peers) == 2


async def test_nagle_is_off(client: Transport) -> None:
    async with listening(always(OK)) as server:
        await fetch(client, post(server.url))
        (connection,) = client._open
        assert connection._transport is not None
        raw = connection._transport.get_extra_info("socket")
        assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# Sent again, or not.


async def test_an_idle_connection_that_the_server_closed_is_not_used(client: Transport) -> None:
    async with listening(once(OK)) as server:
        await fetch(client, post(server.url))
        await until(lambda: not client._open)
        assert await fetch(client, post(server.url)) == b"ok"
        assert len(server.requests) == 2


@pytest.mark.parametrize("way", ["close", "reset"])
async def test_a_request_on_a_kept_connection_that_is_gone_is_sent_again(
    client: Transport, way: str
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        if len(server.requests) == 2:
            getattr(peer, way)()
        else:
            await peer.send(OK)

    async with listening(script) as server:
        for _ in range(2):
            assert await fetch(client, post(server.url)) == b"ok"
        assert len(server.peers) == 2
        assert len(server.requests) == 3


async def test_a_request_is_sent_again_only_once(client: Transport) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        if len(server.requests) == 1:
            await peer.send(OK)
            await peer.request()
        peer.close()

    async with listening(script) as server:
        await fetch(client, post(server.url))
        with pytest.raises(httpx.ReadError):
            await fetch(client, post(server.url))
        assert len(server.requests) == 3


async def test_a_request_is_not_sent_again_after_a_byte_of_an_answer(client: Transport) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        await peer.send(b"H")
        peer.close()

    async with listening(script) as server:
        await fetch(client, post(server.url))
        with pytest.raises(httpx.RemoteProtocolError, match="cut"):
            await fetch(client, post(server.url))
        assert len(server.requests) == 2


async def test_a_request_on_a_connection_in_use_just_now_is_not_sent_again(
    client: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport_module, "RESTED_SECONDS", 60.0)

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        peer.close()

    async with listening(script) as server:
        await fetch(client, post(server.url))
        with pytest.raises(httpx.ReadError):
            await fetch(client, post(server.url))
        assert len(server.requests) == 2


async def test_a_request_that_the_server_may_have_worked_on_is_not_sent_again(
    client: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport_module, "STALE_SECONDS", 0.02)

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        await asyncio.sleep(0.05)
        peer.close()

    async with listening(script) as server:
        await fetch(client, post(server.url))
        with pytest.raises(httpx.ReadError):
            await fetch(client, post(server.url))
        assert len(server.requests) == 2


@pytest.mark.parametrize("way", ["close", "reset", "half_close"])
async def test_a_request_on_a_new_connection_is_never_sent_again(
    client: Transport, way: str
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        getattr(peer, way)()
        await peer.gone()

    async with listening(script) as server:
        with pytest.raises(httpx.ReadError, match="without an answer"):
            await fetch(client, post(server.url))
        assert len(server.requests) == 1
        await until(lambda: server.peers[0].left)


async def test_no_call_fails_and_none_runs_twice_while_the_server_closes_what_is_idle(
    client: Transport,
) -> None:
    """The race of a kept connection: it is closed at about the time of the next request."""
    answered: list[bytes] = []
    chance = random.Random(1)

    async def script(peer: Peer) -> None:
        request = await peer.request()
        with suppress(TimeoutError):
            while True:
                answered.append(request[-3:])
                await peer.send(OK)
                async with asyncio.timeout(chance.uniform(0.0005, 0.003)):
                    request = await peer.request()
        peer.close()

    async with listening(script) as server:
        bodies = [b"%03d" % number for number in range(150)]
        for body in bodies:
            assert await fetch(client, post(server.url, body)) == b"ok"
            await asyncio.sleep(chance.uniform(0.0005, 0.003))
        assert answered == bodies
        assert len(server.peers) > 1


# No connection.


async def test_nobody_listens(client: Transport) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        with pytest.raises(httpx.ConnectError, match=r"127\.0\.0\.1:\d+: Connection refused"):
            await fetch(client, post(f"http://127.0.0.1:{port}/v1"))
    assert not client._open


@pytest.mark.asyncio(loop_factories=["asyncio"])  # uvloop asks the system itself
async def test_a_name_that_nobody_knows(client: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **more: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(httpx.ConnectError, match=r"up\.test:80: Name or service not known"):
        await fetch(client, post("http://up.test/v1"))


@pytest.mark.parametrize("name", ["a" * 64 + ".test", "a..test"])
async def test_what_cannot_be_a_name(client: Transport, name: str) -> None:
    with pytest.raises(httpx.ConnectError, match="cannot connect"):
        await fetch(client, post(f"http://{name}/v1"))


async def test_a_connection_that_does_not_come_about_in_time(client: Transport) -> None:
    with deaf() as port, pytest.raises(httpx.ConnectTimeout, match=f":{port} in time"):
        await fetch(client, post(f"http://127.0.0.1:{port}/v1", connect=0.03))
    assert not client._open


async def test_a_server_that_closes_at_once_is_no_hang(client: Transport) -> None:
    async def script(peer: Peer) -> None:
        peer.reset()

    async with listening(script) as server:
        for _ in range(10):
            with pytest.raises(httpx.NetworkError):
                await fetch(client, post(server.url))
        assert server.requests == []


async def test_the_first_byte_is_that_of_the_head_of_the_answer(client: Transport) -> None:
    moments: list[float] = []

    async def script(peer: Peer) -> None:
        await peer.request()
        for part in (
            b"HTTP/1.1 103 \r\n\r\n",
            b"HTTP/1.1 200 OK\r\n",
            b"content-length: 2\r\n\r\nok",
        ):
            moments.append(monotonic())
            await peer.send(part)
            await asyncio.sleep(0.05)

    async with listening(script) as server:
        response = await client.handle_async_request(post(server.url))
        _, head, rest = moments
        assert head < response.extensions["first_byte"] < rest
        await response.aclose()


async def test_that_a_request_goes_out_is_told_once_there_is_a_connection(
    client: Transport,
) -> None:
    told: list[str] = []
    async with listening(always(OK)) as server:
        for _ in range(2):  # on a new connection and on a kept one
            request = post(server.url, b"1")
            request.extensions["sent"] = lambda: told.append("sent")
            assert await fetch(client, request) == b"ok"
        assert told == ["sent"] * 2
    request = post(server.url, b"1")  # where nobody listens any more
    request.extensions["sent"] = lambda: told.append("sent")
    with pytest.raises(httpx.ConnectError):
        await client.handle_async_request(request)
    assert told == ["sent"] * 2
