"""What the store weighs and how fast it answers, with as many calls as one likes. See README.md."""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sqlalchemy import func, select, text

from proxy.clock import new_id, now_ms
from proxy.entries import decode, encode
from proxy.metering.shipper import PAUSES
from proxy.metering.writer import Writer
from proxy.store import calls, costs, groups, pages, rollups, series, sizes
from proxy.store.engine import Reader, Store
from proxy.store.filters import Filters
from proxy.store.records import insert_calls
from proxy.store.tables import api_calls
from proxy.types import CallRecord

DAY = 86_400_000
DAYS = 30
BATCH = 20_000
BURST = 50
"""Calls that end together under load: so the writing is measured, and not the waking up."""


class Traffic:
    """Calls such as the gateway records them: five providers of eight models, four keys each,
    seven clients, every twentieth a failure. ``models`` and ``keys`` make it narrower."""

    def __init__(self, providers: int = 5, models: int = 8, keys: int = 4) -> None:
        self._random = random.Random(1)
        self._shape = (providers, models, keys)

    def call(self, at: int) -> CallRecord:
        """One that began at an instant in UTC milliseconds."""
        pick, spread = self._random.randrange, self._random.lognormvariate
        provider, model, key = map(pick, self._shape)
        ttft, total = spread(5.5, 0.5), spread(7.5, 0.6)
        prompt, answer = pick(50, 4000), pick(5, 900)
        fails = self._random.random() < 0.05
        shared = {
            "request_id": new_id(),
            "attempt": 1,
            "is_final": True,
            "timestamp": at,
            "finished_at": at + round(total),
            "endpoint": "/v1/chat/completions",
            "provider": f"provider{provider}",
            "model": f"vendor/model-{model}-instruct",
            "requested_model": f"provider{provider}/vendor/model-{model}-instruct",
            "key_id": f"org-{key}",
            "account": f"org-{key}",
            "client_id": f"client{pick(7)}",
            "is_stream": True,
            "http_status": 200,
            "client_status": 200,
            "response_time_ms": round(total, 3),
            "total_duration_ms": round(total + 0.4, 3),
            "queue_time_ms": 0.015,
            "processing_time_ms": round(total - 0.1, 3),
            "overhead_ms": 0.267,
            "message_count": pick(1, 12),
            "prompt_length": prompt * 4,
            "temperature": 0.7,
            "max_tokens": 1024,
            "privacy_level": "metadata",
        }
        if fails:
            return CallRecord(
                **shared | {"status": "error", "http_status": 500, "client_status": 502},
                error_reason="server_error",
                error_message="the provider answered 500: internal error",
                usage_source="none",
                cost_source="none",
            )
        return CallRecord(
            **shared,
            status="success",
            finish_reason="stop",
            ttfb_ms=round(ttft - 1, 3),
            time_to_first_token_ms=round(ttft, 3),
            tokens_per_second=round(spread(4, 0.4), 3),
            inter_token_avg_ms=round(spread(2.5, 0.3), 3),
            inter_token_p50_ms=round(spread(2.5, 0.3), 3),
            inter_token_p95_ms=round(spread(3, 0.3), 3),
            max_stall_ms=round(spread(4, 0.3), 3),
            chunk_count=answer,
            input_tokens=prompt,
            output_tokens=answer,
            total_tokens=prompt + answer,
            usage_source="provider",
            cost_nano_usd=prompt * 50 + answer * 80,
            cost_source="catalog",
            price_version="2026-11",
            response_length=answer * 4,
        )


