"""Several tool calls that an Ollama streams under one index, as OpenAI's own client reads them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from tests.gateway import Gateway, lab, running
from tests.upstream import Upstream, event, stream, upstream_server, usage_event

ASK: list[Any] = [{"role": "user", "content": "What is the weather, and what time is it?"}]
CALLS = [
    ("call_1a", "get_weather", '{"city":"Oslo"}'),
    ("call_2b", "get_weather", '{"city":"Bod\u00f8","index":0}'),
    ("call_3c", "get_time", "{}"),
]
"""Id, name and arguments."""


def told(id_: str, name: str, arguments: str) -> bytes:
    """One whole call in a delta of its own."""
    function = {"name": name, "arguments": arguments}
    call = {"id": id_, "index": 0, "type": "function", "function": function}
    return event({"role": "assistant", "content": "", "tool_calls": [call]})


PARTS = [
    *(told(*call) for call in CALLS),
    event({"role": "assistant", "content": ""}, "tool_calls"),
    usage_event(20, 30),
    b"data: [DONE]\n\n",
]


@pytest_asyncio.fixture
async def place(tmp_path: Path) -> AsyncIterator[tuple[Gateway, Upstream]]:
    """The same upstream twice: as an Ollama, and as any other server."""
    async with upstream_server() as upstream:
        config = {
            "providers": {
                "desk": {"type": "ollama", "base_url": upstream.url},
                "lab": lab(upstream.url),
            }
        }
        async with running(tmp_path, config) as gateway:
            yield gateway, upstream


@pytest.mark.parametrize("reads", ["one an event", "one", "many"])
async def test_each_call_arrives_with_its_own_name_and_arguments(
    place: tuple[Gateway, Upstream], reads: str
) -> None:
    gateway, upstream = place
    whole = b"".join(PARTS)
    cut: list[bytes] = {
        "one an event": PARTS,
        "one": [whole],
        "many": [whole[i : i + 29] for i in range(0, len(whole), 29)],
    }[reads]
    upstream.script = stream([part for each in cut for part in (each, 0.001)])
    async with (
        AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="x", max_retries=0) as client,
        client.chat.completions.stream(model="desk/qwen3", messages=ASK) as answer,
    ):
        final = await answer.get_final_completion()
    calls = final.choices[0].message.tool_calls
    assert calls is not None
    assert [(call.id, call.function.name, call.function.arguments) for call in calls] == CALLS
    assert final.choices[0].finish_reason == "tool_calls"
    row = await gateway.row()
    assert (row["status"], row["input_tokens"], row["output_tokens"]) == ("success", 20, 30)


@pytest.mark.parametrize("provider", ["desk", "lab"])
async def test_no_other_byte_is_changed_and_none_for_another_type(
    place: tuple[Gateway, Upstream], provider: str
) -> None:
    gateway, upstream = place
    upstream.script = stream(PARTS)
    asks = {"stream": True, "stream_options": {"include_usage": True}}
    received = (await gateway.chat(f"{provider}/qwen3", **asks)).content
    parts = list(PARTS)
    if provider == "desk":
        for number in (1, 2):
            first, second = parts[number].split(b'"index": 0, "type"')
            parts[number] = first + b'"index": %d, "type"' % number + second
    assert received == b"".join(parts)


async def test_calls_that_have_indices_of_their_own_pass(place: tuple[Gateway, Upstream]) -> None:
    gateway, upstream = place
    right = [
        part.replace(b'"index": 0, "type"', b'"index": %d, "type"' % n)
        for n, part in enumerate(PARTS)
    ]
    upstream.script = stream(right)
    asks = {"stream": True, "stream_options": {"include_usage": True}}
    answer = await gateway.chat("desk/qwen3", **asks)
    assert answer.content == b"".join(right)
