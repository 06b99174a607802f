"""Two gateways with one Redis: they keep to one limit, and learn from each other."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.gateway import Gateway, lab, running
from tests.redis_server import own_keys, private_server, some_server
from tests.scenarios.views import key, until
from tests.upstream import Exchange, Upstream, completion, error

AT_ONCE = {"max_wait": 0, "retry_budget": {"minimum": 1000}}


def shared(gateway: Gateway) -> Any:
    return gateway.app.state.reload.__self__._shared


@asynccontextmanager
async def two(
    folder: Path, state: dict[str, str], provider: dict[str, Any], **routing: Any
) -> AsyncIterator[tuple[Gateway, Gateway]]:
    """Two gateways that know of each other; each has its own database."""
    config = {"providers": {"lab": provider}, "state": state, "routing": {**AT_ONCE, **routing}}
    async with AsyncExitStack() as stack:
        gateways = []
        for name in ("one", "two"):
            (folder / name).mkdir()
            gateways.append(await stack.enter_async_context(running(folder / name, config)))
        one, other = gateways
        assert shared(other).nodes == 2
        yield one, other


@asynccontextmanager
async def pair(
    folder: Path, provider: dict[str, Any], **routing: Any
) -> AsyncIterator[tuple[Gateway, Gateway]]:
    with some_server() as url:
        async with (
            own_keys(url) as prefix,
            two(folder, {"url": url, "prefix": prefix}, provider, **routing) as gateways,
        ):
            yield gateways


async def soon(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(5):
        while not await condition():  # noqa: ASYNC110 - the news come over the network
            await asyncio.sleep(0.02)


async def becomes(gateway: Gateway, state: str) -> None:
    async def shown() -> bool:
        return (await key(gateway))["state"] == state

    await soon(shown)


async def serves(gateway: Gateway) -> bool:
    return (await gateway.chat("lab/m")).status_code == 200


async def test_one_limit_holds_for_both(upstream: Upstream, tmp_path: Path) -> None:
    provider = lab(upstream.url, "sk-1111", "sk-2222", limits={"models": {"*": {"rpm": 7}}})
    async with pair(tmp_path, provider) as (one, other):
        calls = [gateway.chat("lab/m") for _ in range(20) for gateway in (one, other)]
        answers = await asyncio.gather(*calls)
        assert Counter(got.status_code for got in answers) == {200: 14, 429: 26}
        assert Counter(call.key for call in upstream.calls) == {"sk-1111": 7, "sk-2222": 7}
        for gateway in (one, other):
            got = await gateway.chat("lab/m")
            assert (got.status_code, len(upstream.calls)) == (429, 14)
            assert 40 <= int(got.headers["retry-after"]) <= 61
            assert {(await key(gateway, name))["in_flight"] for name in ("k1", "k2")} == {0}


async def test_tokens_are_counted_for_both_as_they_were_used(
    upstream: Upstream, tmp_path: Path
) -> None:
    upstream.script = completion(prompt=60, output=30)
    provider = lab(upstream.url, limits={"groups": {"k1": {"tpm": 100}}})
    async with pair(tmp_path, provider) as (one, other):
        assert (await one.chat("lab/m")).status_code == 200
        await until(lambda: not shared(one)._outbox)
        assert (await other.chat("lab/m", "word " * 30)).status_code == 429
        assert len(upstream.calls) == 1


async def test_what_one_was_refused_the_other_does_not_ask(
    upstream: Upstream, tmp_path: Path
) -> None:
    async with pair(tmp_path, lab(upstream.url)) as (one, other):
        upstream.by_model |= {
            "m": error(429, "slow", retry_after="60"),
            "dead": error(401, "revoked"),
        }
        await one.chat("lab/m")
        await until(lambda: not shared(one)._outbox)
        got = await other.chat("lab/m")
        assert got.status_code == 429
        assert 55 <= int(got.headers["retry-after"]) <= 60
        assert len(upstream.calls) == 1
        assert (await other.chat("lab/free")).status_code == 200
        await other.chat("lab/dead")
        await until(lambda: not shared(other)._outbox)
        assert (await one.chat("lab/free")).status_code == 502
        assert len(upstream.calls) == 3


async def test_one_of_them_probes(upstream: Upstream, tmp_path: Path) -> None:
    breaker = {"failures": 1, "open_for": 0.4}
    async with pair(tmp_path, lab(upstream.url), breaker=breaker) as (one, other):
        upstream.script = error(500, "down")
        await one.chat("lab/m")
        await until(lambda: not shared(one)._outbox)
        got = await other.chat("lab/m")
        assert got.json()["error"]["code"] == "circuit_open"
        assert len(upstream.calls) == 1
        go = asyncio.Event()

        async def script(exchange: Exchange) -> None:
            await asyncio.wait_for(go.wait(), 5)
            await completion()(exchange)

        upstream.script = script
        await asyncio.sleep(0.45)
        async with asyncio.TaskGroup() as tasks:
            calls = [tasks.create_task(each.chat("lab/m")) for each in (one, other) * 3]
            await until(lambda: sum(call.done() for call in calls) == 5)
            assert len(upstream.calls) == 2
            go.set()
        assert Counter(call.result().status_code for call in calls) == {200: 1, 503: 5}
        for gateway in (one, other):
            await soon(partial(serves, gateway))


async def test_a_probe_whose_client_leaves_is_free_for_the_other(
    upstream: Upstream, tmp_path: Path
) -> None:
    breaker = {"failures": 1, "open_for": 0.3}
    async with pair(tmp_path, lab(upstream.url), breaker=breaker) as (one, other):
        upstream.script = error(500, "down")
        await one.chat("lab/m")
        await until(lambda: not shared(one)._outbox)

        async def script(exchange: Exchange) -> None:
            await exchange.gone.wait()

        upstream.script = script
        await asyncio.sleep(0.35)
        line = await one.dial({"model": "lab/m", "messages": []}, "x-request-id: left")
        await upstream.asked(2)
        await line.hang_up()
        await one.attempt("left")
        upstream.script = completion()
        await until(lambda: not shared(one)._outbox)
        assert (await other.chat("lab/m")).status_code == 200


async def test_an_order_to_one_reaches_the_other(upstream: Upstream, tmp_path: Path) -> None:
    async with pair(tmp_path, lab(upstream.url)) as (one, other):
        path = "/admin/providers/lab/keys/k1"
        upstream.script = error(429, "slow", retry_after="60")
        await one.chat("lab/m")
        await becomes(other, "cooling")
        await one.client.post(f"{path}/reset")
        await becomes(other, "healthy")
        for what, state in (("disable", "disabled"), ("enable", "healthy")) * 2:
            await one.client.post(f"{path}/{what}")
            await becomes(other, state)
        upstream.script = completion()
        for gateway in (one, other):
            assert (await gateway.chat("lab/m")).status_code == 200


async def test_a_server_that_freezes_is_done_without_and_comes_back(
    upstream: Upstream, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It costs one wait; each gateway keeps to its part of the limit meanwhile."""
    provider = lab(upstream.url, limits={"groups": {"k1": {"rpm": 9}}})
    caplog.set_level("INFO")
    with private_server("--requirepass", "pass-canary-1") as server:
        url = server.url.replace("//", "//:pass-canary-1@")
        async with two(tmp_path, {"url": url}, provider) as (one, other):
            await until(lambda: shared(one).nodes == 2)
            for gateway in (one, other):
                assert (await gateway.chat("lab/m")).status_code == 200
            server.freeze()
            for gateway in (one, other):
                answers = [await gateway.chat("lab/m") for _ in range(5)]
                assert [got.status_code for got in answers] == [200, 200, 200, 429, 429]
                assert not shared(gateway).available
                rows = await gateway.rows(6, "SELECT * FROM api_calls ORDER BY timestamp, id")
                queued = [row["queue_time_ms"] for row in rows[1:4]]
                assert queued[0] < 250
                assert max(queued[1:]) < 40  # nobody waits for it any more
            assert len(upstream.calls) == 2 + 3 + 3
            server.thaw()
            await until(lambda: shared(one).available and shared(other).available, 10)
            assert (await one.chat("lab/m")).status_code == 200
            await one.client.post("/admin/providers/lab/keys/k1/disable")
            await becomes(other, "disabled")
    said = caplog.text
    assert "is away (TimeoutError)" in said
    assert "as one of 2" in said
    assert "is back" in said
    assert "canary" not in said
