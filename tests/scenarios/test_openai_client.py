"""The openai package as a client: what it sends is served, and what it gets it understands."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from pydantic import BaseModel

from tests.gateway import Gateway, lab, running
from tests.upstream import (
    Exchange,
    Script,
    Upstream,
    completion,
    error,
    event,
    hang,
    json_answer,
    stream,
    upstream_server,
    usage_event,
    words,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "tk-only-for-this-test"
ASK: list[Any] = [{"role": "user", "content": "hi"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


class Bench:
    """One gateway in front of one upstream, for the whole module; ``client`` never retries."""

    def __init__(self, gateway: Gateway, upstream: Upstream) -> None:
        self.gateway = gateway
        self.upstream = upstream
        self.client = self.connect()

    def connect(self, **options: Any) -> AsyncOpenAI:
        settings = {"api_key": KEY, "max_retries": 0, "timeout": 10, **options}
        return AsyncOpenAI(base_url=f"{self.gateway.url}/v1", **settings)

    async def row(self, request_id: str | None) -> dict[str, Any]:
        """The final row of a request."""
        sql = "SELECT * FROM api_calls WHERE request_id = ? AND is_final"
        [row] = await self.gateway.rows(1, sql, request_id)
        return row


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    folder: Path = tmp_path_factory.mktemp("client")
    async with upstream_server() as upstream:
        upstream.models = [{"id": "json", "object": "model"}, {"id": "org/big-7b:free"}]
        config = {
            "auth": {"master_key": KEY},
            "providers": {
                "lab": lab(upstream.url),
                "spare": lab(upstream.url, "sk-spare-1", "sk-spare-2"),
                "slow": lab(upstream.url, timeouts={"first_byte": 0.2, "idle": 0.2}),
            },
            "models": {"fast": {"targets": ["lab/json"]}},
            "prices": {"lab/json": {"input": 0.5, "output": 1.5}},
        }
        async with running(folder, config) as gateway:
            bench = Bench(gateway, upstream)
            try:
                yield bench
            finally:
                await bench.client.close()


@pytest.fixture
def bench(shared: Bench) -> Bench:
    """The module's bench with an upstream that has forgotten the test before."""
    shared.upstream.script = completion()
    shared.upstream.by_key.clear()
    shared.upstream.by_model.clear()
    shared.upstream.requests.clear()
    return shared


async def test_a_completion_comes_back_typed_with_the_rows_id(bench: Bench) -> None:
    bench.upstream.script = completion("Hello", prompt=9, output=12)
    answer = await bench.client.chat.completions.create(model="lab/json", messages=ASK, seed=7)
    assert answer.choices[0].message.content == "Hello"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 21
    row = await bench.row(answer._request_id)
    assert (row["status"], row["total_tokens"], row["seed"]) == ("success", 21, 7)
    assert (row["client_id"], row["key_id"]) == ("master", "k1")
    assert row["cost_estimate_usd"] == pytest.approx((9 * 0.5 + 12 * 1.5) / 1e6)


async def test_the_clients_own_key_never_goes_upstream(bench: Bench) -> None:
    await bench.client.chat.completions.create(model="lab/json", messages=ASK)
    [request] = bench.upstream.calls
    assert request.key == "sk-11111111"
    assert KEY not in json.dumps(request.headers)
    assert not [name for name in request.headers if name.startswith("x-stainless")]


async def test_who_answered_stands_in_the_headers(bench: Bench) -> None:
    raw = await bench.client.chat.completions.with_raw_response.create(model="fast", messages=ASK)
    found = {name: raw.headers[f"x-tollkeeper-{name}"] for name in ("provider", "model", "key")}
    assert found == {"provider": "lab", "model": "json", "key": "k1"}
    assert raw.headers["x-tollkeeper-attempts"] == "1"
    row = await bench.row(raw.headers["x-request-id"])
    assert row["requested_model"] == "fast"


