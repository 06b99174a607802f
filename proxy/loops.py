"""What a gateway does beside its requests, again and again, until it is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress

from proxy.changes import CountRecord
from proxy.clock import monotonic
from proxy.learnt import Counts
from proxy.providers.lists import ModelLists
from proxy.routing.keypool import KeyPool
from proxy.schema import TelemetrySettings
from proxy.store import retention
from proxy.store.address import StoreError
from proxy.store.archive import Archive
from proxy.store.engine import Store

AGAIN_SECONDS = 1.0
RETENTION_SECONDS = 3600.0
COUNTS_SECONDS = 0.5
_IDLE_SECONDS = 5.0  # after which a reload may have switched probing on


async def until(done: Callable[[], Awaitable[bool]]) -> None:
    """Try something again until it is done, which may be never."""
    while True:
        if await done():
            return
        await asyncio.sleep(AGAIN_SECONDS)


async def retain(store: Store, telemetry: TelemetrySettings) -> None:
    """Let old rows go; a database that cannot be written now is for the next time."""
    archive = None if telemetry.archive is None else Archive(telemetry.archive)
    while True:
        with suppress(StoreError):
            await retention.run(store, telemetry.retention_days, archive, telemetry.content_days)
        await asyncio.sleep(RETENTION_SECONDS)


async def publish_counts(
    counted: Callable[[], Awaitable[Iterable[CountRecord]]], keep: Callable[[object], None]
) -> None:
    """Hand on what the configured limits have counted, where that has changed."""
    told = Counts()
    while True:
        await asyncio.sleep(COUNTS_SECONDS)
        for record in told.news(await counted()):
            keep(record)


async def elected(leads: Callable[[], bool], loop: Callable[[], Awaitable[None]]) -> None:
    """Do what one of several workers does, from when it is this one's turn."""
    while not leads():  # noqa: ASYNC110 - another process decides
        await asyncio.sleep(AGAIN_SECONDS)
    await loop()


async def probe(
    pools: Callable[[], Mapping[str, KeyPool]], lists: ModelLists, every: Callable[[], float]
) -> None:
    """Ask providers with an open breaker for their lists, which costs nothing: one that answers
    may be tried again at once. ``every`` is seconds; 0: nobody is asked."""
    while True:
        seconds = every()
        await asyncio.sleep(seconds or _IDLE_SECONDS)
        if seconds:
            for name, pool in pools().items():
                if pool.health.troubled() and await lists.reached(name):
                    pool.health.relieve(monotonic())
