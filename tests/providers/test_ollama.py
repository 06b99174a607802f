from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
import respx

from proxy.errors import ErrorReason as R
from proxy.providers import DIALECTS
from proxy.providers.base import Provider
from proxy.providers.ollama import answers
from proxy.types import Memory, ModelInfo
from tests.providers.cases import (
    KEY_FAILS,
    NEXT_TARGET,
    NOW,
    STOP,
    TARGET_FAILS,
    Case,
    check,
    group_rests,
    name_of,
    openai_error,
    target_rests,
)
from tests.transcripts import body, data

OLLAMA = DIALECTS["ollama"]
BASE = "http://127.0.0.1:11434/v1"
WEEK = "you (someone) have reached your weekly usage limit, upgrade for higher limits"
SESSION = "you (someone) have reached your session usage limit, upgrade for higher limits"

CASES = [
    Case("not pulled", 404, body("T16.model"), R.NOT_FOUND, NEXT_TARGET),
    Case(
        "not pulled, older words",
        404,
        openai_error('model "x" not found, try pulling it first', type="api_error"),
        R.NOT_FOUND,
        NEXT_TARGET,
    ),
    Case("native error", 404, b'{"error":"model \\"x\\" not found"}', R.NOT_FOUND, NEXT_TARGET),
    *[
        Case(
            message,
            400,
            openai_error(message, type="invalid_request_error", param=None, code=None),
            R.INVALID_REQUEST,
            STOP,
        )
        for message in (
            "invalid character '}' looking for beginning of object key string",
            "json: cannot unmarshal string into Go struct field",
            "EOF",
            "[] is too short - 'messages'",
            "invalid message format",
            "Invalid value for 'encoding_format' = base65",
            '"x" does not support thinking',
        )
    ],
    Case(
        "queue full for a while",
        503,
        body("T16.busy"),
        R.OVERLOADED,
        target_rests(3.0),
        {"retry-after": "3"},
    ),
    Case("queue full", 503, body("T16.busy"), R.OVERLOADED, KEY_FAILS),
    Case(
        "cancelled in the queue",
        499,
        openai_error("request canceled", type="api_error"),
        R.STREAM_ERROR,
        TARGET_FAILS,
    ),
    Case(
        "context of embeddings",
        400,
        openai_error("the input length exceeds the context length"),
        R.CONTEXT_LENGTH,
        STOP,
    ),
    Case(
        "runner crash",
        500,
        openai_error("llama runner process has terminated", type="api_error"),
        R.SERVER_ERROR,
        KEY_FAILS,
    ),
    Case(
        "cloud week",
        429,
        openai_error(WEEK, type="api_error"),
        R.QUOTA_EXCEEDED,
        group_rests(None, ""),
    ),
    Case(
        "cloud hour, as ollama.com itself says it",
        429,
        b'{"error":"you (someone) have reached your hourly usage limit"}',
        R.QUOTA_EXCEEDED,
        group_rests(None, ""),
    ),
    Case("cloud session", 429, openai_error(SESSION), R.QUOTA_EXCEEDED, group_rests(None, "")),
    Case("cloud unreachable", 502, openai_error("no route"), R.SERVER_ERROR, KEY_FAILS),
]


def test_only_here_tool_calls_are_told_apart() -> None:
    assert {name for name, each in DIALECTS.items() if each.mends_tool_indices} == {"ollama"}


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_each_refusal_has_its_reason_and_its_verdict(case: Case) -> None:
    check("ollama", case)


def test_a_native_error_line_is_a_broken_stream() -> None:
    line = json.loads(body("T16.native").splitlines()[-1])
    fault = OLLAMA.classify_event(line["error"], NOW)
    assert (fault.reason, fault.executed) == (R.STREAM_ERROR, True)


def test_its_usage_is_read() -> None:
    usage = OLLAMA.usage(json.loads(data("T14")[3])["usage"])
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (26, 4, 30)


def test_a_bare_host_stands_for_its_openai_path() -> None:
    provider = Provider.of("desk", OLLAMA, base_url="http://10.0.0.5:11434")
    assert provider.base_url == "http://10.0.0.5:11434/v1"


def served(router: respx.MockRouter) -> httpx.MockTransport:
    return httpx.MockTransport(router.async_handler)


async def test_it_answers_with_its_version() -> None:
    router = respx.MockRouter()
    router.get("http://127.0.0.1:11434/api/version").respond(json={"version": "0.33.0"})
    assert await answers(served(router), BASE)


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(404, json={"version": "1"}),
        httpx.Response(200, text="Ollama is running"),
        httpx.Response(200, json=["version"]),
        httpx.Response(200, content=b"[" * 60_000),
        httpx.Response(200, content=b"{" + b" " * 70_000 + b'"version":"1"}'),
    ],
)
async def test_something_else_on_its_port_is_no_ollama(response: httpx.Response) -> None:
    router = respx.MockRouter()
    router.get("http://127.0.0.1:11434/api/version").mock(return_value=response)
    assert not await answers(served(router), BASE)