async def test_a_stream_is_chunks_with_choices_and_nothing_else(bench: Bench) -> None:
    bench.upstream.script = stream(words("Hel", "lo", "!"))
    answer = await bench.client.chat.completions.create(model="lab/json", messages=ASK, stream=True)
    text = [chunk.choices[0].delta.content async for chunk in answer]
    assert "".join(filter(None, text)) == "Hello!"
    assert bench.upstream.calls[0].json["stream_options"] == {"include_usage": True}
    row = await bench.row(answer.response.headers["x-request-id"])
    assert (row["is_stream"], row["output_tokens"], row["usage_source"]) == (1, 3, "provider")
    assert row["time_to_first_token_ms"] is not None


async def test_usage_that_the_client_asks_for_arrives(bench: Bench) -> None:
    bench.upstream.script = stream(words("a", "b", prompt=5))
    answer = await bench.client.chat.completions.create(
        model="lab/json", messages=ASK, stream=True, stream_options={"include_usage": True}
    )
    last = [chunk async for chunk in answer][-1]
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == 7


async def test_twenty_streams_at_once_do_not_mix(bench: Bench) -> None:
    async def echo(exchange: Exchange) -> None:
        text = exchange.request.json["messages"][0]["content"]
        await stream(
            [
                *(part for c in text for part in (event({"content": c}), 0.002)),
                event(finish="stop"),
                b"data: [DONE]\n\n",
            ]
        )(exchange)

    async def ask(text: str) -> str:
        answer = await bench.client.chat.completions.create(
            model="lab/json", messages=[{"role": "user", "content": text}], stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in answer])

    bench.upstream.script = echo
    asked = [f"caller number {number}" for number in range(20)]
    assert await asyncio.gather(*map(ask, asked)) == asked


def _call(**function: str) -> dict[str, Any]:
    return {"index": 0, "function": function}


async def test_a_tool_call_comes_whole(bench: Bench) -> None:
    function = {"name": "weather", "arguments": '{"city":"Oslo"}'}
    call = {"id": "c1", "type": "function", "function": function}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    choice = {"index": 0, "finish_reason": "tool_calls", "message": message}
    bench.upstream.script = completion(choices=[choice])
    answer = await bench.client.chat.completions.create(
        model="lab/json", messages=ASK, tools=[WEATHER], tool_choice="required"
    )
    [made] = answer.choices[0].message.tool_calls or []
    assert made.type == "function"
    assert json.loads(made.function.arguments) == {"city": "Oslo"}
    assert bench.upstream.calls[0].json["tools"] == [WEATHER]
    row = await bench.row(answer._request_id)
    assert (row["tool_count"], row["finish_reason"]) == (1, "tool_calls")


async def test_a_streamed_tool_call_is_put_together(bench: Bench) -> None:
    first = {"id": "c1", "type": "function", **_call(name="weather", arguments="")}
    bench.upstream.script = stream(
        [
            event({"role": "assistant", "content": None, "tool_calls": [first]}),
            event({"tool_calls": [_call(arguments='{"city":')]}),
            event({"tool_calls": [_call(arguments='"Oslo"}')]}),
            event(finish="tool_calls"),
            usage_event(8, 6),
            b"data: [DONE]\n\n",
        ]
    )
    async with bench.client.chat.completions.stream(
        model="lab/tooled", messages=ASK, tools=[WEATHER]
    ) as events:
        final = await events.get_final_completion()
    [made] = final.choices[0].message.tool_calls or []
    assert (made.function.name, made.function.arguments) == ("weather", '{"city":"Oslo"}')
    row = await bench.gateway.row("SELECT * FROM api_calls WHERE model = 'tooled'")
    assert (row["finish_reason"], row["output_tokens"]) == ("tool_calls", 6)
    assert row["time_to_first_token_ms"] is not None


class Place(BaseModel):
    city: str
    people: int


async def test_structured_output_is_asked_for_and_parsed(bench: Bench) -> None:
    bench.upstream.script = completion('{"city": "Oslo", "people": 717710}')
    answer = await bench.client.chat.completions.parse(
        model="lab/json", messages=ASK, response_format=Place
    )
    assert answer.choices[0].message.parsed == Place(city="Oslo", people=717710)
    sent = bench.upstream.calls[0].json["response_format"]
    assert sent["type"] == "json_schema"
    assert sent["json_schema"]["schema"]["required"] == ["city", "people"]


