from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.api import body, track
from proxy.types import CallRecord
from tests.gateway import Gateway, lab
from tests.upstream import Upstream

Start = Callable[..., Awaitable[Gateway]]
KEY = "tk-master-of-the-tracker"
CANARY = "the-words-of-a-prompt"

INFERENCE = {
    "request_id": "mine-1",
    "timestamp": "2026-11-20T12:00:00.250Z",
    "provider": "lab",
    "model": "json",
    "agent_name": "nightly",
    "tool_name": "summary",
    "session_id": "s",
    "trace_id": "t",
    "user_id": "u-7",
    "tags": ["nightly", "team-a"],
    "status": "error",
    "error_reason": "server_error",
    "error_message": "it failed",
    "input_tokens": 1000,
    "output_tokens": 500,
    "total_tokens": 1500,
    "cached_tokens": 10,
    "cache_write_tokens": 5,
    "reasoning_tokens": 20,
    "cost_usd": 0.25,
    "response_time_ms": 900.5,
    "time_to_first_token_ms": 100,
    "model_version": "v1",
    "is_stream": True,
    "http_status": 500,
    "finish_reason": "stop",
    "queue_time_ms": 1,
    "processing_time_ms": 899,
    "tokens_per_second": 50,
    "prompt_length": 4000,
    "response_length": 2000,
    "temperature": 0.5,
    "top_p": 0.9,
    "max_tokens": 600,
}


async def tell(gateway: Gateway, what: str, **told: Any) -> httpx.Response:
    return await gateway.client.post(f"/track/{what}", json=told)


async def test_a_call_that_is_told_has_a_row_with_all_of_it(gateway: Gateway) -> None:
    answer = await tell(gateway, "inference", **INFERENCE)
    assert (answer.status_code, answer.json()) == (201, {"id": "mine-1"})
    row = await gateway.row()
    assert row["timestamp"] == 1_795_176_000_250
    assert (row["endpoint"], row["attempt"], row["is_final"]) == ("/track/inference", 1, 1)
    assert (row["usage_source"], row["cost_source"]) == ("provider", "provider")
    assert row["cost_estimate_usd"] == 0.25
    assert row["tags"] == '["nightly","team-a"]'
    same = INFERENCE.keys() - {"timestamp", "cost_usd", "tags"}
    assert {name: row[name] for name in same} == {name: INFERENCE[name] for name in same}
    [kept] = await gateway.rows(1, "SELECT * FROM errors")
    assert (kept["request_id"], kept["error_type"]) == ("mine-1", "server_error")


async def test_what_is_not_told_is_unknown_and_the_id_is_made(gateway: Gateway) -> None:
    answer = await tell(gateway, "inference", provider="lab", model="unpriced")
    row = await gateway.row()
    assert row["request_id"] == answer.json()["id"]
    assert len(row["request_id"]) == 19
    unknown = ("input_tokens", "cost_estimate_usd", "response_time_ms", "temperature", "client_id")
    assert [row[name] for name in unknown] == [None] * 5
    assert (row["status"], row["usage_source"], row["cost_source"]) == ("success", "none", "none")


async def test_a_call_without_a_cost_is_priced_as_the_gateways_own(gateway: Gateway) -> None:
    await tell(gateway, "inference", provider="lab", model="json", input_tokens=10, output_tokens=4)
    row = await gateway.row()
    assert (row["cost_estimate_usd"], row["cost_source"]) == (0.000011, "config")
    [day] = await gateway.rows(1, "SELECT * FROM daily_costs")
    assert (day["total_cost_usd"], day["invocations"]) == (0.000011, 1)


async def test_a_call_that_is_told_again_counts_once(gateway: Gateway) -> None:
    for _ in range(3):
        told = {"model": "json", "input_tokens": 10, "output_tokens": 4}
        answer = await tell(gateway, "inference", request_id="again", provider="lab", **told)
        assert answer.json() == {"id": "again"}
    await tell(gateway, "inference", request_id="last", provider="lab", model="json")
    await gateway.rows(1, "SELECT * FROM api_calls WHERE request_id = 'last'")
    [day] = gateway.select("SELECT invocations, total_tokens FROM daily_costs")
    assert day == {"invocations": 2, "total_tokens": 14}


