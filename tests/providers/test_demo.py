from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from proxy.providers.demo import DemoServer

REPLY = "This is Tollkeeper's built-in demo, a simulated model. You said: "


@pytest.fixture
async def base_url() -> AsyncIterator[str]:
    server = DemoServer(word_seconds=0)
    yield await server.start()
    await server.close()


@pytest.fixture
async def client(base_url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=base_url, trust_env=False) as client:
        yield client


def chat(text: Any = "hello", **more: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": text}], **more}


def events(body: str) -> list[Any]:
    """The decoded events of a stream; the last must be ``[DONE]``."""
    *parts, done, rest = body.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(part.removeprefix("data: ")) for part in parts]


async def raw(base_url: str, request: bytes) -> bytes:
    """What comes back until the server closes the connection."""
    port = urlsplit(base_url).port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer


async def test_chat_says_what_it_is_and_repeats_the_last_user_message(
    client: httpx.AsyncClient,
) -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "user", "content": [{"type": "text", "text": "the last one"}]},
    ]
    answer = await client.post(
        "/chat/completions", json={"model": "echo", "messages": messages, "unknown": {"a": 1}}
    )
    assert answer.status_code == 200
    assert answer.headers["x-request-id"].startswith("demo-")
    body = answer.json()
    assert body["object"] == "chat.completion"
    assert body["model"] == "echo"
    (choice,) = body["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": REPLY + "the last one",
        "refusal": None,
    }
    assert choice["finish_reason"] == "stop"
    assert body["usage"] == {
        "prompt_tokens": 6,  # 25 characters
        "completion_tokens": 13,
        "total_tokens": 19,
        "cost": 0,
    }


async def test_long_message_is_repeated_in_short(client: httpx.AsyncClient) -> None:
    body = (await client.post("/chat/completions", json=chat("x" * 100_000))).json()
    assert body["choices"][0]["message"]["content"] == REPLY + "x" * 199 + "…"
    assert body["usage"]["prompt_tokens"] == 25_000


async def test_stream_has_role_words_finish_and_usage(client: httpx.AsyncClient) -> None:
    answer = await client.post(
        "/chat/completions",
        json=chat("hello there", stream=True, stream_options={"include_usage": True}),
    )
    assert answer.headers["content-type"] == "text/event-stream"
    first, *words, finish, usage = events(answer.text)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    texts = [event["choices"][0]["delta"]["content"] for event in words]
    assert "".join(texts) == REPLY + "hello there"
    assert finish["choices"] == [{"index": 0, "delta": {}, "finish_reason": "stop"}]
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == len(texts) == 12
    assert usage["usage"]["cost"] == 0
    assert all(event["usage"] is None for event in [first, *words, finish])
    assert len({event["id"] for event in [first, *words, finish, usage]}) == 1
    assert first["object"] == "chat.completion.chunk"