async def test_embeddings_come_as_numbers(bench: Bench) -> None:
    vector = base64.b64encode(struct.pack("<3f", 0.5, -1.0, 2.0)).decode()
    bench.upstream.script = json_answer(
        {
            "object": "list",
            "model": "json",
            "data": [{"object": "embedding", "index": 0, "embedding": vector}],
            "usage": {"prompt_tokens": 4, "total_tokens": 4},
        }
    )
    answer = await bench.client.embeddings.create(model="lab/json", input="four little words here")
    assert answer.data[0].embedding == [0.5, -1.0, 2.0]
    assert bench.upstream.calls[0].json["encoding_format"] == "base64"
    row = (
        await bench.gateway.rows(1, "SELECT * FROM api_calls WHERE endpoint = '/v1/embeddings'")
    )[-1]
    assert (row["input_tokens"], row["output_tokens"], row["total_tokens"]) == (4, 0, 4)
    assert row["prompt_length"] == 22


async def test_plain_completions_work_whole_and_streamed(bench: Bench) -> None:
    choice = {"index": 0, "text": "once", "finish_reason": "stop", "logprobs": None}
    body = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "json"}
    usage = {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}
    bench.upstream.script = json_answer({**body, "choices": [choice], "usage": usage})
    whole = await bench.client.completions.create(model="lab/json", prompt="tell", max_tokens=1)
    assert whole.choices[0].text == "once"

    def part(text: str, finish: str | None = None) -> bytes:
        choice = {"index": 0, "text": text, "finish_reason": finish, "logprobs": None}
        return b"data: " + json.dumps({**body, "choices": [choice]}).encode() + b"\n\n"

    bench.upstream.script = stream([part("on"), part("ce"), part("", "stop"), b"data: [DONE]\n\n"])
    parts = await bench.client.completions.create(model="lab/json", prompt="tell", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in parts]) == "once"
    row = await bench.row(parts.response.headers["x-request-id"])
    assert (row["endpoint"], row["finish_reason"]) == ("/v1/completions", "stop")


async def test_models_are_listed_under_their_providers(bench: Bench) -> None:
    names = [model.id async for model in bench.client.models.list()]
    assert names[0] == "fast"
    assert {"lab/json", "lab/org/big-7b:free", "spare/json"} <= set(names)


async def test_a_model_with_slashes_in_its_name_is_found(bench: Bench) -> None:
    model = await bench.client.models.retrieve("lab/org/big-7b:free")
    assert (model.id, model.owned_by) == ("lab/org/big-7b:free", "lab")
    with pytest.raises(openai.NotFoundError) as raised:
        await bench.client.models.retrieve("lab/org/none")
    assert raised.value.code == "model_not_found"


async def test_a_wrong_key_is_an_authentication_error(bench: Bench) -> None:
    async with bench.connect(api_key="tk-wrong") as stranger:
        with pytest.raises(openai.AuthenticationError) as raised:
            await stranger.chat.completions.create(model="lab/json", messages=ASK)
    assert (raised.value.status_code, raised.value.code) == (401, "invalid_api_key")
    assert bench.upstream.calls == []


async def test_a_refused_request_keeps_the_upstreams_words(bench: Bench) -> None:
    bad = {"message": "'temperature' must be at most 2", "type": "invalid_request_error"}
    bench.upstream.script = json_answer(
        {"error": {**bad, "param": "temperature", "code": "too_hot"}}, 400
    )
    with pytest.raises(openai.BadRequestError) as raised:
        await bench.client.chat.completions.create(model="lab/json", messages=ASK, temperature=9)
    said = raised.value
    assert (said.param, said.code, said.type) == ("temperature", "too_hot", bad["type"])
    assert bad["message"] in said.message
    row = await bench.row(said.request_id)
    assert (row["status"], row["http_status"], row["client_status"]) == ("error", 400, 400)
    assert row["error_reason"] == "invalid_request"


async def test_a_request_without_a_model_is_a_bad_request(bench: Bench) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        await bench.client.chat.completions.create(model="", messages=ASK)
    assert raised.value.param == "model"
    row = await bench.row(raised.value.request_id)
    assert (row["status"], row["attempt"], row["key_id"]) == ("rejected", 1, None)