async def test_nobody_can_tell_of_a_call_that_the_gateway_makes_itself(gateway: Gateway) -> None:
    answer = await gateway.chat("lab/json")
    ours = {"request_id": answer.headers["x-request-id"], "provider": "lab", "model": "free"}
    refused = await tell(gateway, "inference", **ours, cost_usd=0)
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "request_id")
    assert (await gateway.row())["model"] == "json"
    about = await tell(
        gateway, "error", request_id=ours["request_id"], error_type="E", error_message="m"
    )
    assert about.status_code == 201


async def test_no_member_keeps_a_key(gateway: Gateway) -> None:
    keys = ("sk-11111111", "sk-proj-" + "a1" * 20)
    for n, key in enumerate(keys):
        names = ["agent_name", "tool_name", "session_id", "trace_id", "user_id", "model_version"]
        names += ["request_id", "provider", "model", "finish_reason", "error_message"]
        told = {name: f"{n} {key}" for name in names}
        assert (await tell(gateway, "inference", **told)).status_code == 201
        names = ["event_id", "name", "request_id", "agent_name", "tool_name"]
        attributes = {f"n {key}": f"v {key}"[:64]}
        told = {name: f"{n} {key}" for name in names}
        answer = await tell(gateway, "custom", **told, attributes=attributes)
        assert answer.status_code == 201, answer.text
        names = ["request_id", "error_type", "error_message", "provider", "model", "endpoint"]
        told = {name: f"{n} {key}" for name in names}
        assert (await tell(gateway, "error", **told)).status_code == 201
    await gateway.rows(2)
    await gateway.rows(2, "SELECT * FROM custom_events")
    await gateway.rows(2, "SELECT * FROM errors")
    files = [p for p in gateway.folder.rglob("*") if p.is_file() and p.suffix != ".yaml"]
    kept = b"".join(map(Path.read_bytes, files))
    assert b"[redacted]" in kept
    for key in keys:
        assert key.encode() not in kept


async def test_what_cannot_be_written_down_is_not_promised(
    start: Start, upstream: Upstream
) -> None:
    telemetry = {"journal": {"on_failure": "strict"}}
    gateway = await start({"providers": {"lab": lab(upstream.url)}, "telemetry": telemetry})
    (journal,) = gateway.folder.rglob("journal")
    away = journal.rename(journal.with_name("away"))
    journal.touch()
    for _ in range(100):
        if (await tell(gateway, "inference", provider="p", model="m")).status_code == 503:
            break
        await asyncio.sleep(0.05)
    refused = await tell(gateway, "inference", provider="p", model="m")
    assert refused.json()["error"]["code"] == "journal_unwritable"
    stats = await gateway.client.get("/stats")
    assert stats.json()["recorder"]["journal"]["state"] == "unwritable"
    journal.unlink()
    away.rename(journal)


async def test_the_names_of_older_programs_are_understood(gateway: Gateway) -> None:
    older = {"invocation_id": "i", "model_name": "m", "prompt_tokens": 3, "completion_tokens": 4}
    answer = await tell(gateway, "inference", provider="lab", latency_ms=5, **older)
    assert answer.json() == {"id": "i"}
    row = await gateway.row()
    assert (row["model"], row["total_tokens"], row["response_time_ms"]) == ("m", 7, 5.0)


async def test_an_error_that_is_told_has_a_row(gateway: Gateway) -> None:
    key = "sk-proj-" + "a1B2" * 8
    told = {"request_id": "r", "provider": "lab", "model": "json", "http_status": 500}
    for number in range(2):
        answer = await tell(
            gateway,
            "error",
            error_type="ParseError",
            error_message=f"no JSON after {number} tries with {key}",
            severity="warning",
            endpoint="/summaries",
            **told,
        )
        assert (answer.status_code, answer.json()) == (201, {"id": "r"})
    first, second = await gateway.rows(2, "SELECT * FROM errors ORDER BY id")
    assert first["error_message"] == "no JSON after 0 tries with [redacted]"
    assert (first["error_type"], first["severity"]) == ("ParseError", "warning")
    assert (first["provider"], first["model_name"], first["http_status"]) == ("lab", "json", 500)
    assert (first["request_id"], first["endpoint"], first["stack_trace"]) == (
        "r",
        "/summaries",
        None,
    )
    assert first["fingerprint"] == second["fingerprint"]


