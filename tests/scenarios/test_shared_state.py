"""Two gateways with one Redis: they keep to one limit, and learn from each other."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.gateway import Gateway, lab, running
from tests.redis_server import own_keys, private_server, some_server
from tests.scenarios.views import key, until
from tests.upstream import Exchange, Upstream, completion, error, upstream_server

pytestmark = pytest.mark.asyncio(loop_scope="module")

Whole = tuple[Gateway, Gateway, Upstream]
ROUTING = {
    "max_wait": 0,
    "retry_budget": {"minimum": 1000},
    "breaker": {"failures": 1, "open_for": 1.5},
}


def shared(gateway: Gateway) -> Any:
    return gateway.app.state.reload.__self__._company.shared


PROVIDERS = ("requests", "tokens", "refused", "probed", "left", "ordered")
"""One for each test: they share two gateways, and nothing else."""


@asynccontextmanager
async def two(
    folder: Path, state: dict[str, str], providers: dict[str, Any]
) -> AsyncIterator[tuple[Gateway, Gateway]]:
    """Two gateways that know of each other; each has its own database."""
    config = {"providers": providers, "state": state, "routing": ROUTING}
    async with AsyncExitStack() as stack:
        gateways = []
        for name in ("one", "two"):
            (folder / name).mkdir()
            gateways.append(await stack.enter_async_context(running(folder / name, config)))
        one, other = gateways
        await until(lambda: shared(one).nodes == shared(other).nodes == 2)
        yield one, other


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Whole]:
    async with upstream_server() as upstream:
        providers = {name: lab(upstream.url, f"sk-{name}-1111") for name in PROVIDERS}
        providers["requests"]["limits"] = {"groups": {"k1": {"rpm": 7}}}
        providers["tokens"]["limits"] = {"groups": {"k1": {"tpm": 100}}}
        with some_server() as url:
            async with (
                own_keys(url) as prefix,
                two(
                    tmp_path_factory.mktemp("shared"), {"url": url, "prefix": prefix}, providers
                ) as (one, other),
            ):
                yield one, other, upstream


@pytest.fixture
def both(whole: Whole) -> Whole:
    whole[2].reset()
    return whole


async def soon(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await condition():  # noqa: ASYNC110 - the news come over the network
            await asyncio.sleep(0.02)


async def told(gateway: Gateway) -> None:
    """All that it has learnt has gone to the server."""
    state = shared(gateway)
    await until(lambda: not state._outbox and not state._exchanging.locked())


async def becomes(gateway: Gateway, name: str, state: str) -> None:
    async def shown() -> bool:
        return (await key(gateway, name))["state"] == state

    await soon(shown)


async def serves(gateway: Gateway, model: str) -> bool:
    return (await gateway.chat(model)).status_code == 200


async def test_one_limit_holds_for_both(both: Whole) -> None:
    one, other, upstream = both

    async def hammer(gateway: Gateway) -> list[int]:
        return [(await gateway.chat("requests/m")).status_code for _ in range(7)]

    statuses = await asyncio.gather(*[hammer(gateway) for gateway in (one, other) * 3])
    assert Counter(chain(*statuses)) == {200: 7, 429: 35}
    assert len(upstream.calls) == 7
    for gateway in (one, other):
        got = await gateway.chat("requests/m")
        assert (got.status_code, len(upstream.calls)) == (429, 7)
        assert 40 <= int(got.headers["retry-after"]) <= 61
        assert (await key(gateway, "requests/k1"))["in_flight"] == 0


async def test_tokens_are_counted_for_both_as_they_were_used(both: Whole) -> None:
    one, other, upstream = both
    upstream.script = completion(prompt=60, output=30)
    assert (await one.chat("tokens/m")).status_code == 200
    await told(one)
    assert (await other.chat("tokens/m", "word " * 30)).status_code == 429
    assert len(upstream.calls) == 1


async def test_what_one_was_refused_the_other_does_not_ask(both: Whole) -> None:
    one, other, upstream = both
    upstream.by_model |= {
        "m": error(429, "slow", retry_after="60"),
        "dead": error(401, "revoked"),
    }
    await one.chat("refused/m")
    await told(one)
    got = await other.chat("refused/m")
    assert got.status_code == 429
    assert 55 <= int(got.headers["retry-after"]) <= 61
    assert len(upstream.calls) == 1
    assert (await other.chat("refused/free")).status_code == 200
    await other.chat("refused/dead")
    await told(other)
    assert (await one.chat("refused/free")).status_code == 502
    assert len(upstream.calls) == 3


async def test_one_of_them_probes(both: Whole) -> None:
    one, other, upstream = both
    upstream.script = error(500, "down")
    await one.chat("probed/m")
    await told(one)
    got = await other.chat("probed/m")
    assert got.json()["error"]["code"] == "circuit_open"
    assert len(upstream.calls) == 1
    go = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await asyncio.wait_for(go.wait(), 20)
        await completion()(exchange)

    upstream.script = script
    await asyncio.sleep(1.55)
    async with asyncio.TaskGroup() as tasks:
        calls = [tasks.create_task(each.chat("probed/m")) for each in (one, other) * 3]
        await until(lambda: sum(call.done() for call in calls) == 5)
        assert len(upstream.calls) == 2
        go.set()
    assert Counter(call.result().status_code for call in calls) == {200: 1, 503: 5}
    for gateway in (one, other):
        await soon(partial(serves, gateway, "probed/m"))


async def test_a_probe_whose_client_leaves_is_free_for_the_other(both: Whole) -> None:
    one, other, upstream = both
    upstream.script = error(500, "down")
    await one.chat("left/m")
    await told(one)

    async def script(exchange: Exchange) -> None:
        await exchange.gone.wait()

    upstream.script = script
    await asyncio.sleep(1.55)
    line = await one.dial({"model": "left/m", "messages": []}, "x-request-id: left")
    await upstream.asked(2)
    await line.hang_up()
    await one.attempt("left")
    upstream.script = completion()
    await told(one)
    assert (await other.chat("left/m")).status_code == 200


async def test_an_order_to_one_reaches_the_other(both: Whole) -> None:
    one, other, upstream = both
    path = "/admin/providers/ordered/keys/k1"
    upstream.script = error(429, "slow", retry_after="60")
    await one.chat("ordered/m")
    await becomes(other, "ordered/k1", "cooling")
    await one.client.post(f"{path}/reset")
    await becomes(other, "ordered/k1", "healthy")
    for what, state in (("disable", "disabled"), ("enable", "healthy")) * 2:
        await one.client.post(f"{path}/{what}")
        await becomes(other, "ordered/k1", state)
    upstream.script = completion()
    for gateway in (one, other):
        assert (await gateway.chat("ordered/m")).status_code == 200


async def test_a_server_that_freezes_is_done_without_and_comes_back(
    both: Whole, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It costs one wait; each gateway keeps to its part of the limit meanwhile."""
    upstream = both[2]
    provider = lab(upstream.url, limits={"groups": {"k1": {"rpm": 9}}})
    caplog.set_level("INFO")
    with private_server("--requirepass", "pass-canary-1") as server:
        url = server.url.replace("//", "//:pass-canary-1@")
        async with two(tmp_path, {"url": url}, {"lab": provider}) as (one, other):
            for gateway in (one, other):
                assert (await gateway.chat("lab/m")).status_code == 200
            server.freeze()
            for gateway in (one, other):
                answers = [await gateway.chat("lab/m") for _ in range(5)]
                assert [got.status_code for got in answers] == [200, 200, 200, 429, 429]
                assert not shared(gateway).available
                rows = await gateway.rows(6, "SELECT * FROM api_calls ORDER BY timestamp, id")
                queued = [row["queue_time_ms"] for row in rows[1:4]]
                assert max(queued[1:]) < queued[0]  # nobody waits for it any more
            assert len(upstream.calls) == 2 + 3 + 3
            server.thaw()
            await until(lambda: shared(one).available and shared(other).available, 10)
            assert (await one.chat("lab/m")).status_code == 200
            await one.client.post("/admin/providers/lab/keys/k1/disable")
            await becomes(other, "k1", "disabled")
    said = caplog.text
    assert "is away (TimeoutError)" in said
    assert "as one of 2" in said
    assert "is back" in said
    assert "canary" not in said


async def test_both_show_the_newest_calls_of_both(both: Whole) -> None:
    one, other, upstream = both
    upstream.script = completion("Hi")
    names: list[str] = []

    async def shown(gateway: Gateway) -> list[str]:
        calls = (await gateway.client.get("/stats/recent?provider=left&limit=3")).json()["data"]
        return [call["request_id"] for call in calls]

    for gateway in (one, other, one):
        names.insert(0, (await gateway.chat("left/json")).headers["x-request-id"])
        # They stand in the order in which they were told, each by its own gateway.
        for each in (one, other):
            await soon(lambda each=each: _equal(shown(each), names))


async def _equal(found: Awaitable[list[str]], expected: list[str]) -> bool:
    return (await found)[: len(expected)] == expected
