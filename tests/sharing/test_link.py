"""One life of a connection: what it raises, what it shows, and how long it waits."""

from __future__ import annotations

import asyncio
import time

import pytest
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, ResponseError

from proxy.sharing.calls import Calls
from proxy.sharing.link import FAILURES, Link, address, cause, client, patience
from proxy.sharing.types import WindowClaim
from tests.redis_server import Server


async def test_calls_are_answered_in_their_order(url: str, prefix: str) -> None:
    calls, link = Calls(prefix), Link(url, 5.0)
    await link.open()
    claim = calls.claim([], [WindowClaim("w", 1, 60, 1)], None, 1, "t")
    replies = await link.send([claim, claim, calls.refresh("node")])
    assert [reply[0] for reply in replies[:2]] == [0, 2]
    assert replies[2][1:] == [1, []]
    await link.close()


async def test_a_server_that_forgot_the_scripts_is_taught_them_again(server: Server) -> None:
    calls, link = Calls("p"), Link(server.url, 5.0)
    await link.open()
    async with Redis.from_url(server.url) as redis:
        for batch in ([calls.refresh("one")], [calls.refresh("one"), calls.refresh("two")]):
            await redis.script_flush()
            assert len(await link.send(batch)) == len(batch)
    await link.close()


async def test_a_connection_that_was_cut_while_idle_is_made_again(server: Server) -> None:
    link = Link(server.url, 5.0)
    await link.open()
    async with Redis.from_url(server.url) as redis:
        await redis.client_kill_filter(_type="normal", skipme=True)
    assert await link.send([Calls("p").refresh("node")])
    await link.close()


async def test_a_server_of_another_mind_is_a_failure(url: str, prefix: str, redis: Redis) -> None:
    calls, link = Calls(prefix), Link(url, 5.0)
    await link.open()
    await redis.set(calls.refresh("node").keys[0], "not a hash", ex=60)
    with pytest.raises(FAILURES):
        await link.send([calls.refresh("node")])
    with pytest.raises(FAILURES):
        await link.send([calls.refresh("node"), calls.windows()])
    await link.close()


async def test_a_frozen_server_is_late(server: Server) -> None:
    link = Link(server.url, 0.1)
    await link.open()
    server.freeze()
    with pytest.raises(TimeoutError):
        await link.send([Calls("p").refresh("node")])
    await link.close()


async def test_a_stall_of_this_process_is_not_taken_for_a_late_answer() -> None:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[int] = loop.create_future()
    async with patience(0.05):
        loop.call_later(0.01, answer.set_result, 1)
        # When the stall is over both timers are late, and the answer wakes this task too late
        # for a time limit that is one timer.
        loop.call_soon(time.sleep, 0.08)
        assert await answer == 1
        await asyncio.sleep(0)


async def test_patience_ends() -> None:
    with pytest.raises(TimeoutError):
        async with patience(0.02):
            await asyncio.sleep(60)


def test_an_address_is_shown_without_its_password() -> None:
    assert address("redis://user:secret@host:6380/3?password=secret") == "host:6380"
    assert address("unix:///run/redis.sock?password=secret") == "/run/redis.sock"


def test_a_cause_is_a_class_and_a_code_and_no_text() -> None:
    assert cause(ResponseError("WRONGTYPE Operation")) == "ResponseError WRONGTYPE"
    assert cause(ResponseError("unknown command 'AUTH', args: 'secret'")) == "ResponseError"
    assert cause(AuthenticationError("invalid password secret")) == "AuthenticationError"


async def test_an_address_may_hold_user_password_database_and_tls() -> None:
    options = client("rediss://user:p%40ss@host:1/3").connection_pool.connection_kwargs
    assert options["username"] == "user"
    assert options["password"] == "p@ss"
    assert (options["host"], options["port"], options["db"]) == ("host", 1, 3)
    assert "SSL" in client("rediss://h").connection_pool.connection_class.__name__
