"""A call through the whole gateway, as a client sees it and as the database keeps it."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests import transcripts
from tests.gateway import Gateway, lab, running
from tests.upstream import (
    Exchange,
    Upstream,
    answer,
    completion,
    event,
    json_answer,
    stream,
    upstream_server,
    usage_event,
    words,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[tuple[Gateway, Upstream]]:
    """A provider of every type, all of them the same upstream."""
    async with upstream_server() as upstream:
        known = {
            name: {"base_url": upstream.url, "keys": [{"name": "k", "value": f"sk-{name}-1"}]}
            for name in ("groq", "gemini", "openrouter")
        }
        config = {
            "providers": {
                "lab": lab(upstream.url),
                "mute": lab(upstream.url, include_usage=False),
                "ollama": {"base_url": upstream.url},
                "cloudflare": {
                    "account_id": "acc",
                    "base_url": upstream.url,
                    "keys": [{"name": "k", "value": "sk-cloudflare-1"}],
                },
                **known,
            },
            "models": {
                "renamed": {"targets": ["lab/json"], "rewrite_model": True},
                "plain": {"targets": ["lab/json"]},
            },
            "prices": {
                "lab/json": {"input": 0.5, "output": 1.5},
                "lab/embed": {"input": 0.5, "output": 0},
                "*/m": {"input": 1, "output": 1},
            },
            "server": {"peek": "200ms"},
        }
        async with running(tmp_path_factory.mktemp("relay"), config) as gateway:
            yield gateway, upstream


@pytest.fixture
def gateway(place: tuple[Gateway, Upstream]) -> Gateway:
    return place[0]


@pytest.fixture
def upstream(place: tuple[Gateway, Upstream]) -> Upstream:
    place[1].reset()
    return place[1]


def same(received: bytes, sent: bytes) -> bool:
    return hashlib.sha256(received).digest() == hashlib.sha256(sent).digest()


ASKS = {"stream": True, "stream_options": {"include_usage": True}}


async def test_an_answer_passes_byte_for_byte_and_leaves_one_row(
    gateway: Gateway, upstream: Upstream
) -> None:
    upstream.script = completion("Hi there", prompt=1000, output=500, x_unknown={"a": [1, None]})
    answer = await gateway.chat("lab/json", temperature=0.3, my_member=[1])
    assert answer.status_code == 200
    assert answer.json()["x_unknown"] == {"a": [1, None]}
    assert upstream.calls[0].json["model"] == "json"
    assert upstream.calls[0].json["my_member"] == [1]
    row = await gateway.attempt(answer.headers["x-request-id"])
    assert (row["provider"], row["model"], row["key_id"]) == ("lab", "json", "k1")
    assert (row["status"], row["success"], row["is_final"], row["attempt"]) == ("success", 1, 1, 1)
    assert (row["input_tokens"], row["output_tokens"], row["total_tokens"]) == (1000, 500, 1500)
    assert row["cost_estimate_usd"] == pytest.approx(0.00125)
    assert (row["cost_source"], row["usage_source"]) == ("config", "provider")
    assert row["temperature"] == 0.3
    assert row["time_to_first_token_ms"] is None


ODD = (
    b'{ "model":"up",\n\t"created": 1e-05, "cost":0.00001305, "big":123456789012345678901234567890,'
    b'"text":"caf\xc3\xa9 \\u2019 \\/", "a":1, "a":2, "choices":[{"index":0,"message":{"role":'
    b'"assistant","content":"x"},"finish_reason":"stop"}], "usage":{"prompt_tokens":1,'
    b'"completion_tokens":1,"total_tokens":2} }\n\n'
)


@pytest.mark.parametrize("path", ["chat/completions", "completions", "embeddings"])
async def test_a_bodys_spelling_is_the_upstreams_on_every_path(
    gateway: Gateway, upstream: Upstream, path: str
) -> None:
    upstream.script = answer(200, ODD)
    body = {"model": "lab/json", "prompt": "x", "input": "x", "messages": []}
    got = await gateway.client.post(f"/v1/{path}", json=body)
    assert got.status_code == 200
    assert same(got.content, ODD)
    assert upstream.calls[0].path == f"/v1/{path}"
    row = await gateway.attempt(got.headers["x-request-id"])
    assert (row["endpoint"], row["status"], row["total_tokens"]) == (f"/v1/{path}", "success", 2)


async def test_a_request_reaches_the_upstream_as_it_was_written(
    gateway: Gateway, upstream: Upstream
) -> None:
    members = (
        b'"temperature": 1e-05, "top_p":0.10 ,"messages" : [{"role":"user","content":"caf\xc3\xa9 '
        b'\\u2019","extra_content":{"google":{"thought_signature":"A=="}}}],"x":[1,  2]'
    )
    sent = b'{"model" :"lab/json",' + members + b"}"
    await gateway.client.post("/v1/chat/completions", content=sent)
    arrived = upstream.calls[0].body
    for piece in (b"1e-05", b"0.10", b"[1,  2]", members[members.index(b"[{") :][:20]):
        assert piece in arrived
    assert upstream.calls[0].json == {**json.loads(sent), "model": "json"}


async def test_a_listed_bare_model_needs_no_edit_at_all(
    gateway: Gateway, upstream: Upstream
) -> None:
    sent = b'{ "messages":[],\t"model":"json" , "n": 1}\n'
    got = await gateway.client.post("/v1/chat/completions", content=sent)
    assert got.headers["x-tollkeeper-provider"] == "lab"
    assert upstream.calls[0].body == sent


async def test_a_streams_bytes_are_the_upstreams(gateway: Gateway, upstream: Upstream) -> None:
    parts = [b": hello\n\n", event({"role": "assistant"}), event({"content": "caf\u00e9"}), 0.02]
    parts += [event({"content": "!"}), event(finish="stop"), b"data: [DONE]\n\n"]
    upstream.script = stream(parts)
    answer = await gateway.chat("lab/json", **ASKS)
    assert same(answer.content, b"".join(part for part in parts if isinstance(part, bytes)))
    assert answer.headers["content-type"] == "text/event-stream"


async def test_a_streamed_completion_passes_and_is_counted(
    gateway: Gateway, upstream: Upstream
) -> None:
    pieces = [{"text": "Once"}, {"text": " upon"}, {"text": "", "finish_reason": "length"}]
    sent = [b"data: " + json.dumps({"choices": [piece]}).encode() + b"\n\n" for piece in pieces]
    sent += [usage_event(2, 2), b"data: [DONE]\n\n"]
    upstream.script = stream(sent)
    body = {"model": "lab/json", "prompt": "Tell me", **ASKS}
    got = await gateway.client.post("/v1/completions", json=body)
    assert same(got.content, b"".join(sent))
    row = await gateway.attempt(got.headers["x-request-id"])
    assert (row["endpoint"], row["finish_reason"]) == ("/v1/completions", "length")
    assert (row["output_tokens"], row["chunk_count"], row["prompt_length"]) == (2, 2, 7)


PROVIDERS = {
    "T1": ("groq", 45, 3, "success"),
    "T2": ("groq", None, None, "error"),
    "T6": ("gemini", 9, 100, "success"),
    "T7": ("gemini", 60, 71, "success"),
    "T10": ("openrouter", 67, 5, "success"),
    "T11": ("openrouter", None, None, "error"),
    "T12": ("openrouter", 43, 10, "error"),
    "T14": ("ollama", 26, 4, "success"),
    "T17": ("cloudflare", 45, 2, "success"),
    "T19": ("lab", 16, 1, "success"),
    "T20": ("lab", 17, 9, "success"),
}
"""The provider of each transcript, the tokens that it reports, and how the call ends."""


@pytest.mark.parametrize("name", PROVIDERS)
async def test_what_a_provider_streams_reaches_the_client_unchanged(
    gateway: Gateway, upstream: Upstream, name: str
) -> None:
    provider, given, made, status = PROVIDERS[name]
    events = transcripts.stream(name).split(b"\n\n")[:-1]
    # The pauses let the first content go out: an error before that would be a failed attempt.
    upstream.script = stream([part for each in events for part in (each + b"\n\n", 0.02)])
    got = await gateway.chat(f"{provider}/m", **ASKS)
    assert same(got.content, transcripts.stream(name))
    row = await gateway.attempt(got.headers["x-request-id"])
    assert (row["provider"], row["status"]) == (provider, status)
    if given is not None:
        assert (row["input_tokens"], row["output_tokens"]) == (given, made)
        assert row["usage_source"] == "provider"


@pytest.mark.parametrize("provider", ["openrouter", "lab"])
@pytest.mark.parametrize("name", transcripts.tortured())
async def test_no_framing_changes_a_byte(
    gateway: Gateway, upstream: Upstream, name: str, provider: str
) -> None:
    """``lab`` looks for usage to withhold, so it cuts the stream into events; there is none."""
    reads = transcripts.tortured()[name]
    upstream.script = stream(reads)
    got = await gateway.chat(f"{provider}/m", stream=True)
    assert same(got.content, b"".join(reads))


async def test_usage_that_was_not_asked_for_is_counted_and_hidden(
    gateway: Gateway, upstream: Upstream
) -> None:
    upstream.script = stream(words("a", "b", "c"))
    answer = await gateway.chat("lab/json", stream=True)
    assert upstream.calls[0].json["stream_options"] == {"include_usage": True}
    assert b"usage" not in answer.content
    assert answer.content.endswith(b"data: [DONE]\n\n")
    row = await gateway.attempt(answer.headers["x-request-id"])
    assert (row["input_tokens"], row["output_tokens"], row["usage_source"]) == (5, 3, "provider")


@pytest.mark.parametrize(("name", "provider"), [("T14", "ollama"), ("T19", "lab")])
async def test_only_the_usage_event_is_withheld(
    gateway: Gateway, upstream: Upstream, name: str, provider: str
) -> None:
    upstream.script = stream([transcripts.stream(name)])
    got = await gateway.chat(f"{provider}/m", stream=True)
    events = transcripts.stream(name).split(b"\n\n")
    kept = [each for each in events if b'"choices":[]' not in each]
    assert len(kept) == len(events) - 1
    assert same(got.content, b"\n\n".join(kept))
    assert (await gateway.attempt(got.headers["x-request-id"]))["usage_source"] == "provider"


async def test_usage_beside_a_choice_is_never_withheld(
    gateway: Gateway, upstream: Upstream
) -> None:
    upstream.script = stream([transcripts.stream("T17")])
    got = await gateway.chat("cloudflare/m", stream=True)
    assert same(got.content, transcripts.stream("T17"))


async def test_a_client_that_asks_for_usage_gets_it(gateway: Gateway, upstream: Upstream) -> None:
    upstream.script = stream(words("a"))
    got = await gateway.chat("lab/json", **ASKS)
    assert usage_event(5, 1) in got.content


async def test_a_client_that_declines_usage_does_not_get_it(
    gateway: Gateway, upstream: Upstream
) -> None:
    upstream.script = stream(words("a"))
    options = {"include_usage": False, "include_obfuscation": False}
    got = await gateway.chat("lab/json", stream=True, stream_options=options)
    assert b'"usage"' not in got.content
    asked = upstream.calls[0].json["stream_options"]
    assert asked == {"include_usage": True, "include_obfuscation": False}


@pytest.mark.parametrize("provider", ["groq", "gemini", "openrouter", "mute"])
async def test_providers_that_need_not_be_asked_are_not(
    gateway: Gateway, upstream: Upstream, provider: str
) -> None:
    """Nor is the one with ``include_usage: false``; and usage that comes unasked passes."""
    upstream.script = stream(words("a"))
    got = await gateway.chat(f"{provider}/m", stream=True)
    assert "stream_options" not in upstream.calls[0].json
    assert usage_event(5, 1) in got.content


@pytest.mark.parametrize("provider", ["lab", "ollama", "cloudflare"])
async def test_usage_is_asked_for_in_streams_alone(
    gateway: Gateway, upstream: Upstream, provider: str
) -> None:
    await gateway.chat(f"{provider}/m")
    assert "stream_options" not in upstream.calls[0].json
    upstream.script = stream(words("a"))
    await gateway.chat(f"{provider}/m", stream=True)
    assert upstream.calls[1].json["stream_options"] == {"include_usage": True}


async def test_an_alias_stands_in_every_event_where_it_is_asked_for(
    gateway: Gateway, upstream: Upstream
) -> None:
    events = words('say "model": "up"', "b")
    upstream.script = stream([b": hi\n\n", *events])
    got = await gateway.chat("renamed", **ASKS)
    expected = b"".join(part.replace(b'"model": "up"', b'"model": "renamed"') for part in events)
    assert same(got.content, b": hi\n\n" + expected)
    assert upstream.calls[0].json["model"] == "json"


async def test_an_alias_stands_in_a_body_where_it_is_asked_for(
    gateway: Gateway, upstream: Upstream
) -> None:
    upstream.script = answer(200, ODD)
    got = await gateway.chat("renamed")
    assert same(got.content, ODD.replace(b'"model":"up"', b'"model":"renamed"'))
    row = await gateway.attempt(got.headers["x-request-id"])
    assert (row["requested_model"], row["model"]) == ("renamed", "json")


async def test_an_alias_leaves_the_upstreams_name_alone_by_default(
    gateway: Gateway, upstream: Upstream
) -> None:
    upstream.script = answer(200, ODD)
    assert same((await gateway.chat("plain")).content, ODD)
    upstream.script = stream(words("a"))
    assert same((await gateway.chat("plain", **ASKS)).content, b"".join(words("a")))


async def test_nothing_goes_out_before_the_first_content(
    gateway: Gateway, upstream: Upstream
) -> None:
    opening = [b": wait\n\n", event({"role": "assistant", "content": ""})]
    go = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.head(content_type="text/event-stream", transfer_encoding="chunked")
        for part in opening:
            await exchange.chunk(part)
        await asyncio.wait_for(go.wait(), 20)
        await exchange.chunk(event({"content": "now"}))
        await exchange.gone.wait()

    upstream.script = script
    line = await gateway.dial({"model": "mute/m", "stream": True})
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(line.reader.read(1), 0.05)
    go.set()
    held = await line.until(b"now")
    assert held.startswith(b"HTTP/1.1 200")
    assert b"".join(opening) in held
    await line.hang_up()


async def test_what_is_held_goes_out_when_the_wait_is_over(
    gateway: Gateway, upstream: Upstream
) -> None:
    opening = [b": wait\n\n", event({"role": "assistant", "content": ""})]
    upstream.script = stream(opening, ends="hang")
    line = await gateway.dial({"model": "lab/m", "stream": True})
    held = await line.until(opening[-1])
    assert held.startswith(b"HTTP/1.1 200")
    assert b"".join(opening) in held
    await line.hang_up()


async def test_a_stream_that_began_late_still_arrives_whole(
    gateway: Gateway, upstream: Upstream
) -> None:
    first, *others = words("a", "b")
    upstream.script = stream([first, 0.3, *others])
    got = await gateway.chat("lab/m", **ASKS)
    assert same(got.content, b"".join(words("a", "b")))


async def test_a_json_answer_to_a_streamed_request_passes_as_json(
    gateway: Gateway, upstream: Upstream
) -> None:
    upstream.script = completion("no stream today", prompt=3, output=4)
    got = await gateway.chat("lab/m", stream=True)
    assert got.headers["content-type"] == "application/json"
    assert got.json()["choices"][0]["message"]["content"] == "no stream today"
    row = await gateway.attempt(got.headers["x-request-id"])
    assert (row["status"], row["is_stream"], row["output_tokens"]) == ("success", 1, 4)


async def test_a_stream_nobody_asked_for_passes_whole(gateway: Gateway, upstream: Upstream) -> None:
    """Usage is withheld where the gateway asked for it, and it asks only in streams."""
    upstream.script = stream(words("a"))
    for more in ({}, {"stream": 1}, {"stream": "true"}):
        got = await gateway.chat("lab/m", **more)
        assert same(got.content, b"".join(words("a")))
        assert (await gateway.attempt(got.headers["x-request-id"]))["is_stream"] == 1


async def test_a_body_too_long_to_be_held_passes_as_it_comes(
    gateway: Gateway, upstream: Upstream
) -> None:
    upstream.script = completion("x" * 9 * 1024 * 1024, prompt=1, output=2)
    got = await gateway.chat("lab/m")
    assert len(got.json()["choices"][0]["message"]["content"]) == 9 * 1024 * 1024
    row = await gateway.attempt(got.headers["x-request-id"])
    assert (row["status"], row["total_tokens"]) == ("success", 3)


async def test_requests_that_come_at_once_on_one_connection_are_served_in_order(
    gateway: Gateway, upstream: Upstream
) -> None:
    first, last = b'{"model":"lab/one"}', b'{"model":"lab/two"}'
    more = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 19\r\n\r\n"
    line = await gateway.dial(first + more + last, "content-length: 19")
    raw = await line.until(b"x-tollkeeper-model: two")
    await line.until(b'"total_tokens": 21}}')
    await line.hang_up()
    assert raw.index(b"x-tollkeeper-model: one") < raw.index(b"x-tollkeeper-model: two")
    assert [call.json["model"] for call in upstream.calls] == ["one", "two"]


async def test_a_compressed_answer_passes_compressed_and_is_counted(
    gateway: Gateway, upstream: Upstream
) -> None:
    packed = gzip.compress(ODD)
    upstream.script = answer(200, packed, **{"content-encoding": "gzip"})
    got = await gateway.chat("lab/m")
    assert got.headers["content-encoding"] == "gzip"
    assert got.content == ODD  # unpacked by the client
    assert got.num_bytes_downloaded == len(packed)
    assert (await gateway.attempt(got.headers["x-request-id"]))["total_tokens"] == 2


async def test_embeddings_pass_and_are_counted(gateway: Gateway, upstream: Upstream) -> None:
    document = {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.1, -2e-07]}],
        "model": "up",
        "usage": {"prompt_tokens": 8, "total_tokens": 8},
    }
    upstream.script = json_answer(document)
    body = {"model": "lab/embed", "input": ["one", "three"]}
    got = await gateway.client.post("/v1/embeddings", json=body)
    assert got.json() == document
    row = await gateway.attempt(got.headers["x-request-id"])
    assert (row["status"], row["input_tokens"], row["prompt_length"]) == ("success", 8, 8)
    assert row["cost_estimate_usd"] == pytest.approx(0.000004)
