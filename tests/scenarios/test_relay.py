"""A call through the whole gateway, as a client sees it and as the database keeps it."""

from __future__ import annotations

import hashlib

import pytest

from tests.gateway import Gateway
from tests.upstream import Upstream, completion, event, stream, words


async def test_an_answer_passes_byte_for_byte_and_leaves_one_row(
    gateway: Gateway, upstream: Upstream
) -> None:
    upstream.script = completion("Hi there", prompt=1000, output=500, x_unknown={"a": [1, None]})
    answer = await gateway.chat("lab/json", temperature=0.3, my_member=[1])
    assert answer.status_code == 200
    assert answer.json()["x_unknown"] == {"a": [1, None]}
    assert upstream.calls[0].json["model"] == "json"
    assert upstream.calls[0].json["my_member"] == [1]
    row = await gateway.row()
    assert row["request_id"] == answer.headers["x-request-id"]
    assert (row["provider"], row["model"], row["key_id"]) == ("lab", "json", "k1")
    assert (row["status"], row["success"], row["is_final"], row["attempt"]) == ("success", 1, 1, 1)
    assert (row["input_tokens"], row["output_tokens"], row["total_tokens"]) == (1000, 500, 1500)
    assert row["cost_estimate_usd"] == pytest.approx(0.00125)
    assert (row["cost_source"], row["usage_source"]) == ("config", "provider")
    assert row["temperature"] == 0.3
    assert row["time_to_first_token_ms"] is None


async def test_a_streams_bytes_are_the_upstreams(gateway: Gateway, upstream: Upstream) -> None:
    parts = [b": hello\n\n", event({"role": "assistant"}), event({"content": "caf\u00e9"}), 0.02]
    parts += [event({"content": "!"}), event(finish="stop"), b"data: [DONE]\n\n"]
    upstream.script = stream(parts)
    answer = await gateway.chat("lab/json", stream=True, stream_options={"include_usage": True})
    sent = b"".join(part for part in parts if isinstance(part, bytes))
    assert hashlib.sha256(answer.content).digest() == hashlib.sha256(sent).digest()


async def test_usage_that_was_not_asked_for_is_counted_and_hidden(
    gateway: Gateway, upstream: Upstream
) -> None:
    upstream.script = stream(words("a", "b", "c"))
    answer = await gateway.chat("lab/json", stream=True)
    assert upstream.calls[0].json["stream_options"] == {"include_usage": True}
    assert b"usage" not in answer.content
    assert answer.content.endswith(b"data: [DONE]\n\n")
    row = await gateway.row()
    assert (row["input_tokens"], row["output_tokens"], row["usage_source"]) == (5, 3, "provider")