async def test_errors_that_differ_are_told_apart(gateway: Gateway) -> None:
    for message in ("no JSON", "no answer"):
        await tell(gateway, "error", error_type="ParseError", error_message=message)
    first, second = await gateway.rows(2, "SELECT * FROM errors")
    assert first["fingerprint"] != second["fingerprint"]


async def test_an_event_is_a_row_that_can_be_asked_for(gateway: Gateway) -> None:
    attributes = {"cache": "answers", "size": 3, "share": 0.5, "warm": True}
    answer = await tell(
        gateway,
        "custom",
        event_id="e-1",
        timestamp="2026-11-20T12:00:00Z",
        name="cache_hit",
        value=1,
        request_id="r",
        agent_name="nightly",
        tool_name="summary",
        attributes=attributes,
    )
    assert (answer.status_code, answer.json()) == (201, {"id": "e-1"})
    await gateway.rows(1, "SELECT * FROM custom_events")
    found = (await gateway.client.get("/stats/events?start=2026-01-01")).json()["data"]
    assert found == [
        {
            "id": 1,
            "event_id": "e-1",
            "timestamp": "2026-11-20T12:00:00.000Z",
            "name": "cache_hit",
            "value": 1.0,
            "request_id": "r",
            "agent_name": "nightly",
            "tool_name": "summary",
            "client_id": None,
            "metadata": attributes,
        }
    ]


GOOD: dict[str, dict[str, Any]] = {
    "inference": {"provider": "lab", "model": "json"},
    "error": {"error_type": "ParseError", "error_message": "no JSON"},
    "custom": {"name": "cache_hit"},
}


@pytest.mark.parametrize(
    ("what", "wrong", "param"),
    [
        ("inference", {"prompt": CANARY + "\0"}, "prompt"),
        ("inference", {"messages": [{"role": "user", "content": CANARY}]}, "messages"),
        ("inference", {"metadata": {"answer": CANARY}}, "metadata"),
        ("inference", {"model": None}, "model"),
        ("inference", {"provider": ""}, "provider"),
        ("inference", {"provider": "a\0b"}, "provider"),
        ("error", {"error_message": "a\0b"}, "error_message"),
        ("inference", {"model": "m" * 201}, "model"),
        ("inference", {"model_name": "other"}, "model_name"),
        ("inference", {"status": "failed"}, "status"),
        ("inference", {"status": "error", "error_reason": "bad luck"}, "error_reason"),
        ("inference", {"input_tokens": -1}, "input_tokens"),
        ("inference", {"input_tokens": "12"}, "input_tokens"),
        ("inference", {"output_tokens": 10**12 + 1}, "output_tokens"),
        ("inference", {"cost_usd": -0.5}, "cost_usd"),
        ("inference", {"cost_usd": 1_000_001}, "cost_usd"),
        ("inference", {"http_status": 99}, "http_status"),
        ("inference", {"timestamp": "yesterday"}, "timestamp"),
        ("error", {"stack_trace": CANARY}, "stack_trace"),
        ("error", {"severity": "fatal"}, "severity"),
        ("error", {"timestamp": "1969-01-01"}, "timestamp"),
        ("custom", {"text": CANARY}, "text"),
        ("custom", {"attributes": {"prompt": CANARY * 10}}, "attributes"),
        ("custom", {"attributes": {"nested": {"prompt": CANARY}}}, "attributes"),
        ("custom", {"attributes": {f"a{n}": n for n in range(17)}}, "attributes"),
        ("custom", {"value": "many"}, "value"),
    ],
)
async def test_what_does_not_hold_is_named_and_nothing_is_kept(
    gateway: Gateway, what: str, wrong: dict[str, Any], param: str
) -> None:
    answer = await tell(gateway, what, **GOOD[what] | wrong)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (422, param)
    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith(f"{param}: ")
    assert CANARY not in answer.text
    for table in ("api_calls", "errors", "custom_events"):
        assert gateway.select(f"SELECT * FROM {table}") == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"5", b"null", b"\xff"])
