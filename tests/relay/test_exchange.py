"""One try, without a socket: what goes up, what is learnt, and that nothing stays open."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from proxy.clock import monotonic
from proxy.metering.attempt import Attempt
from proxy.providers import OLLAMA_NATIVE
from proxy.providers.base import Dialect, Provider
from proxy.providers.openai import OpenAI
from proxy.providers.translation import Untranslatable
from proxy.relay.exchange import MAX_ERROR_BODY, Call, exchange
from proxy.relay.inbound import parse
from proxy.relay.outbound import Outbound
from proxy.routing.counters import Counters
from proxy.routing.key import Key
from proxy.routing.keypool import KeyPool
from proxy.types import Demand, Fault, Headers, Operation, Plan, Target
from tests.transcripts import body
from tests.upstream import event
from tests.wire import DONE, JSON, SSE, Body, Client, Part

TARGET = Target("lab", "m")
LIMITS = [
    (b"x-ratelimit-limit-requests", b"3"),
    (b"x-ratelimit-remaining-requests", b"0"),
    (b"x-ratelimit-reset-requests", b"9s"),
]


class Try(httpx.AsyncBaseTransport):
    """One exchange with an upstream that answers with ``status``, ``fields`` and ``parts``."""

    def __init__(self, *parts: Part, status: int = 200, fields: Headers | None = None) -> None:
        self.body = Body(*parts)
        self.status = status
        self.fields = [SSE] if fields is None else fields
        self.failure: Exception | None = None
        self.dialect: Dialect = OpenAI()
        self.asked = b'{"model": "fast", "stream": true}'
        self.requests: list[httpx.Request] = []
        self.admitted = False
        self.pool = KeyPool(
            "lab",
            [Key("k1", "sk-1", "org")],
            Counters(None, lambda: 0.0),
            chance=lambda: 1.0,
        )
        self.attempt = Attempt(1, TARGET, 0, leased=0)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        assert self.admitted
        self.requests.append(request)
        if self.failure is not None:
            raise self.failure
        return httpx.Response(self.status, headers=self.fields, stream=self.body)

    def admit(self, attempt: Attempt) -> None:
        """It is written down with its key, before anything is sent."""
        assert (attempt.key_id, self.requests) == ("k1", [])
        self.admitted = True

    async def run(self, *fields: tuple[bytes, bytes], left: float = 30.0) -> Outbound | Fault:
        inbound = parse(self.asked, Operation.CHAT)
        now = monotonic()
        plan = Plan("fast", (TARGET,), "fast")
        meter: Any = SimpleNamespace(admit=self.admit)
        call = Call(Operation.CHAT, inbound, [*fields], Demand(), plan, meter, now, now + left, now)
        lease = self.pool.lease("m", now)
        assert lease is not None
        provider = Provider.of(
            "lab", self.dialect, base_url="http://up/v1", connect=5, first_byte=20, idle=60
        )
        return await exchange(
            call, TARGET, provider, self.pool, lease, self.attempt, self, peek=0.05
        )


async def test_an_answer_that_begins_well_stays_open_with_its_lease() -> None:
    tried = Try(event({"content": "a"}), DONE)
    found = await tried.run()
    assert isinstance(found, Outbound)
    assert (found.status, tried.attempt.http_status, tried.attempt.ended) == (200, 200, None)
    assert (tried.attempt.key_id, tried.attempt.account) == ("k1", "org")
    assert (tried.body.closed, tried.pool.keys[0].in_flight) == (0, 1)
    found.release()
    assert (tried.body.closed, tried.pool.keys[0].in_flight) == (1, 0)


async def test_the_model_is_the_targets_and_of_the_clients_fields_few_pass() -> None:
    tried = Try(event({"content": "a"}), DONE)
    await tried.run((b"cookie", b"x"), (b"traceparent", b"00-1"), (b"authorization", b"client"))
    [request] = tried.requests
    assert json.loads(await request.aread())["model"] == "m"
    assert request.headers["traceparent"] == "00-1"
    assert request.headers["authorization"] == "Bearer sk-1"
    assert "cookie" not in request.headers


@pytest.mark.parametrize(
    ("left", "connect", "first"), [(30.0, 5, 20), (8.0, 5, 8), (2.0, 2, 2), (-1.0, 0, 0)]
)
async def test_what_is_left_of_the_deadline_bounds_the_waits(
    left: float, connect: float, first: float
) -> None:
    tried = Try(event({"content": "a"}), DONE)
    await tried.run(left=left)
    waits = tried.requests[0].extensions["timeout"]
    assert waits["connect"] == pytest.approx(connect, abs=0.2)
    assert waits["first_byte"] == pytest.approx(first, abs=0.2)
    assert min(waits.values()) > 0  # 0 would be none
    assert waits["read"] == 60


async def test_limits_in_the_head_are_learnt_for_the_group_whatever_the_answer() -> None:
    for status in (200, 429):
        tried = Try(event({"content": "a"}), DONE, status=status, fields=[SSE, *LIMITS])
        await tried.run()
        assert tried.pool.lease("m", monotonic()) is None
        assert tried.pool.lease("other", monotonic()) is not None
        assert tried.attempt.rate_headers == tuple(LIMITS)


async def test_the_upstreams_id_of_the_call_is_kept() -> None:
    fields = [SSE, (b"cf-ray", b"ray"), (b"x-request-id", b"up-1")]
    tried = Try(event({"content": "a"}), DONE, fields=fields)
    await tried.run()
    assert tried.attempt.upstream_request_id == "up-1"


FAILURES = [
    (Try(b'{"error": {"message": "no"}}', status=500, fields=[JSON]), "server_error", False),
    (Try(b"x" * (MAX_ERROR_BODY + 1), b"never read", status=503), "overloaded", False),
    (Try(b"{", httpx.ReadError("cut"), status=500), "server_error", False),
    (Try(b'data: {"error": {"message": "full", "code": 503}}\n\n'), "overloaded", False),
    (Try(), "empty_response", True),
    (Try(b'{"id": "x"', httpx.ReadTimeout("slow"), fields=[JSON]), "timeout", True),
    (Try(b"<html>", fields=[JSON]), "bad_response", True),
]


@pytest.mark.parametrize(("tried", "reason", "executed"), FAILURES)
async def test_a_failure_is_a_fault_and_lets_the_upstream_go(
    tried: Try, reason: str, executed: bool
) -> None:
    found = await tried.run()
    assert isinstance(found, Fault)
    assert (found.reason, found.executed) == (reason, executed)
    assert tried.body.closed == 1
    assert tried.attempt.ended is not None
    assert tried.pool.keys[0].in_flight == 1  # whoever took the lease gives it back


async def test_of_a_refusals_body_no_more_is_read_than_is_wanted() -> None:
    tried = Try(b"x" * (MAX_ERROR_BODY + 1), b"never read", status=500)
    await tried.run()
    assert tried.body.waiting == [b"never read"]


async def test_no_connection_is_a_fault_and_leaves_nothing_to_close() -> None:
    tried = Try()
    tried.failure = httpx.ConnectError("refused")
    found = await tried.run()
    assert isinstance(found, Fault)
    assert (found.reason, found.executed, tried.body.closed) == ("connect", False, 0)


async def test_where_openai_is_not_spoken_both_ways_are_translated() -> None:
    tried = Try(body("T23.text"), fields=[(b"content-type", b"application/x-ndjson")])
    tried.dialect = OLLAMA_NATIVE
    tried.asked = b'{"model": "fast", "stream": true, "messages": [], "top_k": 5}'
    found = await tried.run()
    assert isinstance(found, Outbound)
    [request] = tried.requests
    assert request.url.path == "/api/chat"
    asked = {"model": "m", "messages": [], "options": {"top_k": 5}, "stream": True}
    assert json.loads(await request.aread()) == asked
    client = Client()
    went_well: list[bool] = []
    await found.deliver(client.send, [], went_well.append)
    assert went_well == [True]
    assert client.body.endswith(DONE)
    assert b"usage" not in client.body  # the client did not ask for it, and the meter has it
    assert (found.tap.usage or {})["completion_tokens"] == 4
    found.release()
    assert tried.body.closed == 1


async def test_what_cannot_be_translated_is_not_sent() -> None:
    tried = Try()
    tried.dialect = OLLAMA_NATIVE
    with pytest.raises(Untranslatable, match="'messages'"):
        await tried.run()
    assert (tried.requests, tried.admitted) == ([], False)


@pytest.mark.parametrize(
    ("sent", "kept"), [(b"req_01J", "req_01J"), (b"what the model said", None), (b"", None)]
)
async def test_an_upstreams_id_is_kept_if_it_looks_like_one(sent: bytes, kept: str | None) -> None:
    tried = Try(fields=[(b"x-request-id", sent)])
    await tried.run()
    assert tried.attempt.upstream_request_id == kept


async def test_a_stream_that_says_nothing_for_a_while_is_taken_as_it_is() -> None:
    tried = Try(b": wait\n\n", 60.0)
    found = await tried.run()
    assert isinstance(found, Outbound)
    found.release()


async def test_a_try_that_is_cancelled_lets_the_upstream_go() -> None:
    tried = Try(60.0, fields=[JSON])
    task = asyncio.ensure_future(tried.run())
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert tried.body.closed == 1
