"""One life of the connection to the server: it is opened, used, and closed at its first fault.

Nothing here waits longer than it says. redis-py's own time limits are off: they would cost a task
or two a command, and they start anew with every read.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from proxy.sharing import scripts
from proxy.sharing.calls import Call

FAILURES = (RedisError, OSError)
"""What a server that is away, late or full raises; a TimeoutError is an OSError."""

TURNS = 4
"""Round trips at a time, each on its own connection."""

CONNECT_SECONDS = 0.5
"""Connecting is off the path of requests, and TLS takes several round trips."""

_SCRIPTS = (
    scripts.CLAIM,
    scripts.HOLD,
    scripts.FREE,
    scripts.REST,
    scripts.LIFT,
    scripts.SETTLE,
    scripts.REFRESH,
    scripts.LEAVE,
    scripts.WINDOWS,
    scripts.COUNT,
    scripts.PUSH,
    scripts.NEWEST,
)


class Link:
    """Raises one of ``FAILURES`` from ``open`` and ``send``; nothing from ``close``.

    ``timeout`` is the seconds that one ``send`` may take.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self._redis = client(url)
        self._timeout = timeout
        self._hashes: dict[str, str] = {}

    async def open(self) -> None:
        """Connect, and teach the server the scripts. The connections for all turns are made now:
        a request should not wait for a handshake."""
        async with patience(CONNECT_SECONDS):
            await self._load()
            await asyncio.gather(*[self._redis.ping() for _ in range(TURNS)])

    async def send(self, calls: Sequence[Call]) -> list[Any]:
        """Make all the calls in one round trip; their replies in order."""
        async with patience(self._timeout):
            replies = await self._send(calls)
            lost = [n for n, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
            if lost:  # the server was told to forget its scripts
                await self._load()
                for n, reply in zip(lost, await self._send([calls[n] for n in lost]), strict=True):
                    replies[n] = reply
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    async def close(self) -> None:
        with suppress(*FAILURES):
            async with patience(CONNECT_SECONDS):
                await self._redis.aclose()

    async def _load(self) -> None:
        for script in _SCRIPTS:
            self._hashes[script] = str(await self._redis.script_load(script))

    async def _send(self, calls: Sequence[Call]) -> list[Any]:
        if len(calls) == 1:  # a pipeline of one costs half as much again
            try:
                return [await self._redis.evalsha(*self._words(calls[0]))]
            except NoScriptError as error:
                return [error]
        pipeline = self._redis.pipeline(transaction=False)
        for call in calls:
            pipeline.evalsha(*self._words(call))
        return await pipeline.execute(raise_on_error=False)

    def _words(self, call: Call) -> tuple[Any, ...]:
        return (self._hashes[call.script], len(call.keys), *call.keys, *call.args)


def client(url: str) -> Redis:
    """The client for an address; nothing is connected.

    Raises ValueError, without the address, where that is none or has an unknown option; a first
    connection object shows the latter.
    """
    try:
        redis = Redis.from_url(
            url,
            protocol=2,
            socket_timeout=None,
            socket_connect_timeout=CONNECT_SECONDS,
            retry=Retry(NoBackoff(), 0),  # what is sent twice may count twice
        )
        redis.connection_pool.make_connection()  # type: ignore[no-untyped-call]
    except (ValueError, TypeError, RedisError):
        pass
    else:
        return redis
    # Raised out here, so that the first error, which may quote a password, is no part of it.
    raise ValueError("not the address of a Redis server, such as redis://127.0.0.1:6379/0")


def address(url: str) -> str:
    """Host and port, as a log line may show them."""
    parts = urlsplit(url)
    return parts.netloc.rpartition("@")[2] or parts.path


def cause(error: BaseException) -> str:
    """What went wrong, in words that hold no secret: the class, and the server's code if it gave
    one. Its text may quote a command, and so a password."""
    code = re.match(r"[A-Z]{3,}(?= )", str(error))
    return type(error).__name__ + (f" {code[0]}" if code else "")


@asynccontextmanager
async def patience(seconds: float) -> AsyncIterator[None]:
    """Raises TimeoutError where the block takes longer.

    The last tenth is measured apart. After a stall of this process's own event loop the first
    timer is late, but so is reading what the server has answered long since; that has a tenth to
    be read, and a stall of ours is not taken for an absence of the server.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as scope:
        last = loop.call_later(seconds * 0.9, lambda: scope.reschedule(loop.time() + seconds * 0.1))
        try:
            yield
        finally:
            last.cancel()
