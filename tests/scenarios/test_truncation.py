"""A stream that breaks off looks broken to the client, and never like a whole one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests import transcripts
from tests.gateway import Gateway, lab, running
from tests.upstream import Exchange, Script, Upstream, event, stream, upstream_server, words

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[tuple[Gateway, Upstream]]:
    """``lab`` looks at each event for usage to withhold; ``mute`` passes what comes."""
    async with upstream_server() as upstream:
        waits = {"idle": 1.0}
        config = {
            "providers": {
                "lab": lab(upstream.url, timeouts=waits),
                "mute": lab(upstream.url, include_usage=False, timeouts=waits),
                "ollama": {"base_url": upstream.url},
            },
        }
        async with running(tmp_path_factory.mktemp("truncation"), config) as gateway:
            yield gateway, upstream


@pytest.fixture
def gateway(place: tuple[Gateway, Upstream]) -> Gateway:
    return place[0]


@pytest.fixture
def upstream(place: tuple[Gateway, Upstream]) -> Upstream:
    place[1].reset()
    return place[1]


def reset_after(*parts: bytes) -> Script:
    async def script(exchange: Exchange) -> None:
        await stream(parts, ends="open")(exchange)
        exchange.reset()

    return script


def until_close(*parts: bytes) -> Script:
    """An answer without a length, which ends when the connection does."""

    async def script(exchange: Exchange) -> None:
        await exchange.head(content_type="text/event-stream", connection="close")
        for part in parts:
            await exchange.send(part)
        await exchange.close()

    return script


async def broken(
    gateway: Gateway, name: str, provider: str = "lab", model: str = "m"
) -> tuple[bytes, dict[str, Any], dict[str, Any]]:
    """What the client gets before the error event, the error, and the row."""
    body = {"model": f"{provider}/{model}", "stream": True}
    line = await gateway.dial(body, f"x-request-id: {name}")
    raw = await line.rest()
    assert b"[DONE]" not in raw
    assert not raw.endswith(b"0\r\n\r\n"), "the transfer looks complete"
    text = _unchunk(raw.partition(b"\r\n\r\n")[2])
    before, mark, last = text.rpartition(b'data: {"error"')
    assert mark, "no error event"
    assert last.endswith(b"\n\n")
    assert before == b"" or before.endswith(b"\n\n"), "the error event is glued to another"
    said = json.loads(b'{"error"' + last)["error"]
    assert set(said) == {"message", "type", "param", "code"}
    row = await gateway.attempt(name)
    assert (row["client_status"], row["http_status"], row["is_final"]) == (200, 200, 1)
    return before, said, row


def _unchunk(data: bytes) -> bytes:
    whole = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        whole += data[: int(size, 16)]
        data = data[int(size, 16) + 2 :]
    return whole


A, B = event({"content": "a"}), event({"content": "b"})


@pytest.mark.parametrize("provider", ["lab", "mute"])
@pytest.mark.parametrize("how", ["cut", "reset", "clean", "close"])
async def test_a_stream_that_stops_between_events_is_told_to_be_truncated(
    gateway: Gateway, upstream: Upstream, how: str, provider: str
) -> None:
    ways = {
        "cut": stream([A, B], ends="cut"),
        "reset": reset_after(A, B),
        "clean": stream([A, B]),
        "close": until_close(A, B),
    }
    upstream.script = ways[how]
    before, said, row = await broken(gateway, f"between-{how}-{provider}", provider)
    assert before == A + B
    assert (said["type"], said["code"]) == ("api_error", "stream_truncated")
    assert (row["status"], row["error_reason"]) == ("error", "truncated")
    assert (row["output_tokens"], row["usage_source"]) == (2, "estimated")


@pytest.mark.parametrize("provider", ["lab", "mute"])
@pytest.mark.parametrize("how", ["cut", "clean", "close"])
async def test_a_stream_that_stops_inside_an_event_gets_a_blank_line_first(
    gateway: Gateway, upstream: Upstream, how: str, provider: str
) -> None:
    half = B[: len(B) // 2]
    ways = {
        "cut": stream([A, half], ends="cut"),
        "clean": stream([A, half]),
        "close": until_close(A, half),
    }
    upstream.script = ways[how]
    before, _, row = await broken(gateway, f"inside-{how}-{provider}", provider)
    assert before == A + half + b"\n\n"
    assert (row["status"], row["error_reason"], row["output_tokens"]) == ("error", "truncated", 1)


@pytest.mark.parametrize("provider", ["lab", "mute"])
@pytest.mark.parametrize("ends", ["cut", "clean"])
async def test_a_stream_cut_between_its_line_ends_gets_a_blank_line_too(
    gateway: Gateway, upstream: Upstream, ends: str, provider: str
) -> None:
    upstream.script = stream([A, B[:-1]], ends=ends)
    before, _, row = await broken(gateway, f"one-line-end-{ends}-{provider}", provider)
    assert before.startswith(A + B[:-1])
    assert before.count(B[:-1]) == 1
    assert row["chunk_count"] == 2


async def test_a_stream_that_falls_silent_times_out(gateway: Gateway, upstream: Upstream) -> None:
    upstream.script = stream([A], ends="hang")
    before, said, row = await broken(gateway, "silent")
    assert before == A
    assert said["code"] == "stream_timeout"
    assert (row["status"], row["error_reason"], row["output_tokens"]) == ("timeout", "timeout", 1)


async def test_a_runner_that_dies_is_not_taken_for_the_end(
    gateway: Gateway, upstream: Upstream
) -> None:
    """Ollama then ends the transfer cleanly, with neither a reason nor ``[DONE]``."""
    upstream.script = stream([transcripts.stream("T15")])
    before, _, row = await broken(gateway, "runner", "ollama", "llama3.2:3b")
    assert before == transcripts.stream("T15")
    assert (row["status"], row["error_reason"]) == ("error", "truncated")
    assert (row["output_tokens"], row["cost_estimate_usd"]) == (1, 0)


async def test_a_broken_chunk_size_breaks_the_stream(gateway: Gateway, upstream: Upstream) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head(content_type="text/event-stream", transfer_encoding="chunked")
        await exchange.chunk(A)
        await exchange.send(b"zz\r\nnonsense\r\n")
        await exchange.gone.wait()

    upstream.script = script
    before, _, row = await broken(gateway, "chunk-size")
    assert before == A
    assert row["status"] == "error"


async def test_a_reason_without_done_is_an_end(gateway: Gateway, upstream: Upstream) -> None:
    """Some servers never send ``[DONE]``; the gateway does not invent one."""
    parts = [A, event(finish="stop")]
    upstream.script = stream(parts)
    got = await gateway.chat("lab/m", stream=True)
    assert got.content == b"".join(parts)
    row = await gateway.attempt(got.headers["x-request-id"])
    assert (row["status"], row["finish_reason"]) == ("success", "stop")


async def test_done_without_a_reason_is_an_end(gateway: Gateway, upstream: Upstream) -> None:
    parts = [A, b"data: [DONE]\n\n"]
    upstream.script = stream(parts)
    got = await gateway.chat("lab/m", stream=True)
    assert got.content == b"".join(parts)
    row = await gateway.attempt(got.headers["x-request-id"])
    assert (row["status"], row["finish_reason"]) == ("success", None)


async def test_a_cut_after_the_end_was_told_is_no_fault(
    gateway: Gateway, upstream: Upstream
) -> None:
    upstream.script = stream(words("a"), ends="cut")
    body = {"model": "mute/m", "stream": True}
    line = await gateway.dial(body, "x-request-id: late-cut", "connection: close")
    raw = await line.rest()
    assert raw.count(b"[DONE]") == 1
    assert b'"error"' not in raw
    assert (await gateway.attempt("late-cut"))["status"] == "success"


async def test_an_error_event_of_the_upstreams_is_not_followed_by_another(
    gateway: Gateway, upstream: Upstream
) -> None:
    said = b'data: {"error":{"message":"gave up","code":500}}\n\n'
    upstream.script = stream([A, 0.02, said], ends="cut")
    line = await gateway.dial({"model": "lab/m", "stream": True}, "x-request-id: theirs")
    raw = await line.rest()
    assert raw.count(b'"error"') == 1
    assert not raw.endswith(b"0\r\n\r\n")
    row = await gateway.attempt("theirs")
    assert (row["status"], row["error_reason"]) == ("error", "stream_error")
    assert row["error_message"] == "the provider's error: status 500"


async def test_a_body_that_is_cut_is_a_failed_attempt(gateway: Gateway, upstream: Upstream) -> None:
    """Nothing of it has gone out, so the client gets a status and not half an answer."""

    async def script(exchange: Exchange) -> None:
        await exchange.head(content_type="application/json", content_length="1000")
        await exchange.send(b'{"choices":[')
        await exchange.close()

    upstream.script = script
    got = await gateway.chat("lab/m")
    assert got.status_code == 502
    row = await gateway.attempt(got.headers["x-request-id"])
    assert (row["status"], row["client_status"], row["http_status"]) == ("error", 502, 200)


async def test_a_key_is_not_blamed_for_a_broken_stream(
    gateway: Gateway, upstream: Upstream
) -> None:
    keys = (await gateway.client.get("/stats/keys")).json()["data"]
    assert {(key["state"], key["in_flight"]) for key in keys} == {("healthy", 0)}
