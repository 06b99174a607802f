from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import respx

from proxy.providers import DIALECTS, lists
from proxy.providers.base import Provider
from proxy.providers.lists import ModelLists
from proxy.types import ModelInfo
from tests.transcripts import body

GROQ = "https://api.groq.com/openai/v1/models"
LAB = "http://127.0.0.1:9000/v1/models"
DESK = "http://127.0.0.1:11434"


def listing(*names: str) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": name, "object": "model"} for name in names]}


class World:
    """Two providers behind mocked routes, and all that the lists told about them."""

    def __init__(self, *names: str) -> None:
        self.router = respx.MockRouter(assert_all_called=False)
        self.keys: dict[str, tuple[str, str] | None] = {"groq": ("org-a", "gsk_secret")}
        self.refused: list[tuple[str, str]] = []
        self.updated: list[list[ModelInfo]] = []
        known = {
            "groq": Provider.of("groq", DIALECTS["groq"]),
            "lab": Provider.of("lab", DIALECTS["openai"], base_url="http://127.0.0.1:9000/v1"),
            "desk": Provider.of("desk", DIALECTS["ollama"]),
        }
        self.lists = ModelLists(
            [known[name] for name in names],
            httpx.MockTransport(self.router.async_handler),
            key=self.keys.get,
            refused=lambda provider, name: self.refused.append((provider, name)),
            updated=self.updated.append,
        )

    async def names(self) -> list[str]:
        return [f"{model.provider}/{model.name}" for model in await self.lists.all()]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lists, "monotonic", clock)
    return clock


async def test_lists_come_in_the_order_of_the_configuration() -> None:
    world = World("lab", "groq")
    world.router.get(GROQ).respond(json=listing("openai/gpt-oss-120b"))
    world.router.get(LAB).respond(json=listing("json", "openai/gpt-oss-120b"))
    assert await world.names() == [
        "lab/json",
        "lab/openai/gpt-oss-120b",
        "groq/openai/gpt-oss-120b",
    ]
    assert world.lists.find("openai/gpt-oss-120b") == "lab"
    assert world.lists.find("nobody") is None
    assert world.lists.names()[:2] == ["json", "lab/json"]
    assert sorted(each[0].provider for each in world.updated) == ["groq", "lab"]


async def test_a_key_of_the_provider_is_shown_to_it_alone() -> None:
    world = World("groq", "lab")
    groq = world.router.get(GROQ).respond(json=listing())
    lab = world.router.get(LAB).respond(json=listing())
    await world.lists.all()
    assert groq.calls.last.request.headers["authorization"] == "Bearer gsk_secret"
    assert groq.calls.last.request.headers["accept-encoding"] == "identity"
    assert "authorization" not in lab.calls.last.request.headers


async def test_a_list_is_kept_for_five_minutes(clock: Clock) -> None:
    world = World("lab")
    route = world.router.get(LAB).respond(json=listing("a"))
    await world.lists.all()
    clock.now += 299
    await world.lists.all()
    assert route.call_count == 1
    route.respond(json=listing("b"))
    clock.now += 2
    assert await world.names() == ["lab/b"]
    assert world.lists.find("a") is None


async def test_who_asks_at_once_shares_one_fetch() -> None:
    world = World("lab")
    gate = asyncio.Event()

    async def slow(request: httpx.Request) -> httpx.Response:
        await gate.wait()
        return httpx.Response(200, json=listing("a"))

    route = world.router.get(LAB).mock(side_effect=slow)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(world.names()) for _ in range(5)]
        await asyncio.sleep(0)
        gate.set()
    assert [task.result() for task in tasks] == [["lab/a"]] * 5
    assert route.call_count == 1


async def test_a_caller_that_leaves_takes_nobody_with_it() -> None:
    world = World("lab")
    gate = asyncio.Event()

    async def slow(request: httpx.Request) -> httpx.Response:
        await gate.wait()
        return httpx.Response(200, json=listing("a"))

    world.router.get(LAB).mock(side_effect=slow)
    async with asyncio.TaskGroup() as group:
        leaver = group.create_task(world.names())
        await asyncio.sleep(0)
        stayer = group.create_task(world.names())
        await asyncio.sleep(0)
        leaver.cancel()
        gate.set()
    assert stayer.result() == ["lab/a"]


