"""A request for which no key is free waits, if one will be soon; else it is told until when."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.gateway import lab
from tests.scenarios.views import Start, key, until, waiting
from tests.upstream import Exchange, Upstream, completion, error

PATIENT = {"routing": {"max_wait": 5}}
ONE = {"limits": {"models": {"*": {"concurrency": 1}}}}


class Gate:
    """An upstream script that lets calls through one by one."""

    def __init__(self) -> None:
        self.open = asyncio.Semaphore(0)

    async def __call__(self, exchange: Exchange) -> None:
        await asyncio.wait_for(self.open.acquire(), 20)
        await completion()(exchange)


async def test_calls_are_served_in_the_order_in_which_they_came(
    upstream: Upstream, start: Start
) -> None:
    gate = upstream.script = Gate()
    gateway = await start({"providers": {"lab": lab(upstream.url, **ONE)}, **PATIENT})
    async with asyncio.TaskGroup() as tasks:
        for number in range(4):
            tasks.create_task(gateway.chat("lab/m", f"number {number}"))
            await until(lambda n=number: len(upstream.calls) == 1 and waiting(gateway) == n)
        await asyncio.sleep(0.05)
        for count in range(1, 5):
            assert len(upstream.calls) == count
            assert len(upstream.open) == 1
            gate.open.release()
            await upstream.asked(min(count + 1, 4))
    asked = [call.json["messages"][0]["content"] for call in upstream.calls]
    assert asked == [f"number {number}" for number in range(4)]
    rows = await gateway.rows(4)
    queued = [row["queue_time_ms"] for row in rows]
    assert max(45, queued[0]) < min(queued[1:])
    for row in rows[1:]:
        assert row["overhead_ms"] < row["queue_time_ms"]
        assert row["total_duration_ms"] >= row["queue_time_ms"]
    assert {(row["attempt"], row["status"]) for row in rows} == {(1, "success")}
    assert (await key(gateway))["in_flight"] == 0


async def test_a_short_rest_is_waited_for_and_the_wait_is_no_time_of_ours(
    upstream: Upstream, start: Start
) -> None:
    upstream.script = error(429, "slow down", **{"retry-after-ms": "300"})
    gateway = await start({"providers": {"lab": lab(upstream.url)}, **PATIENT})
    async with asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(gateway.chat("lab/m"))
        await upstream.asked()
        upstream.script = completion("at last")
    got = asked.result()
    assert got.json()["choices"][0]["message"]["content"] == "at last"
    refused, served = await gateway.attempts(got.headers["x-request-id"])
    assert (refused["error_reason"], refused["is_final"]) == ("rate_limit", 0)
    assert (served["status"], served["http_status"], served["is_final"]) == ("success", 200, 1)
    assert 250 < served["queue_time_ms"] < served["total_duration_ms"]
    assert served["overhead_ms"] < served["queue_time_ms"]
    assert refused["queue_time_ms"] < served["queue_time_ms"]


async def test_a_limit_that_was_told_is_waited_for(upstream: Upstream, start: Start) -> None:
    told = {
        "x-ratelimit-limit-requests": "1",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "3s",
    }

    async def script(exchange: Exchange) -> None:
        fields = {name.replace("-", "_"): value for name, value in told.items()}
        body = b'{"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]}'
        await exchange.head(
            content_type="application/json", content_length=str(len(body)), **fields
        )
        await exchange.send(body)

    upstream.script = script
    gateway = await start({"providers": {"lab": lab(upstream.url)}, **PATIENT})
    for _ in range(2):
        assert (await gateway.chat("lab/m")).status_code == 200
    first, second = await gateway.rows(2)
    assert second["queue_time_ms"] > max(200, first["queue_time_ms"])


async def test_a_longer_rest_is_not_waited_for(upstream: Upstream, start: Start) -> None:
    upstream.by_key["sk-1111"] = error(429, "a", retry_after="50")
    upstream.by_key["sk-2222"] = error(429, "b", retry_after="30")
    gateway = await start(
        {"providers": {"lab": lab(upstream.url, "sk-1111", "sk-2222")}, **PATIENT}
    )
    await gateway.chat("lab/m")
    got = await gateway.chat("lab/m")
    assert got.status_code == 429
    assert 20 <= int(got.headers["retry-after"]) <= 30
    assert len(upstream.calls) == 2
    row = await gateway.attempt(got.headers["x-request-id"])
    assert (row["status"], row["error_reason"], row["queue_time_ms"]) == (
        "rejected",
        "no_keys",
        None,
    )
    assert row["total_duration_ms"] < 28_000


async def test_whoever_waited_in_vain_is_told_so(upstream: Upstream, start: Start) -> None:
    gate = upstream.script = Gate()
    config: dict[str, Any] = {"providers": {"lab": lab(upstream.url, **ONE)}}
    gateway = await start({**config, "routing": {"max_wait": 0.15}})
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(gateway.chat("lab/m"))
        await upstream.asked()
        got = await gateway.chat("lab/m")
        gate.open.release()
    assert first.result().status_code == 200
    assert (got.status_code, got.headers["retry-after"]) == (429, "1")
    assert "concurrent 1/1" in got.json()["error"]["message"]
    row = await gateway.attempt(got.headers["x-request-id"])
    assert (row["status"], row["key_id"]) == ("rejected", None)
    assert row["total_duration_ms"] >= 145


async def test_a_client_may_leave_while_it_waits(upstream: Upstream, start: Start) -> None:
    gate = upstream.script = Gate()
    gateway = await start({"providers": {"lab": lab(upstream.url, **ONE)}, **PATIENT})
    body = {"model": "lab/m", "messages": [{"role": "user", "content": "hi"}]}
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(gateway.chat("lab/m"))
        await upstream.asked()
        before = len(asyncio.all_tasks())
        line = await gateway.dial(body, "x-request-id: left")
        await until(lambda: waiting(gateway) == 1)
        last = tasks.create_task(gateway.chat("lab/m"))
        await until(lambda: waiting(gateway) == 2)
        await line.hang_up()
        await until(lambda: waiting(gateway) == 1)
        row = await gateway.attempt("left")
        assert (row["status"], row["error_reason"]) == ("cancelled", "client_closed")
        assert (row["client_status"], row["key_id"]) == (499, None)
        gate.open.release()
        gate.open.release()
    assert (first.result().status_code, last.result().status_code) == (200, 200)
    assert len(upstream.calls) == 2
    assert (await key(gateway))["in_flight"] == 0
    await until(lambda: len(asyncio.all_tasks()) <= before)