async def test_stream_has_no_usage_unless_asked(client: httpx.AsyncClient) -> None:
    answer = await client.post("/chat/completions", json=chat(stream=True))
    assert "usage" not in answer.text
    assert events(answer.text)[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_answer_ends_at_the_allowed_tokens(client: httpx.AsyncClient, name: str) -> None:
    body = (await client.post("/chat/completions", json=chat(**{name: 3}))).json()
    assert body["choices"][0]["message"]["content"] == "This is Tollkeeper's "
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 3


async def test_completions_whole_and_streamed(client: httpx.AsyncClient) -> None:
    request = {"model": "echo", "prompt": ["one", "two"]}
    whole = (await client.post("/completions", json=request)).json()
    assert whole["object"] == "text_completion"
    assert whole["choices"][0]["text"] == REPLY + "one\ntwo"
    streamed = await client.post("/completions", json={**request, "stream": True})
    *words, finish = events(streamed.text)
    assert "".join([event["choices"][0]["text"] for event in words]) == REPLY + "one\ntwo"
    assert finish["choices"] == [{"index": 0, "text": "", "finish_reason": "stop"}]


async def test_embeddings_depend_on_the_text_alone(client: httpx.AsyncClient) -> None:
    request = {"model": "echo", "input": ["a", "b", "a"]}
    body = (await client.post("/embeddings", json=request)).json()
    first, second, third = (entry["embedding"] for entry in body["data"])
    assert first == third != second
    assert len(first) == 16
    assert sum(value * value for value in first) == pytest.approx(1)
    assert [entry["index"] for entry in body["data"]] == [0, 1, 2]
    assert body["usage"] == {"prompt_tokens": 1, "total_tokens": 1, "cost": 0}
    packed = await client.post(
        "/embeddings", json={"model": "echo", "input": "a", "encoding_format": "base64"}
    )
    unpacked = struct.unpack("<16f", base64.b64decode(packed.json()["data"][0]["embedding"]))
    assert unpacked == pytest.approx(first, abs=1e-6)


@pytest.mark.parametrize(("tokens", "count"), [([1, 2, 3], 1), ([[1, 2], [3]], 2), ([], 0)])
async def test_embeddings_take_tokens(
    client: httpx.AsyncClient, tokens: list[Any], count: int
) -> None:
    body = (await client.post("/embeddings", json={"model": "echo", "input": tokens})).json()
    assert len(body["data"]) == count


async def test_models_say_that_they_are_simulated(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/models")).json()
    (model,) = listed["data"]
    assert model["id"] == "echo"
    assert model["description"].startswith("simulated")
    assert (await client.get("/models/echo")).json() == model


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/chat/completions", b"{", 400, None),
        ("POST", "/chat/completions", b'{"a": "\xff"}', 400, None),
        ("POST", "/chat/completions", b"[" * 100_000, 400, None),
        ("POST", "/chat/completions", b"[]", 400, None),
        ("POST", "/chat/completions", b'{"model": "echo"}', 400, None),
        ("POST", "/chat/completions", json.dumps(chat(max_tokens=-1)).encode(), 400, None),
        ("POST", "/completions", b'{"model": "gpt-9"}', 404, "model_not_found"),
        ("GET", "/models/gpt-9", b"", 404, None),
        ("GET", "/chat/completions", b"", 404, None),
        ("POST", "/responses", b"{}", 404, None),
        ("POST", "/chat/completions", b" " * (1024 * 1024 + 1), 413, None),
    ],
)
async def test_mistakes_are_told_in_the_envelope_of_openai(
    client: httpx.AsyncClient, method: str, path: str, body: bytes, status: int, code: str | None
) -> None:
    answer = await client.request(method, path, content=body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["message"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, code)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /v1/models HTTP/1.1\r\ncontent-length: -1\r\n\r\n", 400),
        (b"GET /v1/models HTTP/1.1\r\ncontent-length: " + b"9" * 5000 + b"\r\n\r\n", 413),
        (b"POST /v1/embeddings HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"GET /v1/models HTTP/1.1\r\na: " + b"b" * 70_000 + b"\r\n\r\n", 431),
        (b"GET /v1/models HTTP/1.1\r\nConnection: close\r\n\r\n", 200),
        (b"GET /v1/models HTTP/1.0\r\n\r\n", 200),
    ],
)
async def test_connection_ends_where_nothing_can_follow(
    base_url: str, request_: bytes, status: int
) -> None:
    answer = await raw(base_url, request_)
    assert answer.startswith(b"HTTP/1.1 %d " % status)


async def test_connection_is_kept_for_the_next_request(base_url: str) -> None:
    one = b"GET /v1/models HTTP/1.1\r\n\r\n"
    answer = await raw(base_url, one * 3 + b"GET /nowhere HTTP/1.1\r\nconnection: close\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert answer.count(b"HTTP/1.1 404 Not Found") == 1


async def test_many_streams_run_at_once() -> None:
    server = DemoServer(word_seconds=0.01)
    base_url = await server.start()
    async with httpx.AsyncClient(base_url=base_url, trust_env=False, timeout=30) as client:
        answers = await asyncio.gather(
            *[client.post("/chat/completions", json=chat(str(n), stream=True)) for n in range(50)]
        )
    for number, answer in enumerate(answers):
        words = [event["choices"][0]["delta"].get("content", "") for event in events(answer.text)]
        assert "".join(words) == REPLY + str(number)
    await server.close()


async def leave_in_the_middle(base_url: str) -> None:
    async with httpx.AsyncClient(base_url=base_url, trust_env=False) as client:
        request = chat("word " * 30, stream=True)
        async with client.stream("POST", "/chat/completions", json=request) as answer:
            async for _ in answer.aiter_raw():
                return


async def test_client_that_leaves_ends_its_task_quietly(caplog: pytest.LogCaptureFixture) -> None:
    server = DemoServer(word_seconds=0.01)
    base_url = await server.start()
    before = asyncio.all_tasks()
    await leave_in_the_middle(base_url)
    left = asyncio.all_tasks() - before
    if left:
        await asyncio.wait_for(asyncio.wait(left), 10)
    assert caplog.records == []
    await server.close()


async def test_close_ends_running_answers_and_idle_connections(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = DemoServer(word_seconds=60)
    base_url = await server.start()
    before = asyncio.all_tasks()
    async with httpx.AsyncClient(base_url=base_url, trust_env=False) as client:
        assert (await client.get("/models")).status_code == 200  # stays open, idle
        async with client.stream("POST", "/chat/completions", json=chat(stream=True)) as answer:
            chunks = answer.aiter_raw()
            assert b"assistant" in await anext(chunks)
            await server.close()
            with pytest.raises(httpx.RemoteProtocolError):
                await anext(chunks)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    assert caplog.records == []


async def test_server_that_was_never_started_can_be_closed() -> None:
    await DemoServer().close()
