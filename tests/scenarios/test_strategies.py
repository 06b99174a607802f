"""Each strategy once, from a client's request to the upstream that gets it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.gateway import Gateway, lab, running
from tests.upstream import Exchange, Upstream, completion, error, upstream_server

pytestmark = pytest.mark.asyncio(loop_scope="module")

Place = tuple[Gateway, Upstream]
NAMES = ("a", "b", "c", "big", "mild")


def alias(strategy: str, *targets: Any, **more: Any) -> dict[str, Any]:
    """An alias of ``a``, ``b`` and ``c``, each with a model of the strategy's name."""
    default = [f"{name}/{strategy}" for name in "abc"]
    return {"strategy": strategy, "targets": list(targets) or default, **more}


MODELS = {
    "weighted": alias(
        "weighted",
        {"target": "a/weighted", "weight": 3},
        {"target": "b/weighted"},
        {"target": "c/weighted", "weight": 2},
    ),
    "sticky-keys": alias("fallback", "many/m"),
    "tiers": alias(
        "round_robin",
        {"target": "a/tiers"},
        {"target": "b/tiers"},
        {"target": "c/tiers", "tier": 2},
    ),
    "instead": alias(
        "fallback",
        "a/instead",
        "b/instead",
        context_window_fallbacks=["big/m"],
        content_filter_fallbacks=["mild/m"],
    ),
    **{
        name: alias(name)
        for name in (
            "fallback",
            "round_robin",
            "least_busy",
            "lowest_latency",
            "lowest_cost",
            "sticky",
        )
    },
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    async with upstream_server() as upstream:
        providers = {name: lab(upstream.url, f"sk-{name}-1111") for name in NAMES}
        providers["many"] = lab(
            upstream.url, *(f"sk-many-{n}" for n in range(4)), strategy="sticky"
        )
        prices = {
            "a/lowest_cost": {"input": 3, "output": 3},
            "b/lowest_cost": {"input": 1, "output": 1},
        }
        config = {"providers": providers, "models": MODELS, "prices": prices}
        async with running(tmp_path_factory.mktemp("strategies"), config) as gateway:
            yield gateway, upstream


@pytest.fixture
def place(whole: Place) -> Place:
    whole[1].reset()
    return whole


async def served(gateway: Gateway, model: str, count: int, **more: Any) -> list[str]:
    """Who serves so many calls in turn."""
    answers = [await gateway.chat(model, **more) for _ in range(count)]
    assert {got.status_code for got in answers} == {200}
    return [got.headers["x-tollkeeper-provider"] for got in answers]


async def test_fallback_goes_by_the_order(place: Place) -> None:
    gateway, upstream = place
    assert await served(gateway, "fallback", 2) == ["a", "a"]
    upstream.by_key["sk-a-1111"] = error(500, "down")
    assert await served(gateway, "fallback", 2) == ["b", "b"]


async def test_weights_are_shares(place: Place) -> None:
    assert Counter(await served(place[0], "weighted", 12)) == {"a": 6, "b": 2, "c": 4}


async def test_round_robin_takes_turns(place: Place) -> None:
    took = await served(place[0], "round_robin", 6)
    assert took[:3] == took[3:]
    assert sorted(took[:3]) == ["a", "b", "c"]


async def test_the_least_busy_target_is_taken(place: Place) -> None:
    gateway, upstream = place
    go = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await asyncio.wait_for(go.wait(), 20)
        await completion()(exchange)

    upstream.script = script
    async with asyncio.TaskGroup() as tasks:
        for _ in range(6):
            tasks.create_task(gateway.chat("least_busy"))
        await upstream.asked(6)
        go.set()
    assert Counter(call.key[3] for call in upstream.calls) == {"a": 2, "b": 2, "c": 2}


async def test_the_quickest_target_gets_the_most(place: Place) -> None:
    gateway, upstream = place

    async def slow(exchange: Exchange) -> None:
        await asyncio.sleep(0.3)
        await completion()(exchange)

    upstream.by_key |= {"sk-a-1111": slow, "sk-c-1111": slow}
    took = Counter(await served(gateway, "lowest_latency", 16))
    assert set(took) == {"a", "b", "c"}  # each was tried
    assert took["b"] >= 10


async def test_the_cheapest_target_is_taken_and_an_unknown_price_is_the_last(
    place: Place,
) -> None:
    gateway, upstream = place
    assert await served(gateway, "lowest_cost", 2) == ["b", "b"]
    upstream.by_key["sk-b-1111"] = error(500, "down")
    assert await served(gateway, "lowest_cost", 1) == ["a"]
    upstream.by_key["sk-a-1111"] = error(500, "down")
    assert await served(gateway, "lowest_cost", 1) == ["c"]


@pytest.mark.parametrize("named", ["header", "body"])
async def test_a_session_keeps_its_target_while_that_is_healthy(place: Place, named: str) -> None:
    gateway, upstream = place
    homes = {}
    for number in range(12):
        session = f"{named}-{number}"
        more = {"headers": {"x-session-id": session}, "prompt_cache_key": session}
        del more["prompt_cache_key" if named == "header" else "headers"]
        [homes[session]] = set(await served(gateway, "sticky", 3, **more))
    assert len(set(homes.values())) > 1
    home = homes[session]
    upstream.by_key[f"sk-{home}-1111"] = error(500, "down")
    [elsewhere] = set(await served(gateway, "sticky", 1, **more))
    assert elsewhere != home
    upstream.by_key.clear()
    assert await served(gateway, "sticky", 1, **more) == [elsewhere]  # its cache is warm there now


async def test_a_session_keeps_its_key(place: Place) -> None:
    gateway, _ = place
    homes = set()
    for number in range(8):
        headers = {"x-session-id": f"s-{number}"}
        answers = [await gateway.chat("sticky-keys", headers=headers) for _ in range(3)]
        [home] = {got.headers["x-tollkeeper-key"] for got in answers}
        homes.add(home)
    assert len(homes) > 1


async def test_a_higher_tier_serves_only_when_none_of_a_lower_one_can(place: Place) -> None:
    gateway, upstream = place
    assert set(await served(gateway, "tiers", 4)) == {"a", "b"}
    upstream.by_key["sk-a-1111"] = error(429, "slow", retry_after="60")
    assert set(await served(gateway, "tiers", 4)) == {"b"}
    upstream.by_key["sk-b-1111"] = error(429, "slow", retry_after="60")
    assert set(await served(gateway, "tiers", 4)) == {"c"}
    seen = Counter(call.key for call in upstream.calls)
    assert seen["sk-a-1111"] <= 3


LONG = error(400, "This model's maximum context length is 8192", "context_length_exceeded")
FILTERED = error(400, "The response was filtered", "content_filter")


@pytest.mark.parametrize(("script", "takes_over"), [(LONG, "big"), (FILTERED, "mild")])
async def test_what_a_target_cannot_take_goes_to_the_list_for_that(
    place: Place, script: Any, takes_over: str
) -> None:
    gateway, upstream = place
    upstream.by_model["instead"] = script
    assert await served(gateway, "instead", 1) == [takes_over]
    assert [call.key for call in upstream.calls] == ["sk-a-1111", f"sk-{takes_over}-1111"]


async def test_a_list_that_cannot_either_is_not_gone_through_twice(place: Place) -> None:
    gateway, upstream = place
    upstream.script = LONG
    got = await gateway.chat("instead")
    assert got.status_code == 400
    assert got.json()["error"]["code"] == "context_length_exceeded"
    assert len(upstream.calls) == 2


async def test_a_mistake_of_the_clients_goes_to_nobody_else(place: Place) -> None:
    gateway, upstream = place
    upstream.script = error(400, "temperature is no number")
    assert (await gateway.chat("instead")).status_code == 400
    assert len(upstream.calls) == 1
