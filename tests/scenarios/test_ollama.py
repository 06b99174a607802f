"""An Ollama that is asked by its own paths: clients notice nothing, and the rows tell more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from proxy.clock import now_ms, rfc3339
from tests.gateway import Gateway, lab, running
from tests.transcripts import body
from tests.upstream import (
    Exchange,
    Script,
    Upstream,
    completion,
    json_answer,
    stream,
    upstream_server,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASK: list[Any] = [{"role": "user", "content": "hi"}]
MIB = 1024**2
LOADED = {"name": "qwen3:4b", "size": 5000 * MIB, "size_vram": 4000 * MIB}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "parameters": {}}}


class Desk:
    """A gateway in front of an Ollama (``desk`` natively, ``plain`` by its OpenAI paths) and of a
    provider that takes over; ``script`` is what Ollama does, ``loaded`` what it has in memory."""

    def __init__(self, gateway: Gateway, upstream: Upstream) -> None:
        self.gateway = gateway
        self.upstream = upstream
        self.loaded: list[Any] = []
        self.answered = asyncio.Event()
        upstream.lists = self._list
        self.client = AsyncOpenAI(
            base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=10
        )

    async def _list(self, exchange: Exchange) -> None:
        is_ps = exchange.request.path.endswith("/api/ps")
        await json_answer({"models": self.loaded} if is_ps else {"data": []})(exchange)
        if is_ps:
            self.answered.set()

    def says(self, name: str, pause: float = 0.005) -> None:
        """Answers with the lines of a transcript, once it was asked what is in its memory."""
        lines = body(name).splitlines(keepends=True)
        parts = [part for line in lines for part in (line, pause)]
        self._does(stream(parts, content_type="application/x-ndjson"))

    def answers(self, document: Any) -> None:
        self._does(json_answer(document))

    def _does(self, script: Script) -> None:
        async def native(exchange: Exchange) -> None:
            await self.answered.wait()
            await script(exchange)

        self.upstream.script = native

    @property
    def asked(self) -> Any:
        """What the Ollama was asked last."""
        return self.upstream.calls[-1].json

    async def row(self, request_id: str | None) -> dict[str, Any]:
        assert request_id is not None
        return await self.gateway.attempt(request_id)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Desk]:
    folder: Path = tmp_path_factory.mktemp("ollama")
    async with upstream_server() as upstream:
        base = upstream.url.replace("/v1", "")
        config = {
            "providers": {
                "desk": {"type": "ollama", "base_url": f"{base}/desk", "api": "native"},
                "plain": {"type": "ollama", "base_url": f"{base}/plain/v1"},
                "lab": lab(upstream.url),
            },
            "models": {"fast": {"targets": ["desk/qwen3:4b", "lab/json"], "rewrite_model": True}},
        }
        async with running(folder, config) as gateway:
            desk = Desk(gateway, upstream)
            try:
                yield desk
            finally:
                await desk.client.close()


@pytest.fixture
def desk(shared: Desk, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr("proxy.providers.residency.FRESH", 0.0)  # each test has a memory of its own
    monkeypatch.setattr(
        "proxy.providers.residency._DEADLINE", 20.0
    )  # on a machine that stalls, too
    shared.upstream.reset()
    shared.loaded = []
    shared.answered.clear()
    return shared


async def test_a_stream_reads_as_from_any_provider_and_its_row_has_the_servers_figures(
    desk: Desk,
) -> None:
    desk.says("T23.text")
    answer = await desk.client.chat.completions.create(
        model="desk/qwen3:4b", messages=ASK, stream=True, temperature=0.5, max_tokens=9
    )
    chunks = [chunk async for chunk in answer]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello,\nwörld 🗼!"
    assert chunks[-1].choices[0].finish_reason == "stop"
    [request] = desk.upstream.calls
    assert request.path == "/desk/api/chat"
    assert request.json == {
        "model": "qwen3:4b",
        "messages": ASK,
        "options": {"temperature": 0.5, "num_predict": 9},
        "stream": True,
    }
    row = await desk.row(answer.response.headers["x-request-id"])
    assert (row["status"], row["is_stream"], row["finish_reason"]) == ("success", 1, "stop")
    assert (row["input_tokens"], row["output_tokens"], row["chunk_count"]) == (11, 4, 4)
    assert (row["usage_source"], row["cost_estimate_usd"]) == ("provider", 0)
    assert row["model_load_ms"] == 1401.397
    assert row["prompt_eval_ms"] == 130.075
    assert row["generation_ms"] == 252.48
    assert row["is_cold_start"] == 1
    assert (row["model_memory_mb"], row["model_vram_mb"]) == (0, 0)  # it was not there yet
    assert json.loads(row["metadata"]) == {"total_duration": 1874560334}
    assert 0 < row["time_to_first_token_ms"] == row["first_content_ms"] < row["last_token_ms"]
    assert row["tokens_per_second"] > 0


async def test_usage_comes_to_a_client_that_asks_for_it(desk: Desk) -> None:
    desk.says("T23.text")
    answer = await desk.client.chat.completions.create(
        model="desk/qwen3:4b",
        messages=ASK,
        stream=True,
        stream_options={"include_usage": True},
    )
    last = [chunk async for chunk in answer][-1]
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == 15
    assert last.usage.model_extra is not None
    assert last.usage.model_extra["eval_duration"] == 252479709
    assert "stream_options" not in desk.asked


async def test_thoughts_are_reasoning_with_a_moment_of_their_own(desk: Desk) -> None:
    desk.loaded = [LOADED]
    desk.says("T23.thinking", pause=0.03)
    answer = await desk.client.chat.completions.create(
        model="desk/qwen3:4b", messages=ASK, stream=True, reasoning_effort="low"
    )
    deltas = [chunk.choices[0].delta async for chunk in answer]
    thoughts = [delta.model_extra or {} for delta in deltas]
    assert "".join(thought.get("reasoning", "") for thought in thoughts) == "The user greets."
    assert "".join(delta.content or "" for delta in deltas) == "Hi!"
    assert desk.asked["think"] == "low"
    row = await desk.row(answer.response.headers["x-request-id"])
    assert row["first_reasoning_ms"] + 15 < row["first_content_ms"] < row["last_token_ms"]
    assert (row["model_memory_mb"], row["model_vram_mb"]) == (5000, 4000)


async def test_streamed_calls_and_their_results_go_round(desk: Desk) -> None:
    desk.says("T23.tools")
    async with desk.client.chat.completions.stream(
        model="desk/qwen3:4b", messages=ASK, tools=[WEATHER]
    ) as answer:
        found = await answer.get_final_completion()
    assert found.choices[0].finish_reason == "tool_calls"
    calls = found.choices[0].message.tool_calls or []
    assert [call.function.name for call in calls] == ["weather", "time"]
    assert [json.loads(call.function.arguments) for call in calls] == [{"city": "Oslo"}, {}]
    assert desk.asked["tools"] == [WEATHER]
    desk.answers({"model": "m", "message": {"content": "cold"}, "done": True, "eval_count": 1})
    said = {"role": "assistant", "content": None, "tool_calls": [c.to_dict() for c in calls]}
    results = [{"role": "tool", "tool_call_id": call.id, "content": "3"} for call in calls]
    await desk.client.chat.completions.create(
        model="desk/qwen3:4b", messages=[*ASK, said, *results]
    )
    _, asked, first, second = desk.asked["messages"]
    assert asked["tool_calls"][0]["function"]["arguments"] == {"city": "Oslo"}
    assert (first["tool_name"], second["tool_name"]) == ("weather", "time")


async def test_a_whole_answer_is_a_completion(desk: Desk) -> None:
    desk.loaded = [LOADED]
    last = json.loads(body("T23.text").splitlines()[-1])
    last |= {"message": {"role": "assistant", "content": "Hello"}, "load_duration": 20_000_000}
    desk.answers(last)
    answer = await desk.client.chat.completions.create(
        model="desk/qwen3:4b", messages=ASK, extra_body={"keep_alive": "5m", "top_k": 3}
    )
    assert (answer.choices[0].message.content, answer.object) == ("Hello", "chat.completion")
    assert answer.usage is not None
    assert answer.usage.total_tokens == 15
    assert desk.asked["keep_alive"] == "5m"
    assert (desk.asked["stream"], desk.asked["options"]) == (False, {"top_k": 3})
    row = await desk.row(answer._request_id)
    assert (row["output_tokens"], row["response_length"]) == (4, 5)
    assert (row["model_load_ms"], row["is_cold_start"]) == (20, 0)


async def test_texts_and_embeddings_are_translated_too(desk: Desk) -> None:
    last = {"model": "m", "done": True, "done_reason": "length", "eval_count": 3}
    desk.answers({**last, "response": "Once"})
    text = await desk.client.completions.create(model="desk/m", prompt="Tell", max_tokens=3)
    assert (text.choices[0].text, text.choices[0].finish_reason) == ("Once", "length")
    row = await desk.row(text._request_id)
    assert (row["input_tokens"], row["output_tokens"]) == (None, 3)  # the prompt was not counted
    desk.answers({"model": "e", "embeddings": [[0.5, -1.0]], "prompt_eval_count": 8})
    found = await desk.client.embeddings.create(model="desk/e", input="abc")
    assert found.data[0].embedding == [0.5, -1.0]  # the client asks for base64 by itself
    assert [call.path for call in desk.upstream.calls] == [
        "/desk/api/generate",
        "/desk/api/embed",
    ]
    row = await desk.row(found._request_id)
    assert (row["input_tokens"], row["total_tokens"], row["status"]) == (8, 8, "success")


async def test_an_alias_stands_in_the_answer_where_that_was_wished_for(desk: Desk) -> None:
    desk.says("T23.text")
    answer = await desk.client.chat.completions.create(model="fast", messages=ASK, stream=True)
    assert {chunk.model async for chunk in answer} == {"fast"}


@pytest.mark.parametrize(
    ("status", "message", "reason"),
    [
        (404, 'model "qwen3:4b" not found, try pulling it first', "not_found"),
        (503, "server busy, please try again.  maximum pending requests exceeded", "overloaded"),
        (500, "llama runner process has terminated", "server_error"),
    ],
)
async def test_another_target_takes_over_where_it_refuses(
    desk: Desk, status: int, message: str, reason: str
) -> None:
    desk.upstream.by_model["qwen3:4b"] = json_answer({"error": message}, status)
    desk.upstream.by_model["json"] = completion("Hi")
    answer = await desk.client.chat.completions.create(model="fast", messages=ASK)
    assert answer.choices[0].message.content == "Hi"
    assert answer._request_id is not None
    refused, served = await desk.gateway.attempts(answer._request_id)
    assert (refused["provider"], refused["http_status"]) == ("desk", status)
    assert (refused["error_reason"], refused["error_message"]) == (reason, message)
    assert refused["is_cold_start"] is None
    assert (served["provider"], served["status"]) == ("lab", "success")


async def test_another_target_takes_over_where_the_first_line_is_an_error(desk: Desk) -> None:
    line = json.dumps({"error": "model runner has unexpectedly stopped"}).encode() + b"\n"
    desk.upstream.by_model["qwen3:4b"] = stream([line], content_type="application/x-ndjson")
    desk.upstream.by_model["json"] = completion("Hi")
    answer = await desk.client.chat.completions.create(model="fast", messages=ASK)
    assert answer.choices[0].message.content == "Hi"


async def test_an_error_in_the_middle_is_told_and_written_down(desk: Desk) -> None:
    desk.says("T23.error")
    got = await desk.gateway.chat("desk/qwen3:4b", stream=True)  # and reads on to the end
    *_, last = got.text.strip().split("\n\n")
    assert json.loads(last.removeprefix("data: "))["error"]["message"].endswith("CUDA error")
    row = await desk.row(got.headers["x-request-id"])
    assert (row["status"], row["error_reason"]) == ("error", "stream_error")
    assert "CUDA" not in row["error_message"]


async def test_a_stream_without_a_last_line_is_cut(desk: Desk) -> None:
    desk.says("T23.cut")
    answer = await desk.client.chat.completions.create(
        model="desk/qwen3:4b", messages=ASK, stream=True
    )
    with pytest.raises(openai.APIError, match="before the answer was complete"):
        [chunk async for chunk in answer]
    row = await desk.row(answer.response.headers["x-request-id"])
    assert (row["error_reason"], row["usage_source"]) == ("truncated", "estimated")


IMAGE = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
LOOK: Any = [{"role": "user", "content": [IMAGE]}]


async def test_what_it_cannot_be_told_is_the_clients_mistake(desk: Desk) -> None:
    started = now_ms()
    with pytest.raises(openai.BadRequestError, match="data: URLs") as caught:
        await desk.client.chat.completions.create(model="desk/qwen3:4b", messages=LOOK)
    assert desk.upstream.calls == []
    row = await desk.row(caught.value.request_id)
    assert (row["status"], row["error_reason"]) == ("rejected", "invalid_request")
    assert (row["attempt"], row["is_final"], row["client_status"]) == (1, 1, 400)
    assert (row["key_id"], row["http_status"]) == (None, None)
    waste = await desk.gateway.client.get("/stats/waste", params={"start": rfc3339(started)})
    assert waste.json()["totals"]["all"]["attempts"] == 0


async def test_another_target_takes_what_it_cannot_be_told(desk: Desk) -> None:
    desk.upstream.by_model["json"] = completion("A cat.")
    answer = await desk.client.chat.completions.create(model="fast", messages=LOOK)
    assert answer.choices[0].message.content == "A cat."
    (row,) = await desk.gateway.attempts(answer._request_id or "")
    assert (row["provider"], row["attempt"], row["status"]) == ("lab", 1, "success")


async def test_a_fault_of_the_other_target_is_what_the_client_hears(desk: Desk) -> None:
    desk.upstream.by_model["json"] = json_answer({"error": "no"}, 500)
    with pytest.raises(openai.InternalServerError) as caught:
        await desk.client.chat.completions.create(model="fast", messages=LOOK)
    assert caught.value.status_code == 502
    rows = await desk.gateway.attempts(caught.value.request_id or "")
    assert {(row["provider"], row["error_reason"]) for row in rows} == {("lab", "server_error")}