async def test_an_unknown_model_is_not_found_and_the_near_one_named(bench: Bench) -> None:
    with pytest.raises(openai.NotFoundError, match="lab/json") as raised:
        await bench.client.chat.completions.create(model="lob/json", messages=ASK)
    assert raised.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("script", "raised", "status"),
    [
        (error(404, "The model does not exist", "model_not_found"), openai.NotFoundError, 404),
        (error(403, "Not in your region"), openai.PermissionDeniedError, 403),
        (error(422, "messages.0.role: unknown"), openai.UnprocessableEntityError, 422),
        (error(413, "Too large"), openai.APIStatusError, 413),
        (error(500, "Broken"), openai.InternalServerError, 502),
        (error(503, "Full"), openai.InternalServerError, 503),
        (json_answer([], 200), openai.InternalServerError, 502),
    ],
    ids=["404", "403", "422", "413", "500", "503", "nonsense"],
)
async def test_each_status_has_its_exception(
    bench: Bench, script: Script, raised: type[openai.APIStatusError], status: int
) -> None:
    bench.upstream.script = script
    with pytest.raises(raised) as found:
        await bench.client.chat.completions.create(model="lab/json", messages=ASK)
    assert found.value.status_code == status
    assert isinstance(found.value.body, dict)
    assert found.value.body["message"]


async def test_a_refused_provider_key_is_not_the_clients_fault(bench: Bench) -> None:
    bench.upstream.by_key["sk-spare-1"] = error(401, "Bad key sk-spare-1", "invalid_api_key")
    bench.upstream.by_key["sk-spare-2"] = error(401, "Bad key sk-spare-2", "invalid_api_key")
    with pytest.raises(openai.InternalServerError) as raised:
        await bench.client.chat.completions.create(model="spare/json", messages=ASK)
    assert raised.value.status_code == 502
    assert "sk-spare" not in str(raised.value.body)


async def test_a_rate_limit_says_when_to_come_back(bench: Bench) -> None:
    bench.upstream.script = error(429, "Slow down", "rate_limit_exceeded", retry_after="31")
    with pytest.raises(openai.RateLimitError) as raised:
        await bench.client.chat.completions.create(model="lab/limited", messages=ASK)
    assert 29 <= int(raised.value.response.headers["retry-after"]) <= 31
    bench.upstream.script = completion()
    with pytest.raises(openai.RateLimitError) as again:
        await bench.client.chat.completions.create(model="lab/limited", messages=ASK)
    assert len(bench.upstream.calls) == 1
    row = await bench.row(again.value.request_id)
    assert (row["status"], row["error_reason"], row["client_status"]) == (
        "rejected",
        "no_keys",
        429,
    )


async def test_a_client_that_retries_waits_as_told_and_gets_through(bench: Bench) -> None:
    async def refuse_once(exchange: Exchange) -> None:
        bench.upstream.script = completion("at last")
        await error(429, "Slow down", "rate_limit_exceeded", retry_after="1")(exchange)

    bench.upstream.script = refuse_once
    async with bench.connect(max_retries=2) as patient:
        answer = await patient.chat.completions.create(model="lab/patience", messages=ASK)
    assert answer.choices[0].message.content == "at last"
    assert len(bench.upstream.calls) == 2


async def test_a_client_does_not_repeat_what_the_gateway_has_tried(bench: Bench) -> None:
    bench.upstream.script = error(500, "Broken")
    async with bench.connect(max_retries=5) as eager:
        with pytest.raises(openai.InternalServerError):
            await eager.chat.completions.create(model="lab/json", messages=ASK)
    assert len(bench.upstream.calls) == 1


async def test_an_upstream_that_says_nothing_is_a_504(bench: Bench) -> None:
    bench.upstream.script = hang
    with pytest.raises(openai.InternalServerError) as raised:
        await bench.client.chat.completions.create(model="slow/json", messages=ASK)
    assert raised.value.status_code == 504
    assert (await bench.row(raised.value.request_id))["status"] == "timeout"


