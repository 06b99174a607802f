"""No call that an upstream saw is without its row, whatever becomes of the gateway or its disk."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.process import KEY, Process, process
from tests.upstream import Exchange, Upstream, completion, error, stream, words

ALL = "SELECT * FROM api_calls ORDER BY id"
ROUTING = {"breaker": {"failures": 0}, "retry_budget": {"minimum": 100_000}}
CLIENTS = 12


class Load:
    """Clients that ask all the time: every call has a number, and is billed that many tokens.

    ``ended`` are the numbers of those whose client has seen the end of its answer.
    """

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.ended: set[int] = set()
        self.asked = 0
        upstream.script = self.answer

    async def answer(self, exchange: Exchange) -> None:
        """Streams and whole answers, some after a failure."""
        asked = exchange.request.json
        number = int(asked["messages"][0]["content"])
        if number % 7 == 0 and asked["model"] == "json":
            await error(500)(exchange)
        elif asked.get("stream"):
            parts = words("a", "b", "c", prompt=number)
            await stream([parts[0], 0.004, *parts[1:3], 0.004, *parts[3:]])(exchange)
        else:
            await completion("abc", prompt=number, output=3)(exchange)

    async def client(self, url: str) -> None:
        """Asks until nobody listens any more."""
        headers = {"authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=20) as client:
            with suppress(httpx.TransportError):
                while True:
                    self.asked += 1
                    await self.ask(client, self.asked)

    async def ask(self, client: httpx.AsyncClient, number: int) -> None:
        message = {"role": "user", "content": str(number)}
        body = {"model": "two", "messages": [message], "stream": number % 2 == 0}
        id_ = {"x-request-id": str(number)}
        async with client.stream("POST", "/v1/chat/completions", json=body, headers=id_) as got:
            assert got.status_code in (200, 503)
            whole = got.status_code == 200 and not body["stream"]
            async for line in got.aiter_lines():
                if line == "data: [DONE]":
                    self.ended.add(number)
            if whole:
                self.ended.add(number)

    @asynccontextmanager
    async def upon(self, gateway: Process) -> AsyncIterator[None]:
        """Ends with the gateway, which the block must see to."""
        async with asyncio.TaskGroup() as tasks:
            begun = len(self.ended)
            for _ in range(CLIENTS):
                tasks.create_task(self.client(gateway.url))
            while len(self.ended) == begun:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
            yield

    @property
    def seen(self) -> Counter[int]:
        """How many attempts of each call have come to the upstream."""
        return Counter(int(call.json["messages"][0]["content"]) for call in self.upstream.calls)

    def check(self, rows: list[dict[str, Any]]) -> Counter[str]:
        """Compares the rows with what the upstream and the clients saw; how the calls ended."""
        assert len({(row["request_id"], row["attempt"]) for row in rows}) == len(rows)
        finals: dict[int, list[dict[str, Any]]] = {}
        for row in rows:
            if row["is_final"]:
                finals.setdefault(int(row["client_request_id"]), []).append(row)
        attempts = Counter(int(row["client_request_id"]) for row in rows)
        for number, calls in self.seen.items():
            assert len(finals.get(number, [])) == 1, number
            assert attempts[number] >= calls, number
        how = Counter[str]()
        for number, (row,) in finals.items():
            if row["status"] == "success":
                assert (row["input_tokens"], row["output_tokens"]) == (number, 3)
                assert row["usage_source"] == "provider"
            else:
                assert number not in self.ended, row
            how[row["error_reason"] or row["status"]] += 1
        assert self.ended <= {number for number, (row,) in finals.items()}
        return how


def costs_are_the_sums_of_the_rows(gateway: Process) -> None:
    (day,) = gateway.select(
        "SELECT sum(invocations) AS invocations, sum(successes) AS successes,"
        " sum(total_tokens) AS tokens, round(sum(total_cost_usd) * 1e9) AS cost FROM daily_costs"
    )
    (sums,) = gateway.select(
        "SELECT sum(is_final) AS invocations, sum(is_final AND status = 'success') AS successes,"
        " sum(coalesce(total_tokens, 0)) AS tokens,"
        " round(sum(coalesce(cost_estimate_usd, 0)) * 1e9) AS cost FROM api_calls"
    )
    assert day == sums


async def stopped_under_load(upstream: Upstream, folder: Path, rounds: int) -> None:
    load, chance = Load(upstream), random.Random(rounds)
    for _ in range(rounds):
        async with process(folder, upstream, routing=ROUTING) as gateway:
            async with load.upon(gateway):
                await asyncio.sleep(chance.uniform(0, 0.3))
                gateway.signal(signal.SIGTERM)
            await gateway.ended()
            how = load.check(gateway.select(ALL))
            assert "interrupted" not in how
            costs_are_the_sums_of_the_rows(gateway)
            left = [path.name for path in (folder / "calls.db.state" / "journal").iterdir()]
            assert left == ["shipper"]
            assert not gateway.select("SELECT * FROM journal_positions")


async def killed_under_load(upstream: Upstream, folder: Path, rounds: int) -> Counter[str]:
    load, chance = Load(upstream), random.Random(rounds)
    for _ in range(rounds):
        async with process(folder, upstream, routing=ROUTING) as gateway, load.upon(gateway):
            await asyncio.sleep(chance.choice((0.0, 0.1, 0.6)) * chance.random())
            await gateway.killed()
    async with process(folder, upstream, routing=ROUTING) as gateway:
        gateway.signal()
        await gateway.ended()
        assert gateway.select("PRAGMA integrity_check") == [{"integrity_check": "ok"}]
        how = load.check(gateway.select(ALL))
        costs_are_the_sums_of_the_rows(gateway)
        assert not list((folder / "calls.db.state" / "journal").glob("*.*"))
    assert how["success"] > rounds
    return how


@pytest.mark.timeout(240)
async def test_whenever_it_is_stopped_every_call_has_its_row(
    upstream: Upstream, tmp_path: Path
) -> None:
    await stopped_under_load(upstream, tmp_path, 5)


@pytest.mark.timeout(240)
async def test_whenever_it_is_killed_every_call_has_its_row(
    upstream: Upstream, tmp_path: Path
) -> None:
    how = await killed_under_load(upstream, tmp_path, 10)
    assert set(how) == {"success", "interrupted"}


@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_a_hundred_stops_lose_nothing(upstream: Upstream, tmp_path: Path) -> None:
    await stopped_under_load(upstream, tmp_path, 100)


@pytest.mark.soak
@pytest.mark.timeout(3600)
async def test_two_hundred_kills_lose_nothing(upstream: Upstream, tmp_path: Path) -> None:
    await killed_under_load(upstream, tmp_path, 200)
