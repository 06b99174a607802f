"""A real llama.cpp behind the gateway: what it says it used is what our row says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from pydantic import BaseModel

from tests.gateway import Gateway, running
from tests.llama import CONTEXT, KEY, MODEL, llama_server

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASK: list[Any] = [{"role": "user", "content": "Tell me something, it need not make sense."}]
FIXED: dict[str, Any] = {"model": MODEL, "messages": ASK, "max_tokens": 40, "temperature": 0}


class Bench:
    """llama.cpp at ``direct``, and the gateway in front of it: ``client``, and ``rows``."""

    def __init__(self, gateway: Gateway, url: str) -> None:
        self.gateway = gateway
        self.rows = gateway.rows
        self.client = AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="unused", max_retries=0)
        self.direct = AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0)

    async def row(self, answer: httpx.Response) -> dict[str, Any]:
        sql = "SELECT * FROM api_calls WHERE request_id = ?"
        [row] = await self.rows(1, sql, answer.headers["x-request-id"])
        return row


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with llama_server(tmp_path_factory.mktemp("llama")) as url:
        yield url


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(llama: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    keys = {"home": KEY, "wrong": "sk-wrong-0001"}
    config = {
        "providers": {
            name: {"type": "openai", "base_url": llama, "keys": [{"name": "k1", "value": key}]}
            for name, key in keys.items()
        }
    }
    async with running(tmp_path_factory.mktemp("gateway"), config) as gateway:
        found = Bench(gateway, llama)
        async with found.client, found.direct:
            yield found


def counted(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "prompt_tokens": row["input_tokens"],
        "completion_tokens": row["output_tokens"],
        "total_tokens": row["total_tokens"],
        "prompt_tokens_details": {"cached_tokens": row["cached_tokens"]},
    }


def _text(event: dict[str, Any]) -> str | None:
    """What an event of a stream says."""
    return next((choice["delta"].get("content") for choice in event["choices"]), None)


async def test_the_usage_of_an_answer_is_the_rows(bench: Bench) -> None:
    answer = await bench.gateway.client.post(
        "/v1/chat/completions", json={**FIXED, "model": f"home/{MODEL}"}
    )
    assert answer.status_code == 200
    assert "timings" in answer.json()
    row = await bench.row(answer)
    assert counted(row) == answer.json()["usage"]
    assert (row["status"], row["usage_source"]) == ("success", "provider")
    assert row["finish_reason"] == answer.json()["choices"][0]["finish_reason"]
    assert (row["cost_estimate_usd"], row["cost_source"]) == (None, "none")


async def test_the_usage_of_a_stream_is_the_rows(bench: Bench) -> None:
    answer = await bench.gateway.client.post(
        "/v1/chat/completions",
        json={
            **FIXED,
            "model": f"home/{MODEL}",
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    )
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line[6:7] == "{"]
    [last] = [event for event in events if event.get("usage")]
    assert last["choices"] == []
    row = await bench.row(answer)
    assert counted(row) == last["usage"]
    assert row["chunk_count"] == len([event for event in events if _text(event)])
    assert 0 < row["ttfb_ms"] <= row["time_to_first_token_ms"] <= row["response_time_ms"]
    assert row["tokens_per_second"] > 1


async def test_usage_is_asked_for_and_hidden_from_who_did_not(bench: Bench) -> None:
    plain = await bench.direct.chat.completions.create(**FIXED)
    assert plain.usage is not None
    answer = await bench.gateway.client.post(
        "/v1/chat/completions", json={**FIXED, "model": f"home/{MODEL}", "stream": True}
    )
    assert '"usage"' not in answer.text
    assert '"choices":[]' not in answer.text
    assert answer.text.endswith("data: [DONE]\n\n")
    row = await bench.row(answer)
    said = (plain.usage.prompt_tokens, plain.usage.completion_tokens)
    assert (row["input_tokens"], row["output_tokens"]) == said
    assert row["usage_source"] == "provider"


async def test_what_the_model_says_is_what_it_says_without_us(bench: Bench) -> None:
    async def text(client: AsyncOpenAI, model: str) -> str:
        parts = await client.chat.completions.create(**{**FIXED, "model": model}, stream=True)
        return "".join([part.choices[0].delta.content or "" async for part in parts])

    through = await text(bench.client, f"home/{MODEL}")
    assert through
    assert through == await text(bench.direct, MODEL)


async def test_a_plain_completion_is_counted(bench: Bench) -> None:
    raw = await bench.client.completions.with_raw_response.create(
        model=f"home/{MODEL}", prompt="the word", max_tokens=5
    )
    answer = raw.parse()
    row = await bench.row(raw.http_response)
    assert answer.usage is not None
    assert row["endpoint"] == "/v1/completions"
    assert (row["input_tokens"], row["output_tokens"]) == (
        answer.usage.prompt_tokens,
        answer.usage.completion_tokens,
    )


async def test_embeddings_are_the_servers_own(bench: Bench) -> None:
    raw = await bench.client.embeddings.with_raw_response.create(
        model=f"home/{MODEL}", input=["the one", "the other"]
    )
    answer = raw.parse()
    direct = await bench.direct.embeddings.create(model=MODEL, input=["the one", "the other"])
    assert [item.embedding for item in answer.data] == [item.embedding for item in direct.data]
    row = await bench.row(raw.http_response)
    assert row["input_tokens"] == answer.usage.prompt_tokens
    assert (row["output_tokens"], row["total_tokens"]) == (0, answer.usage.total_tokens)


class Opinion(BaseModel):
    agreed: bool


async def test_a_schema_holds_even_a_model_of_random_weights(bench: Bench) -> None:
    answer = await bench.client.chat.completions.parse(
        model=f"home/{MODEL}", messages=ASK, response_format=Opinion, max_tokens=400
    )
    assert isinstance(answer.choices[0].message.parsed, Opinion)


async def test_the_model_is_listed_and_kept_with_what_is_known_of_it(bench: Bench) -> None:
    names = [model.id async for model in bench.client.models.list()]
    assert f"home/{MODEL}" in names
    sql = "SELECT * FROM models WHERE provider = 'home'"
    [row] = await bench.rows(1, sql)
    assert (row["name"], row["context_length"]) == (MODEL, CONTEXT)
    assert row["parameters"] > 100_000


async def test_a_prompt_too_long_is_told_as_such(bench: Bench) -> None:
    with pytest.raises(openai.BadRequestError, match="context size") as raised:
        await bench.client.chat.completions.create(
            model=f"home/{MODEL}", messages=[{"role": "user", "content": "x" * CONTEXT}]
        )
    assert raised.value.code == "context_length_exceeded"
    row = await bench.row(raised.value.response)
    assert (row["status"], row["error_reason"]) == ("error", "context_length")
    assert (row["http_status"], row["client_status"], row["attempt"]) == (400, 400, 1)


async def test_a_request_that_it_refuses_comes_back_with_its_words(bench: Bench) -> None:
    answer = await bench.gateway.client.post(
        "/v1/chat/completions", json={"model": f"home/{MODEL}", "messages": "none"}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "Expected 'messages' to be an array"
    assert (await bench.row(answer))["error_reason"] == "invalid_request"


async def test_a_key_that_it_refuses_rests(bench: Bench) -> None:
    with pytest.raises(openai.InternalServerError) as raised:
        await bench.client.chat.completions.create(model=f"wrong/{MODEL}", messages=ASK)
    assert raised.value.status_code == 502
    stats = (await bench.gateway.client.get("/stats/keys?provider=wrong")).json()
    [key] = stats["data"]
    assert (key["state"], key["reason"]) == ("disabled", "authentication")


async def test_a_client_that_leaves_stops_the_model(bench: Bench) -> None:
    answer = await bench.client.chat.completions.create(
        **{**FIXED, "model": f"home/{MODEL}", "max_tokens": CONTEXT - 200},
        stream=True,
        extra_body={"ignore_eos": True},
    )
    for _ in range(5):
        await anext(answer)
    await answer.close()
    row = await bench.row(answer.response)
    assert (row["status"], row["error_reason"]) == ("cancelled", "client_closed")
    assert 3 <= row["output_tokens"] < CONTEXT - 200
    slots = str(bench.direct.base_url).replace("/v1/", "/slots")
    for _ in range(100):  # two seconds; the whole answer would take three times as long
        found = await bench.gateway.client.get(slots, headers={"authorization": f"Bearer {KEY}"})
        if not any(slot["is_processing"] for slot in found.json()):
            break
        await asyncio.sleep(0.02)
    else:
        pytest.fail("it is still answering")