@pytest.mark.parametrize("ends", ["clean", "cut"])
async def test_a_truncated_stream_raises(bench: Bench, ends: str) -> None:
    bench.upstream.script = stream([event({"content": "half a"})], ends=ends)
    answer = await bench.client.chat.completions.create(model="lab/json", messages=ASK, stream=True)
    assert (await anext(answer)).choices[0].delta.content == "half a"
    with pytest.raises(openai.APIError) as raised:
        await anext(answer)
    assert raised.value.code == "stream_truncated"
    row = await bench.row(answer.response.headers["x-request-id"])
    assert (row["status"], row["error_reason"]) == ("error", "truncated")


async def test_a_stream_that_stalls_raises(bench: Bench) -> None:
    bench.upstream.script = stream([event({"content": "half a"})], ends="hang")
    answer = await bench.client.chat.completions.create(
        model="slow/json", messages=ASK, stream=True
    )
    with pytest.raises(openai.APIError) as raised:
        _ = [chunk async for chunk in answer]
    assert raised.value.code == "stream_timeout"
    row = await bench.row(answer.response.headers["x-request-id"])
    assert (row["status"], row["error_reason"]) == ("timeout", "timeout")


async def test_an_error_inside_a_stream_raises(bench: Bench) -> None:
    broken = {"error": {"message": "The engine caught fire", "type": "server_error"}}
    bench.upstream.script = stream(
        [event({"content": "half a"}), 0.1, b"data: " + json.dumps(broken).encode() + b"\n\n"]
    )
    answer = await bench.client.chat.completions.create(model="lab/json", messages=ASK, stream=True)
    await anext(answer)
    with pytest.raises(openai.APIError, match="caught fire"):
        await anext(answer)
    row = await bench.row(answer.response.headers["x-request-id"])
    assert (row["status"], row["error_reason"]) == ("error", "stream_error")


async def test_a_client_that_leaves_a_stream_is_cancelled(bench: Bench) -> None:
    bench.upstream.script = stream(
        [event({"content": "one"}), event({"content": "two"})], ends="hang"
    )
    answer = await bench.client.chat.completions.create(model="lab/json", messages=ASK, stream=True)
    async for chunk in answer:
        if chunk.choices[0].delta.content == "two":
            break
    [exchange] = bench.upstream.open
    await answer.close()
    await asyncio.wait_for(exchange.gone.wait(), 20)
    row = await bench.row(answer.response.headers["x-request-id"])
    assert (row["status"], row["error_reason"]) == ("cancelled", "client_closed")
    assert (row["output_tokens"], row["usage_source"]) == (2, "estimated")
    assert (row["success"], row["cost_source"]) == (0, "config")


async def test_a_client_that_loses_patience_is_cancelled(bench: Bench) -> None:
    bench.upstream.script = hang
    async with bench.connect() as client:  # its connection cannot have been idle for too long
        with pytest.raises(openai.APITimeoutError):
            await client.chat.completions.create(model="lab/impatient", messages=ASK, timeout=1.0)
    sql = "SELECT * FROM api_calls WHERE model = 'impatient'"
    row = await bench.gateway.row(sql)
    assert (row["status"], row["error_reason"], row["http_status"]) == (
        "cancelled",
        "client_closed",
        None,
    )


async def test_headers_of_the_client_say_whom_a_call_is_counted_for(bench: Bench) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {
        "X-Agent-Name": "planner",
        "X-Tool-Name": "search",
        "X-Session-Id": "s-1",
        "traceparent": f"00-{trace}-b7ad6b7169203331-01",
    }
    async with bench.connect(default_headers=headers) as agent:
        answer = await agent.chat.completions.create(model="lab/json", messages=ASK)
    row = await bench.row(answer._request_id)
    assert (row["agent_name"], row["tool_name"]) == ("planner", "search")
    assert (row["session_id"], row["trace_id"]) == ("s-1", trace)


async def test_what_is_not_relayed_is_not_found(bench: Bench) -> None:
    with pytest.raises(openai.NotFoundError, match="/v1/responses"):
        await bench.client.responses.create(model="lab/json", input="hi")