async def fill(store: Store, count: int, now: int) -> None:
    """Calls of the last 30 days, in the order in which they came, and their sums."""
    traffic, begin = Traffic(), now - DAYS * DAY
    for first in range(0, count, BATCH):
        numbers = range(first, min(first + BATCH, count))
        batch = [traffic.call(begin + n * DAYS * DAY // count) for n in numbers]
        async with (await store.writer()).begin() as connection:
            await insert_calls(connection, batch)
            await costs.add(connection, batch)
            await rollups.add(connection, batch)
        print(f"\r{numbers[-1] + 1:,} calls", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


async def multiply(store: Store, times: int) -> None:
    """Every call so often, a few seconds apart. Counts and sums follow, the sketches do not."""
    async with (await store.writer()).begin() as connection:
        described = await connection.execute(text("PRAGMA table_info(api_calls)"))
        kept = [row.name for row in described if row.name not in ("id", "request_id", "timestamp")]
        names = ", ".join(kept)
        for copy in range(1, times):
            await connection.execute(
                text(
                    f"INSERT INTO api_calls (request_id, timestamp, {names})"
                    f" SELECT request_id || :copy, timestamp + :later, {names} FROM api_calls"
                    " WHERE length(request_id) = 18"
                ),
                {"copy": f"{copy:02d}", "later": copy * 7},
            )
            print(f"\rcopy {copy}", end="", file=sys.stderr, flush=True)
        for grain in rollups.GRAINS:
            sums = [c.name for c in grain.table.c if not c.primary_key and "sketch" not in c.name]
            more = ", ".join(f"{name} = {name} * {times}" for name in sums)
            await connection.execute(text(f"UPDATE {grain.table} SET {more}"))
    print(file=sys.stderr)


async def weigh(store: Store) -> dict[str, float]:
    """Bytes by table, indexes included."""
    async with store.reader() as connection:
        found = await sizes.sizes(connection)
    return {table["name"]: table["bytes"] or 0 for table in found["tables"]}


async def timed(store: Store, ask: Callable[[Reader], Awaitable[Any]]) -> str:
    """The first answer's time, the median of nine more, and of their CPU, in milliseconds."""
    times, cpu = [], []
    for _ in range(10):
        begin, used = time.perf_counter(), time.process_time()
        async with store.reader() as connection:
            await ask(connection)
        times.append((time.perf_counter() - begin) * 1000)
        cpu.append((time.process_time() - used) * 1000)
    medians = (statistics.median(times[1:]), statistics.median(cpu[1:]))
    return f"{times[0]:8.1f} {medians[0]:8.1f} {medians[1]:8.1f}"


async def ask(store: Store, now: int) -> None:
    """Questions of the dashboard kind."""

    def since(days: float, **more: Any) -> Filters:
        return Filters(start=round(now - days * DAY), end=now_ms() + 1, **more)

    async with store.reader() as connection:
        order = (api_calls.c.timestamp.desc(), api_calls.c.id.desc())
        query = select(api_calls.c.timestamp, api_calls.c.id).order_by(*order)
        row = (await connection.execute(query.offset(99_899).limit(1))).first()
    cursor = None if row is None else pages.encode(list(row))
    questions: dict[str, Callable[[Reader], Awaitable[Any]]] = {
        "summary, 30 days": lambda c: groups.whole(c, since(30)),
        "summary, 24 hours": lambda c: groups.whole(c, since(1)),
        "summary, 1 hour": lambda c: groups.whole(c, since(1 / 24)),
        "summary of a model, 30 days": lambda c: groups.whole(
            c, since(30, model=("vendor/model-3-instruct",))
        ),
        "by provider and model, 30 days": lambda c: groups.grouped(c, "models", since(30)),
        "requests by day, 30 days": lambda c: series.series(c, since(30), "requests", "day"),
        "latency by hour, 30 days": lambda c: series.series(c, since(30), "latency_ms", "hour"),
        "calls, page 1": lambda c: calls.page(c, since(30), 100, None),
        "calls, page 1000": lambda c: calls.page(c, since(30), 100, cursor),
    }
    print(f"\n{'ms':32}    first   median  its CPU")
    for name, question in questions.items():
        print(f"{name:32} {await timed(store, question)}")


async def load(store: Store, folder: Path, rate: int, seconds: float) -> None:
    """What part of a core it takes to write calls as they come under load, and how long others
    wait for the loop: first what the gateway's writer does, then all from a call's end on, through
    the journal."""
    traffic, lags, done = Traffic(2, 3, 4), [0.0], False
    calls = [traffic.call(0) for _ in range(round(rate * seconds) * 2)]
    every = PAUSES[1]
    writer = Writer(
        folder / "journal",
        encode=encode,
        decode=decode,
        flush=store.write,
        positions=store.positions,
        strict=True,
        max_bytes=2**30,
    )
    before = await weigh(store)
    gc.freeze()  # the calls to come are none of the writer's work

    async def watch() -> None:
        while not done:
            begin = time.perf_counter()
            await asyncio.sleep(0.002)
            lags.append((time.perf_counter() - begin - 0.002) * 1000)

    async def come(take: Callable[[list[CallRecord]], Awaitable[None]], burst: int) -> float:
        """Calls at that rate; returns the share of a core that was used meanwhile."""
        some, calls[:] = calls[: round(rate * seconds)], calls[round(rate * seconds) :]
        used, begin = time.process_time(), time.perf_counter()
        for first in range(0, len(some), burst):
            if (early := begin + first / rate - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            await take([_at(call, now_ms()) for call in some[first : first + burst]])
        await asyncio.sleep(max(0.0, begin + seconds - time.perf_counter()))
        return (time.process_time() - used) / (time.perf_counter() - begin)

    async def put(some: list[CallRecord]) -> None:
        for call in some:
            writer.put(call)

    async def nowhere(some: list[CallRecord]) -> None:
        pass

    watching = asyncio.create_task(watch())
    kept = list(calls)
    idle = await come(nowhere, BURST)
    calls[:] = kept
    written = await come(store.write, round(rate * every)) - idle
    await writer.open(0)
    shipping, tending = asyncio.create_task(writer.run()), asyncio.create_task(writer.tend())
    whole = await come(put, BURST) - idle
    await writer.drain(10)
    done = True
    await asyncio.gather(watching, shipping)
    tending.cancel()
    lags.sort()
    print(
        f"\n{rate} records/s for {seconds:g} s, 24 series: {written:.1%} of a core for the writing"
    )
    print(f"with the journal, from which it is read: {whole:.1%}")
    print(f"loop lag: p99 {lags[len(lags) * 99 // 100]:.1f} ms, most {lags[-1]:.1f} ms")
    after, count = await weigh(store), 2 * round(rate * seconds)
    print(_bytes({name: after[name] - before[name] for name in after}, count))


def _at(call: CallRecord, at: int) -> CallRecord:
    values = {name: getattr(call, name) for name in CallRecord.__struct_fields__}
    return CallRecord(**values | {"timestamp": at, "finished_at": at + call.finished_at})


def _bytes(tables: dict[str, float], count: int) -> str:
    rolled = {name: size for name, size in tables.items() if name.startswith("rollup")}
    parts = ", ".join(f"{name} {size / count:.1f}" for name, size in rolled.items())
    rows, sums = tables["api_calls"] / count, sum(rolled.values()) / count
    return f"bytes a call: {rows:.0f} rows and indexes + {sums:.1f} rollups ({parts})"


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=300_000)
    parser.add_argument("--times", type=int, default=1, help="each of them, which is quicker")
    parser.add_argument("--rate", type=int, default=500, help="records a second under load")
    parser.add_argument("--seconds", type=float, default=10, help="of load; 0: none")
    parser.add_argument("--database", type=Path, help="a file to keep, and to use again")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="tollkeeper-store-"))
    path = asked.database or folder / "store.db"
    there = path.exists()
    store = Store(f"sqlite+aiosqlite:///{path}")
    try:
        await store.open()
        now = now_ms()
        if not there:
            begin = time.perf_counter()
            await fill(store, asked.calls, now)
            await multiply(store, asked.times)
            print(f"filled in {time.perf_counter() - begin:.0f} s")
        async with store.reader() as connection:
            count = await connection.scalar(select(func.count()).select_from(api_calls)) or 0
        print(f"{count:,} calls; {_bytes(await weigh(store), count)}")
        await ask(store, now)
        if asked.seconds:
            await load(store, folder, asked.rate, asked.seconds)
    finally:
        await store.close()
        shutil.rmtree(folder)


if __name__ == "__main__":
    asyncio.run(main())