def refuse(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused")


@pytest.mark.parametrize(
    "failure",
    [
        refuse,
        lambda request: httpx.Response(500, text="boom"),
        lambda request: httpx.Response(200, text="<html>"),
        lambda request: httpx.Response(200, json={"models": []}),
        lambda request: httpx.Response(200, content=b"[" * 200_000),
        lambda request: httpx.Response(200, content=b" " * (17 << 20)),
        lambda request: httpx.Response(401, json={"error": "Unauthorized"}),
    ],
)
async def test_a_dead_provider_keeps_its_last_list(
    failure: Callable[[httpx.Request], httpx.Response], clock: Clock
) -> None:
    world = World("groq", "lab")
    world.router.get(GROQ).respond(json=listing("llama"))
    lab = world.router.get(LAB).mock(side_effect=failure)
    assert await world.names() == ["groq/llama"]
    lab.mock(side_effect=None, return_value=httpx.Response(200, json=listing("a")))
    clock.now += 31
    assert await world.names() == ["groq/llama", "lab/a"]
    lab.mock(side_effect=failure)
    clock.now += 301
    assert await world.names() == ["groq/llama", "lab/a"]


async def test_a_dead_provider_is_not_asked_at_every_call(clock: Clock) -> None:
    world = World("lab")
    route = world.router.get(LAB).mock(side_effect=refuse)
    await world.lists.all()
    await world.lists.all()
    assert route.call_count == 1
    assert world.updated == []


async def test_a_silent_provider_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "_DEADLINE", 0.02)
    world = World("lab", "groq")

    async def hang(request: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    world.router.get(LAB).mock(side_effect=hang)
    world.router.get(GROQ).respond(json=listing("llama"))
    assert await world.names() == ["groq/llama"]


def at(name: str, url: str, dialect: str = "openai") -> Provider:
    return Provider.of(name, DIALECTS[dialect], base_url=url)


async def test_other_providers_are_asked_after_a_reload(clock: Clock) -> None:
    world = World("groq", "lab")
    groq = world.router.get(GROQ).respond(json=listing("llama"))
    lab = world.router.get(LAB).respond(json=listing("a"))
    shed = world.router.get("http://127.0.0.1:9001/v1/models").respond(json=listing("b"))
    await world.lists.all()
    same, new = at("lab", "http://127.0.0.1:9000/v1"), at("shed", "http://127.0.0.1:9001/v1")
    world.lists.replace([new, same])
    assert world.lists.find("a") == "lab"
    assert world.lists.find("llama") is None
    assert await world.names() == ["shed/b", "lab/a"]
    assert (groq.call_count, lab.call_count, shed.call_count) == (1, 1, 1)


async def test_a_provider_at_another_address_is_asked_anew(clock: Clock) -> None:
    world = World("lab")
    world.router.get(LAB).respond(json=listing("a"))
    world.router.get("http://127.0.0.1:9001/v1/models").respond(json=listing("b"))
    await world.lists.all()
    world.lists.replace([at("lab", "http://127.0.0.1:9001/v1")])
    assert world.lists.find("a") is None
    assert await world.names() == ["lab/b"]


async def test_a_provider_is_reached_when_it_answers_whatever_its_list_said_before(
    clock: Clock,
) -> None:
    world = World("groq", "lab")
    route = world.router.get(LAB).mock(side_effect=refuse)
    assert not await world.lists.reached("lab")
    assert not await world.lists.reached("nobody")
    route.mock(side_effect=None, return_value=httpx.Response(200, json=listing("a")))
    assert await world.lists.reached("lab")
    assert world.lists.find("a") == "lab"
    route.mock(side_effect=refuse)
    assert not await world.lists.reached("lab")  # although the list is fresh
    assert world.lists.find("a") == "lab"
    assert route.call_count == 3


async def test_a_refused_key_is_told_by_its_name() -> None:
    world = World("groq", "lab")
    world.router.get(GROQ).respond(401, content=body("T5.key"))
    world.router.get(LAB).respond(401, content=body("T21.vllm_key"))
    assert await world.names() == []
    assert world.refused == [("groq", "org-a")]


async def test_other_refusals_say_nothing_about_the_key() -> None:
    world = World("groq")
    world.router.get(GROQ).respond(403, json={"error": {"message": "no"}})
    await world.lists.all()
    assert world.refused == []


async def test_ollama_without_models_has_an_empty_list() -> None:
    world = World("desk")
    world.router.get(f"{DESK}/v1/models").respond(content=body("T16.models"))
    world.router.get(f"{DESK}/api/tags").respond(json={"models": None})
    world.router.get(f"{DESK}/api/ps").respond(json={"models": None})
    assert await world.names() == []
    assert world.updated == [[]]


async def test_ollama_tells_more_on_its_own_paths() -> None:
    world = World("desk")
    world.router.get(f"{DESK}/v1/models").respond(json=listing("llama3.2:latest"))
    tag = {"name": "llama3.2:latest", "digest": "d"}
    world.router.get(f"{DESK}/api/tags").respond(json={"models": [tag]})
    world.router.get(f"{DESK}/api/ps").respond(json={"models": []})
    show = world.router.post(f"{DESK}/api/show", json={"model": "llama3.2:latest"})
    show.respond(json={"model_info": {"llama.context_length": 131_072}})
    (model,) = await world.lists.all()
    assert model.context_length == 131_072
    assert world.lists.find("llama3.2") == "desk"
    assert world.updated == [[model]]


async def test_an_ollama_without_its_own_paths_still_has_a_list() -> None:
    world = World("desk")
    world.router.get(f"{DESK}/v1/models").respond(json=listing("llama3.2:latest"))
    world.router.get(f"{DESK}/api/tags").respond(404)
    assert await world.names() == ["desk/llama3.2:latest"]


@pytest.mark.parametrize("fault", [KeyError, TypeError, AttributeError])
async def test_a_list_that_its_dialect_cannot_read_spoils_no_other(
    fault: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(self: object, provider: str, found: bytes) -> list[ModelInfo]:
        raise fault("surprised")

    world = World("groq", "lab")
    world.router.get(GROQ).respond(json=listing("a"))
    world.router.get(LAB).respond(json=listing("b"))
    monkeypatch.setattr(type(DIALECTS["groq"]), "models", cannot)
    assert await world.names() == ["lab/b"]