async def test_nothing_on_its_port_is_no_ollama() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    assert not await answers(httpx.MockTransport(refuse), BASE)


async def test_silence_on_its_port_is_not_waited_for() -> None:
    async def hang(request: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    assert not await answers(httpx.MockTransport(hang), BASE, within=0.01)


TAGS = {
    "models": [
        {
            "name": "llama3.2:latest",
            "digest": "d1",
            "size": 2_019_393_189,
            "details": {"parameter_size": "3.2B", "quantization_level": "Q4_K_M"},
        },
        {"name": "nomic:latest", "digest": "d2", "details": {"parameter_size": "137M"}},
    ]
}
PS = {"models": [{"name": "llama3.2:latest", "size": 3 * 1024**3, "context_length": 4096}]}
SHOWN = {
    "llama3.2:latest": {
        "model_info": {"general.parameter_count": 3_212_749_888, "llama.context_length": 131_072},
        "capabilities": ["completion", "tools"],
    },
    "nomic:latest": {"model_info": {}, "capabilities": ["embedding"]},
}


class Native:
    """Ollama's own paths, by hand; counts what was asked."""

    def __init__(self, **broken: Any) -> None:
        self.asked: list[str] = []
        self.answers: dict[str, Any] = {"tags": TAGS, "ps": PS, **broken}

    async def __call__(self, method: str, url: str, body: bytes | None) -> bytes:
        what = url.removeprefix("http://127.0.0.1:11434/api/")
        if what == "show":
            name = json.loads(body or b"")["model"]
            self.asked.append(name)
            if name in self.answers:
                raise ValueError("HTTP 404")
            return json.dumps(SHOWN[name]).encode()
        return json.dumps(self.answers[what]).encode()


LISTED = [ModelInfo("desk", "llama3.2:latest", {"id": "llama3.2:latest"}), ModelInfo("desk", "x")]


async def test_its_own_paths_tell_size_context_and_memory() -> None:
    models = [*LISTED, ModelInfo("desk", "nomic:latest")]
    llama, other, nomic = await OLLAMA.enrich(BASE, models, Native(), {})
    assert (llama.parameters, llama.context_length) == (3_212_749_888, 131_072)
    assert (llama.memory_usage_gb, llama.type, llama.version) == (3.0, "chat", "d1")
    assert llama.loaded_at is not None
    assert llama.raw["id"] == "llama3.2:latest"
    assert llama.raw["details"]["quantization_level"] == "Q4_K_M"
    assert (nomic.parameters, nomic.type, nomic.loaded_at) == (137_000_000, "embedding", None)
    assert other == LISTED[1]


async def test_a_digest_is_asked_about_once_and_loading_keeps_its_moment() -> None:
    native, known = Native(), dict[str, Any]()
    (first, _) = await OLLAMA.enrich(BASE, LISTED, native, known)
    known["loaded"]["llama3.2:latest"] = 1000
    (second, _) = await OLLAMA.enrich(BASE, LISTED, native, known)
    assert native.asked == ["llama3.2:latest", "nomic:latest"]
    assert first.parameters == second.parameters
    assert second.loaded_at == 1000
    native.answers["ps"] = {"models": None}
    (gone, _) = await OLLAMA.enrich(BASE, LISTED, native, known)
    assert (gone.loaded_at, gone.memory_usage_gb) == (None, None)


async def test_one_model_that_cannot_be_shown_hides_no_other() -> None:
    native = Native(**{"nomic:latest": None})
    (llama, _) = await OLLAMA.enrich(BASE, LISTED, native, {})
    assert llama.context_length == 131_072


async def test_few_new_models_are_looked_at_in_one_go() -> None:
    tags = [{"name": f"m{i}", "digest": f"d{i}"} for i in range(40)]
    native, known = Native(tags={"models": tags}), dict[str, Any]()
    SHOWN.update({f"m{i}": {} for i in range(40)})
    await OLLAMA.enrich(BASE, LISTED, native, known)
    assert len(native.asked) == 32
    await OLLAMA.enrich(BASE, LISTED, native, known)
    assert len(native.asked) == 40


def test_a_model_that_is_loaded_has_its_size_and_one_that_is_not_has_none() -> None:
    def holds(model: str, models: Any) -> Memory | None:
        return OLLAMA.memory(model, json.dumps({"models": models}).encode())

    entry = {"name": "hf.co/x/y:Q4", "size": 2 * 1024**3, "size_vram": 1024**3}
    assert holds("hf.co/x/y:q4", [entry]) == Memory(2048.0, 1024.0)
    assert holds("hf.co/x/y", [entry]) == Memory()
    assert holds("m", [{"name": "m:latest", "size": 1024**2}]) == Memory(1.0, 0.0)
    assert holds("m", None) == holds("m", [None, {}]) == Memory()
    assert holds("m", [{"name": "m:latest"}]) is None
    assert OLLAMA.memory("m", b"[]") is OLLAMA.memory("m", b"[" * 9000) is None