async def test_what_is_no_object_is_refused(gateway: Gateway, body: bytes) -> None:
    for what in GOOD:
        answer = await gateway.client.post(f"/track/{what}", content=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, "body")


async def test_a_body_that_is_too_long_is_refused(gateway: Gateway) -> None:
    answer = await gateway.client.post("/track/error", content=b" " * (body.MAX_BODY + 1))
    assert answer.status_code == 413


async def test_a_key_is_needed_where_one_is_set(start: Start, upstream: Upstream) -> None:
    config = {"auth": {"master_key": KEY}, "providers": {"lab": lab(upstream.url)}}
    gateway = await start(config)
    for what, told in GOOD.items():
        async with httpx.AsyncClient(base_url=gateway.url) as stranger:
            bare = await stranger.post(f"/track/{what}", json=told)
        assert (bare.status_code, bare.json()["error"]["code"]) == (401, "invalid_api_key")
        assert (await tell(gateway, what, **told)).status_code == 201
    assert (await gateway.row())["client_id"] == "master"
    for table in ("errors", "custom_events"):
        [row] = await gateway.rows(1, f"SELECT * FROM {table}")
        assert row["client_id"] == "master"


@pytest.mark.parametrize(
    ("level", "header", "kept"),
    [("full", "full", True), ("full", "metadata", False), ("metadata", "full", False)],
)
async def test_what_was_said_is_kept_at_full_alone(
    start: Start, upstream: Upstream, level: str, header: str, kept: bool
) -> None:
    """S3-38."""
    gateway = await start(
        {"providers": {"lab": lab(upstream.url)}, "telemetry": {"privacy_level": level}}
    )
    said = {"prompt": CANARY, "response": "Ho"}
    if kept:
        said["response"] = "Ho " * 50_000
    answer = await gateway.client.post(
        "/track/inference",
        json={**GOOD["inference"], **said},
        headers={"x-tollkeeper-privacy": header},
    )
    assert answer.status_code == 201
    row = await gateway.row()
    assert row["privacy_level"] == ("full" if kept else "metadata")
    if not kept:
        assert gateway.select("SELECT * FROM call_contents") == []
        return
    await gateway.rows(1, "SELECT * FROM call_contents")
    path = f"/stats/calls/{answer.json()['id']}/content"
    found = (await gateway.client.get(path)).json()
    assert (found["request"], found["answer"]) == (CANARY, said["response"])


async def test_full_takes_longer_bodies_and_not_any(start: Start, upstream: Upstream) -> None:
    gateway = await start(
        {"providers": {"lab": lab(upstream.url)}, "telemetry": {"privacy_level": "full"}}
    )
    answer = await tell(gateway, "inference", **GOOD["inference"], prompt="x" * track.MAX_FULL_BODY)
    assert answer.status_code == 413


@pytest.mark.parametrize("off", [{"privacy_level": "none"}, {"enabled": False}])
async def test_where_nothing_is_kept_nothing_is_promised(
    start: Start, upstream: Upstream, off: dict[str, Any]
) -> None:
    gateway = await start({"providers": {"lab": lab(upstream.url)}, "telemetry": off})
    for what, told in GOOD.items():
        answer = await tell(gateway, what, **told)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "telemetry_off")
        assert answer.headers["x-should-retry"] == "false"


def test_every_member_of_an_inference_is_a_field_or_a_column() -> None:
    names = track.Inference.model_fields.keys() - {"cost_usd", "prompt", "response"}
    assert names <= set(CallRecord.__struct_fields__)
