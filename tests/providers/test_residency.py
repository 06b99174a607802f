from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import pytest

from proxy.providers import DIALECTS, OLLAMA_NATIVE, residency
from proxy.providers.base import Provider
from proxy.providers.residency import FRESH, Residency
from proxy.types import Memory

MIB = 1024**2
DESK = Provider.of("desk", DIALECTS["ollama"], base_url="http://127.0.0.1:11434")
LOADED = Memory(5000.0, 4000.0)
ENTRY = {"name": "llama3.2:latest", "size": 5000 * MIB, "size_vram": 4000 * MIB}


class Server(httpx.AsyncBaseTransport):
    """An Ollama that answers ``/api/ps`` once it is let."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.models: Any = [ENTRY]
        self.body: bytes | None = None
        self.status = 200
        self.failure: Exception | None = None
        self.may = asyncio.Event()
        self.may.set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(str(request.url))
        await self.may.wait()
        if self.failure is not None:
            raise self.failure
        body = self.body or json.dumps({"models": self.models}).encode()
        return httpx.Response(self.status, stream=httpx.ByteStream(body))


class Desk:
    """A residency that asks ``server``, and what it has told."""

    def __init__(self) -> None:
        self.server = Server()
        self.tasks: list[asyncio.Task[None]] = []
        self.told: list[Memory] = []
        self.residency = Residency(self.server, self._start)

    def _start(self, task: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(asyncio.ensure_future(task))

    def ask(self, model: str = "llama3.2", provider: Provider = DESK) -> None:
        self.residency.ask(provider, model, self.told.append)

    async def answered(self) -> list[Memory]:
        await asyncio.gather(*self.tasks)
        return self.told


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    now = [1000.0]
    monkeypatch.setattr(residency, "monotonic", lambda: now[0])

    def forward(seconds: float) -> None:
        now[0] += seconds

    return forward


async def test_nobody_waits_and_the_answer_comes_by_itself() -> None:
    desk = Desk()
    desk.server.may.clear()
    desk.ask()
    assert desk.told == []
    desk.server.may.set()
    assert await desk.answered() == [LOADED]
    assert desk.server.asked == ["http://127.0.0.1:11434/api/ps"]


async def test_calls_that_begin_together_ask_once() -> None:
    desk = Desk()
    desk.server.may.clear()
    for model in ("llama3.2", "llama3.2:latest", "LLAMA3.2", "llama3.2:1b"):
        desk.ask(model)
    desk.server.may.set()
    assert await desk.answered() == [LOADED, LOADED, LOADED, Memory()]
    assert len(desk.server.asked) == 1


async def test_a_loaded_model_is_believed_for_a_while(clock: Callable[[float], None]) -> None:
    desk = Desk()
    desk.ask()
    await desk.answered()
    clock(FRESH - 0.1)
    desk.ask()
    assert (len(desk.server.asked), desk.told) == (1, [LOADED, LOADED])
    clock(0.2)
    desk.server.models = []
    desk.ask()
    assert await desk.answered() == [LOADED, LOADED, Memory()]
    assert len(desk.server.asked) == 2


async def test_that_one_is_not_loaded_is_asked_anew_for_each_call() -> None:
    desk = Desk()
    desk.server.models = None  # as an Ollama says "none"
    desk.ask()
    await desk.answered()
    desk.server.models = [ENTRY]
    desk.ask()
    assert await desk.answered() == [Memory(), LOADED]


@pytest.mark.parametrize("broken", ["refused", "slow", "status", "no list", "no json"])
async def test_without_an_answer_nothing_is_told_and_it_is_left_alone_for_a_while(
    broken: str, clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk()
    match broken:
        case "refused":
            desk.server.failure = httpx.ConnectError("refused")
        case "slow":
            monkeypatch.setattr(residency, "_DEADLINE", 0.01)
            desk.server.may.clear()
        case "status":
            desk.server.status = 404
        case _:
            desk.server.body = {"no list": b'{"error":"x"}', "no json": b"<html>"}[broken]
    desk.ask()
    assert await desk.answered() == []
    desk.ask()
    assert (len(desk.tasks), desk.told) == (1, [])
    clock(FRESH)
    desk.ask()
    assert len(desk.tasks) == 2
    await desk.answered()


async def test_who_tells_nothing_is_not_asked() -> None:
    desk = Desk()
    lab = Provider.of("lab", DIALECTS["openai"], base_url="http://127.0.0.1:1/v1")
    hosted = Provider.of("hosted", OLLAMA_NATIVE, base_url="https://ollama.com/v1")
    desk.ask("m", lab)
    desk.ask("gpt-oss:120b", hosted)
    desk.ask("gpt-oss:120b-cloud")
    assert desk.tasks == []


async def test_by_its_own_paths_it_is_the_same_server() -> None:
    desk = Desk()
    desk.ask(provider=Provider.of("own", OLLAMA_NATIVE, base_url="http://127.0.0.1:11434"))
    assert await desk.answered() == [LOADED]
    desk.ask()
    assert (len(desk.tasks), len(desk.told)) == (1, 2)
