"""What a row says of a call: when things came, how much of them, what they cost, and for whom."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests import transcripts
from tests.gateway import Gateway, lab, running
from tests.store.databases import REACHABLE
from tests.upstream import (
    CHUNK,
    Upstream,
    answer,
    completion,
    event,
    json_answer,
    stream,
    upstream_server,
    words,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROLE = event({"role": "assistant", "content": ""})
DONE = b"data: [DONE]\n\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=REACHABLE)
async def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Gateway, Upstream]]:
    """A provider of every type, all of them the same upstream; on each kind of database."""
    async with upstream_server() as upstream:
        known = {
            name: {
                "base_url": upstream.url,
                "keys": [{"name": "k", "value": f"sk-{name}-1", "quota_group": "org"}],
            }
            for name in ("groq", "gemini", "openrouter")
        }
        config = {
            "providers": {
                "lab": lab(upstream.url),
                "ollama": {"base_url": upstream.url},
                **known,
            },
            "models": {"fast": {"targets": ["lab/json"]}},
            "prices": {
                "lab/json": {"input": 0.5, "output": 1.5, "cached_input": 0.05},
                "openrouter/m": {"input": 1000, "output": 1000},
                "gemini/*": {"input": 0.1, "output": 0.4},
            },
            "auth": {"master_key": "tk-master-1"},
        }
        folder = tmp_path_factory.mktemp("metering")
        async with running(folder, config, kind=request.param) as gateway:
            yield gateway, upstream


@pytest.fixture
def gateway(place: tuple[Gateway, Upstream]) -> Gateway:
    return place[0]


@pytest.fixture
def upstream(place: tuple[Gateway, Upstream]) -> Upstream:
    place[1].reset()
    return place[1]


def say(*texts: str) -> list[bytes]:
    return [event({"content": text}) for text in texts]


def usage(prompt: int, output: int, **more: Any) -> bytes:
    told = {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        **more,
    }
    return b"data: " + json.dumps({**CHUNK, "choices": [], "usage": told}).encode() + b"\n\n"


async def metered(gateway: Gateway, model: str = "lab/json", **more: Any) -> dict[str, Any]:
    """The row of one call."""
    got = await gateway.chat(model, **more)
    assert got.status_code == 200, got.text
    return await gateway.attempt(got.headers["x-request-id"])


async def test_the_first_token_is_the_first_content_and_no_role(
    gateway: Gateway, upstream: Upstream
) -> None:
    upstream.script = stream(
        [b": hi\n\n", ROLE, 0.2, *say("a"), 0.05, *say("b"), usage(1, 2), DONE]
    )
    row = await metered(gateway, stream=True)
    assert row["ttfb_ms"] + 100 < row["time_to_first_token_ms"]
    assert row["time_to_first_token_ms"] < row["response_time_ms"]
    assert row["chunk_count"] == 2


TOKENS = {
    "content": {"content": "a"},
    "reasoning": {"reasoning": "a"},
    "reasoning content": {"reasoning_content": "a"},
    "refusal": {"refusal": "no"},
    "tool call": {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f"}}]},
    "arguments": {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]},
}


async def test_reasoning_and_tool_calls_are_first_tokens_too(
    gateway: Gateway, upstream: Upstream
) -> None:
    rows = {}
    for name, delta in TOKENS.items():
        empty = event({key: "" for key in ("content", "reasoning", "refusal")})
        parts = [ROLE, empty, 0.1, event(delta), 0.1, *say("x"), event(finish="stop"), DONE]
        upstream.script = stream(parts)
        got = await gateway.chat("lab/json", stream=True)
        rows[name] = got.headers["x-request-id"]
    for name, request_id in rows.items():
        row = await gateway.attempt(request_id)
        assert (name, row["chunk_count"]) == (name, 2)
        assert row["ttfb_ms"] + 20 < row["time_to_first_token_ms"]
        assert row["time_to_first_token_ms"] + 20 < row["response_time_ms"]


async def test_speed_counts_the_tokens_between_the_first_and_the_last(
    gateway: Gateway, upstream: Upstream
) -> None:
    """Sixteen tokens in four deltas: (16 - 1) / (last - first), and the wait is not in it."""
    parts = [ROLE, 0.2, *say("a"), 0.05, *say("b"), 0.05, *say("c"), 0.05, *say("d"), 0.1]
    upstream.script = stream([*parts, event(finish="stop"), usage(5, 16), DONE])
    row = await metered(gateway, stream=True)
    seconds = 3 * row["inter_token_avg_ms"] / 1000
    assert seconds >= 0.14
    assert row["tokens_per_second"] == pytest.approx(15 / seconds, rel=0.001)
    assert row["chunk_count"] == 4


async def test_gaps_between_tokens_are_told_by_their_shape(
    gateway: Gateway, upstream: Upstream
) -> None:
    """Nine gaps of 20 ms and one of 300: the median is small, the longest stall is not."""
    parts: list[bytes | float] = [ROLE]
    for place in range(11):
        parts += [*say(str(place)), 0.3 if place == 4 else 0.02]
    upstream.script = stream([*parts, usage(5, 11), DONE])
    row = await metered(gateway, stream=True)
    assert row["max_stall_ms"] >= 290
    assert 15 <= row["inter_token_p50_ms"] < 150
    assert row["inter_token_p50_ms"] < row["inter_token_p95_ms"] < row["max_stall_ms"]
    assert row["inter_token_p50_ms"] < row["inter_token_avg_ms"] < row["max_stall_ms"]


async def test_thoughts_answer_and_tool_call_have_moments_of_their_own(
    gateway: Gateway, upstream: Upstream
) -> None:
    call = event({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{}"}}]})
    parts = [ROLE, 0.15, event({"reasoning": "hm"}), 0.15, *say("a"), 0.15, call, 0.15]
    upstream.script = stream([*parts, event(finish="tool_calls"), usage(5, 3), DONE])
    row = await metered(gateway, stream=True)
    assert row["first_reasoning_ms"] == row["time_to_first_token_ms"]
    assert row["first_tool_ms"] == row["last_token_ms"]
    order = ["ttfb_ms", "first_reasoning_ms", "first_content_ms", "first_tool_ms"]
    moments = [row[name] for name in (*order, "processing_time_ms")]
    assert all(after - before >= 20 for before, after in pairwise(moments))
    assert row["stall_count"] == 0


async def test_a_single_token_has_no_speed_and_no_gaps(
    gateway: Gateway, upstream: Upstream
) -> None:
    upstream.script = stream([ROLE, *say("a"), event(finish="stop"), usage(5, 1), DONE])
    row = await metered(gateway, stream=True)
    assert row["time_to_first_token_ms"] is not None
    for name in ("tokens_per_second", "inter_token_avg_ms", "inter_token_p50_ms", "max_stall_ms"):
        assert row[name] is None
    assert row["stall_count"] is None


async def test_a_body_has_no_times_of_tokens(gateway: Gateway, upstream: Upstream) -> None:
    row = await metered(gateway)
    for name in ("time_to_first_token_ms", "tokens_per_second", "chunk_count", "max_stall_ms"):
        assert row[name] is None
    assert row["ttfb_ms"] > 0


async def test_where_the_time_went_adds_up(gateway: Gateway, upstream: Upstream) -> None:
    upstream.script = stream([*say("a"), 0.1, *say("b"), event(finish="stop"), usage(1, 2), DONE])
    row = await metered(gateway, stream=True)
    assert row["queue_time_ms"] >= 0
    assert row["overhead_ms"] > 0
    parts = row["overhead_before_ms"], row["overhead_after_ms"]
    assert min(parts) >= 0
    assert sum(parts) == pytest.approx(row["overhead_ms"], abs=0.002)
    assert row["processing_time_ms"] >= 95
    assert row["processing_time_ms"] <= row["response_time_ms"] <= row["total_duration_ms"]
    whole = row["overhead_ms"] + row["processing_time_ms"]
    assert whole <= row["total_duration_ms"] + 0.01
    assert row["finished_at"] - row["timestamp"] >= 95


async def test_tokens_that_were_never_sent_are_not_in_the_speed(
    gateway: Gateway, upstream: Upstream
) -> None:
    """Gemini bills 94 thoughts and sends 6 tokens: the speed is that of the 6."""
    first, *others = [part + b"\n\n" for part in transcripts.stream("T6").split(b"\n\n")[:-1]]
    upstream.script = stream([first, 0.1, *others])
    row = await metered(gateway, "gemini/gemini-3-flash-preview", stream=True)
    assert (row["output_tokens"], row["reasoning_tokens"]) == (100, 94)
    assert row["tokens_per_second"] == pytest.approx(5 / row["inter_token_avg_ms"] * 1000, rel=0.01)
    assert row["cost_estimate_usd"] == pytest.approx((9 * 0.1 + 100 * 0.4) / 1e6)


async def test_hidden_reasoning_of_a_plain_server_is_not_in_the_speed(
    gateway: Gateway, upstream: Upstream
) -> None:
    hidden = usage(5, 52, completion_tokens_details={"reasoning_tokens": 50})
    upstream.script = stream([*say("a"), 0.1, *say("b"), event(finish="stop"), hidden, DONE])
    row = await metered(gateway, stream=True)
    assert (row["output_tokens"], row["reasoning_tokens"]) == (52, 50)
    assert row["tokens_per_second"] == pytest.approx(1000 / row["max_stall_ms"], rel=0.01)


async def test_reasoning_that_was_sent_is_in_the_speed(
    gateway: Gateway, upstream: Upstream
) -> None:
    told = usage(5, 52, completion_tokens_details={"reasoning_tokens": 50})
    parts = [event({"reasoning": "hm"}), 0.1, *say("b"), event(finish="stop"), told, DONE]
    upstream.script = stream(parts)
    row = await metered(gateway, stream=True)
    assert row["tokens_per_second"] == pytest.approx(51_000 / row["max_stall_ms"], rel=0.01)


async def test_cached_and_reasoning_shares_are_kept_and_priced(
    gateway: Gateway, upstream: Upstream
) -> None:
    told = {
        "prompt_tokens": 1000,
        "completion_tokens": 200,
        "total_tokens": 1200,
        "prompt_tokens_details": {"cached_tokens": 400, "cache_write_tokens": 100},
        "completion_tokens_details": {"reasoning_tokens": 150},
    }
    upstream.script = completion(usage=told)
    row = await metered(gateway)
    assert (row["input_tokens"], row["output_tokens"], row["total_tokens"]) == (1000, 200, 1200)
    assert (row["cached_tokens"], row["cache_write_tokens"]) == (400, 100)
    assert row["reasoning_tokens"] == 150
    assert row["cost_estimate_usd"] == pytest.approx((600 * 0.5 + 400 * 0.05 + 200 * 1.5) / 1e6)
    assert (row["cost_source"], row["usage_source"]) == ("config", "provider")


async def test_what_the_provider_says_it_cost_wins(gateway: Gateway, upstream: Upstream) -> None:
    upstream.script = stream([transcripts.stream("T10")])
    row = await metered(gateway, "openrouter/m", stream=True)
    assert row["cost_estimate_usd"] == pytest.approx(0.00001305)
    assert row["cost_source"] == "provider"


async def test_ollama_costs_nothing(gateway: Gateway, upstream: Upstream) -> None:
    row = await metered(gateway, "ollama/llama3.2")
    assert (row["cost_estimate_usd"], row["cost_source"]) == (0, "config")


async def test_a_price_nobody_knows_is_null(gateway: Gateway, upstream: Upstream) -> None:
    """On loopback too: the machine under the desk is not free."""
    row = await metered(gateway, "lab/other")
    assert (row["cost_estimate_usd"], row["cost_source"]) == (None, "none")
    assert row["price_version"] is None
    assert row["total_tokens"] == 21


async def test_a_listed_price_comes_from_the_catalogue(
    gateway: Gateway, upstream: Upstream
) -> None:
    upstream.script = completion(prompt=1_000_000, output=1_000_000)
    row = await metered(gateway, "groq/llama-3.1-8b-instant")
    assert row["cost_source"] == "catalog"
    assert 0.01 < row["cost_estimate_usd"] < 10
    assert row["price_version"]


async def test_usage_that_nobody_told_is_estimated_and_said_to_be(
    gateway: Gateway, upstream: Upstream
) -> None:
    upstream.script = stream([*say("Hello", " there"), event(finish="stop"), DONE])
    row = await metered(gateway, stream=True)
    assert (row["usage_source"], row["output_tokens"]) == ("estimated", 2)
    assert row["input_tokens"] > 0


async def test_groqs_three_copies_of_usage_count_once(gateway: Gateway, upstream: Upstream) -> None:
    upstream.script = stream([transcripts.stream("T1")])
    row = await metered(gateway, "groq/llama-3.3-70b-versatile", stream=True)
    assert (row["input_tokens"], row["output_tokens"], row["total_tokens"]) == (45, 3, 48)
    assert row["model_version"] == "fp_d42c28f9ce"
    told = json.loads(row["metadata"])
    assert told["queue_time"] == pytest.approx(0.0381395)
    assert (row["generation_ms"], "completion_time" in told) == (14.172, False)
    assert told["service_tier"] == "on_demand"


async def test_zeros_never_replace_usage(gateway: Gateway, upstream: Upstream) -> None:
    upstream.script = stream([transcripts.stream("T17")])
    row = await metered(gateway, "lab/cf", stream=True)
    assert (row["input_tokens"], row["output_tokens"], row["total_tokens"]) == (45, 2, 47)


async def test_a_servers_own_timings_are_kept_and_counted(
    gateway: Gateway, upstream: Upstream
) -> None:
    upstream.script = stream([transcripts.stream("T20")])
    row = await metered(gateway, "lab/gemma.gguf", stream=True)
    assert (row["input_tokens"], row["cached_tokens"], row["output_tokens"]) == (17, 7, 9)
    told = json.loads(row["metadata"])["timings"]
    assert told["predicted_per_second"] == pytest.approx(65.51410373066423)
    assert row["model_version"] == "b9554-d403f00ec"


async def test_the_model_that_answered_is_kept_where_it_is_another(
    gateway: Gateway, upstream: Upstream
) -> None:
    upstream.script = completion(model="json-2026-11-01")
    assert (await metered(gateway))["model_version"] == "json-2026-11-01"
    upstream.script = completion(model="json")
    assert (await metered(gateway))["model_version"] is None


async def test_what_was_asked_for_is_kept(gateway: Gateway, upstream: Upstream) -> None:
    row = await metered(
        gateway,
        "fast",
        text="12345678",
        temperature=0.7,
        top_p=0.9,
        frequency_penalty=0.1,
        presence_penalty=-0.2,
        top_k=40,
        max_tokens=256,
        stop=["a", "b", "c"],
        tools=[{"type": "function", "function": {"name": "f"}}],
        n=1,
        seed=42,
        reasoning_effort="low",
    )
    assert (row["temperature"], row["top_p"], row["top_k"]) == (0.7, 0.9, 40)
    assert (row["frequency_penalty"], row["presence_penalty"]) == (0.1, -0.2)
    assert (row["max_tokens"], row["stop_count"], row["tool_count"]) == (256, 3, 1)
    assert (row["n"], row["seed"], row["reasoning_effort"]) == (1, 42, "low")
    assert (row["message_count"], row["prompt_length"], row["response_length"]) == (1, 8, 5)
    assert (row["requested_model"], row["provider"], row["model"]) == ("fast", "lab", "json")
    assert (row["endpoint"], row["finish_reason"]) == ("/v1/chat/completions", "stop")
    assert (row["is_stream"], row["privacy_level"]) == (0, "metadata")
    assert (row["account"], row["client_id"]) == ("k1", "master")


async def test_newer_spellings_of_a_request_are_understood(
    gateway: Gateway, upstream: Upstream
) -> None:
    row = await metered(gateway, max_completion_tokens=99, stop="END", reasoning={"effort": "high"})
    assert (row["max_tokens"], row["stop_count"], row["reasoning_effort"]) == (99, 1, "high")


async def test_the_length_of_a_prompt_in_parts_is_that_of_its_texts(
    gateway: Gateway, upstream: Upstream
) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    parts = [{"type": "text", "text": "12345"}, image]
    messages = [{"role": "system", "content": "abc"}, {"role": "user", "content": parts}]
    row = await metered(gateway, messages=messages)
    assert (row["message_count"], row["prompt_length"]) == (2, 8)


async def test_what_was_not_asked_for_is_null(gateway: Gateway, upstream: Upstream) -> None:
    row = await metered(gateway)
    for name in ("temperature", "top_p", "max_tokens", "stop_count", "tool_count", "seed", "n"):
        assert row[name] is None
    for name in ("agent_name", "tool_name", "session_id", "trace_id", "client_request_id"):
        assert row[name] is None
    assert (row["user_id"], row["tags"]) == (None, None)


async def test_a_call_is_counted_for_whom_its_headers_name(
    gateway: Gateway, upstream: Upstream
) -> None:
    headers = {
        "X-Agent-Name": "planner",
        "X-Tool-Name": "search",
        "X-Session-Id": "session-9",
        "X-Request-Id": "mine-77",
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "User-Agent": "aider/0.80",
    }
    row = await metered(gateway, headers=headers)
    assert (row["agent_name"], row["tool_name"], row["session_id"]) == (
        "planner",
        "search",
        "session-9",
    )
    assert row["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert row["client_request_id"] == "mine-77"
    assert row["request_id"] != "mine-77"
    assert len(row["request_id"]) == 18


async def test_a_call_has_the_user_and_the_tags_that_headers_and_body_tell(
    gateway: Gateway, upstream: Upstream
) -> None:
    metadata = {"tags": ["batch", "team-a"], "ticket": "7"}
    headers = {"X-User-Id": "ann", "X-Tags": "team-a, exp-1"}
    row = await metered(gateway, headers=headers, user="u-7", metadata=metadata)
    assert (row["user_id"], row["tags"]) == ("ann", '["team-a","exp-1","batch"]')
    sent = upstream.calls[-1].json
    assert (sent["user"], sent["metadata"]) == ("u-7", metadata)
    row = await metered(gateway, user="u-7", safety_identifier="s-7")
    assert (row["user_id"], row["tags"]) == ("u-7", None)
    row = await metered(gateway, headers={"X-OpenWebUI-User-Id": "web-7"}, metadata=[1])
    assert (row["user_id"], row["tags"]) == ("web-7", None)


async def test_a_key_that_is_sent_as_a_user_or_a_tag_is_not_kept(
    gateway: Gateway, upstream: Upstream
) -> None:
    secret = "sk-proj-" + "a1B2" * 40
    row = await metered(gateway, headers={"X-Tags": f"a,{secret}"}, user=f"ann {secret}")
    assert (row["user_id"], row["tags"]) == ("ann [redacted]", '["a","[redacted]"]')


async def test_coding_tools_are_known_by_their_user_agent(
    gateway: Gateway, upstream: Upstream
) -> None:
    tools = {
        "claude-cli/2.0 (external)": "claude-code",
        "codex_cli_rs/0.40": "codex",
        "aider/0.80 litellm": "aider",
        "Cline/3.1": "cline",
        "OpenAI/Python 3.0": None,
        "Mozilla/5.0": None,
    }
    answers = [
        await gateway.chat("lab/json", headers={"user-agent": agent, "x-request-id": agent})
        for agent in tools
    ]
    rows = [await gateway.attempt(got.headers["x-request-id"]) for got in answers]
    assert [row["tool_name"] for row in rows] == list(tools.values())


async def test_hostile_headers_only_shorten(gateway: Gateway, upstream: Upstream) -> None:
    headers = {
        "X-Agent-Name": "a" * 5000,
        "X-Session-Id": "caf\u00e9 '; DROP TABLE api_calls; --".encode(),
        "X-Tool-Name": b"\xff\xfe",
        "traceparent": "00-" + "0" * 32 + "-00f067aa0ba902b7-01",
    }
    row = await metered(gateway, headers=headers)
    assert row["agent_name"] == "a" * 128
    assert row["session_id"].startswith("caf\u00e9 ';")
    assert row["trace_id"] is None


async def test_what_the_upstream_calls_the_call_is_kept(
    gateway: Gateway, upstream: Upstream
) -> None:
    body = {"choices": [{"index": 0, "message": {"content": "x"}, "finish_reason": "length"}]}
    upstream.script = json_answer(body, **{"x-request-id": "req_01"})
    row = await metered(gateway)
    assert (row["upstream_request_id"], row["http_status"]) == ("req_01", 200)
    assert (row["finish_reason"], row["client_status"]) == ("length", 200)
    assert row["usage_source"] == "estimated"


async def test_several_choices_are_one_answer(gateway: Gateway, upstream: Upstream) -> None:
    def choice(index: int, text: str, finish: str | None = None) -> bytes:
        part = {"index": index, "delta": {"content": text}, "finish_reason": finish}
        return b"data: " + json.dumps({**CHUNK, "choices": [part]}).encode() + b"\n\n"

    parts = [choice(0, "ab"), choice(1, "cd"), choice(0, "", "stop"), choice(1, "", "length")]
    upstream.script = stream([*parts, usage(3, 4), DONE])
    row = await metered(gateway, stream=True, n=2)
    assert (row["response_length"], row["chunk_count"], row["n"]) == (4, 2, 2)
    assert (row["status"], row["output_tokens"]) == ("success", 4)


async def test_an_unreadable_event_spoils_nothing(gateway: Gateway, upstream: Upstream) -> None:
    odd = [
        b"data: not json\n\n",
        b"data: []\n\n",
        b'data: {"choices":"x","usage":7}\n\n',
        b"x: y\n\n",
    ]
    parts = [*odd, *words("a", "b")]
    upstream.script = stream(parts)
    got = await gateway.chat("lab/json", stream=True, stream_options={"include_usage": True})
    assert got.content == b"".join(parts)
    row = await gateway.attempt(got.headers["x-request-id"])
    assert (row["status"], row["output_tokens"]) == ("success", 2)


async def test_absurd_usage_is_not_believed(gateway: Gateway, upstream: Upstream) -> None:
    for told in (
        {"prompt_tokens": -5, "completion_tokens": 1e300, "total_tokens": "many"},
        {"prompt_tokens": 10**30, "completion_tokens": None},
        {"prompt_tokens": True, "total_tokens": [1]},
        [1, 2],
        "none",
    ):
        upstream.script = completion(usage=told)
        row = await metered(gateway)
        assert (row["status"], row["usage_source"]) == ("success", "estimated")
        assert row["total_tokens"] < 20


async def test_the_rest_of_the_statistics_agree_with_the_rows(
    gateway: Gateway, upstream: Upstream
) -> None:
    """Every window and every sum was written in the transaction of its rows."""
    shown = (await gateway.client.get("/stats")).json()
    rows = gateway.select("SELECT * FROM api_calls")
    totals = shown["totals"]
    assert totals["attempts"] == len(rows)
    assert totals["total_tokens"] == sum(row["total_tokens"] or 0 for row in rows)
    cost = sum(row["cost_estimate_usd"] or 0 for row in rows)
    assert totals["cost_usd"] == pytest.approx(cost)
    [daily] = gateway.select(
        "SELECT sum(invocations) AS calls, sum(total_cost_usd) AS cost, sum(total_tokens) AS tokens"
        " FROM daily_costs"
    )
    assert (daily["calls"], daily["tokens"]) == (len(rows), totals["total_tokens"])
    assert daily["cost"] == pytest.approx(cost)
    assert gateway.select("SELECT id FROM tps_metrics WHERE provider = 'lab'")
    assert gateway.select("SELECT id FROM provider_health WHERE provider = 'lab' AND is_healthy")


async def test_an_answer_of_another_type_is_no_stream(gateway: Gateway, upstream: Upstream) -> None:
    upstream.script = answer(200, b'{"data":[{"embedding":[1]}]}', **{"content-type": "text/plain"})
    row = await metered(gateway)
    assert (row["status"], row["usage_source"]) == ("success", "none")


async def test_embeddings_that_tell_no_output_are_priced(
    place: tuple[Gateway, Upstream], tmp_path: Path
) -> None:
    _, upstream = place
    vector = {"object": "embedding", "index": 0, "embedding": [0.5]}
    usage = {"prompt_tokens": 1000, "total_tokens": 1000}
    upstream.script = json_answer({"object": "list", "data": [vector], "usage": usage})
    prices = {"lab/e": {"input": 1, "output": 2}}
    async with running(
        tmp_path, {"providers": {"lab": lab(upstream.url)}, "prices": prices}
    ) as own:
        await own.client.post("/v1/embeddings", json={"model": "lab/e", "input": "hi"})
        row = await own.row()
    assert (row["input_tokens"], row["output_tokens"]) == (1000, 0)
    assert row["cost_estimate_usd"] == pytest.approx(0.001)


async def test_speeds_are_averaged_over_the_minutes_that_were_configured(
    place: tuple[Gateway, Upstream], tmp_path: Path
) -> None:
    _, upstream = place
    upstream.script = stream([ROLE, *say("a"), 0.05, *say("b"), usage(1, 2), DONE])
    telemetry = {"tps_windows": [2, 30]}
    async with running(
        tmp_path, {"providers": {"lab": lab(upstream.url)}, "telemetry": telemetry}
    ) as own:
        await own.chat("lab/m", stream=True)
        await own.row()
        found = own.select("SELECT window_minutes AS minutes FROM tps_metrics ORDER BY 1")
    assert [row["minutes"] for row in found] == [2, 30]
