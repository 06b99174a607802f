"""What no client can bring about at will: a call that is left or broken at each of its waits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from proxy import clients
from proxy.clock import monotonic
from proxy.metering.meter import Books
from proxy.metering.pricing import Prices, Quote
from proxy.providers.base import Provider
from proxy.providers.ollama import Ollama
from proxy.providers.openai import OpenAI
from proxy.relay.claims import Claims
from proxy.relay.gate import Gate
from proxy.relay.line import Line
from proxy.relay.relay import Limits, Relay, Routes
from proxy.routing.alias import Alias, Candidate
from proxy.routing.counters import Allowance, Allowances, Counters
from proxy.routing.key import Key
from proxy.routing.keypool import KeyPool
from proxy.routing.planner import Planner
from proxy.routing.quotas import Quota
from proxy.routing.retries import RetryBudget
from proxy.types import Caller, CallRecord, Operation, Target
from tests.upstream import event
from tests.wire import DONE, JSON, SSE, Body, Client

Step = Callable[[], Any]
CLIENT = clients.Client(
    "master", "ann", 0, limits=clients.ClientLimits(rpm=9, tpm=9999, parallel=1)
)


class Wait:
    """A point where a call waits: ``reached`` when it is there, and then for ever."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()

    async def __call__(self, *_: object, **__: object) -> Any:
        self.reached.set()
        await asyncio.Event().wait()


class Stalled(Body):
    """Sends its parts and then nothing more."""

    def __init__(self, wait: Step, *parts: bytes) -> None:
        super().__init__(*parts)
        self.wait = wait

    async def __anext__(self) -> bytes:
        return await super().__anext__() if self.waiting else await self.wait()


class Upstream(httpx.AsyncBaseTransport):
    """Answers with ``status`` and ``body``, once ``head`` is through."""

    def __init__(
        self, status: int = 200, body: Body | None = None, head: Step | None = None
    ) -> None:
        self.status = status
        self.body = body or Body(event({"content": "a"}), event(finish="stop"), DONE)
        self.head = head
        self.requests: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if self.head is not None:
            await self.head()
        kind = SSE if self.status == 200 else JSON
        return httpx.Response(self.status, headers=[kind], stream=self.body)


class Waited(Line):
    """A line that tells when somebody waits in it."""

    def __init__(self, reached: Step) -> None:
        super().__init__()
        self.reached = reached

    async def wait(self, name: str, ready: Callable[[float], float], give_up: float) -> bool:
        if isinstance(self.reached, Wait):
            self.reached.reached.set()
        else:
            self.reached()
        return await super().wait(name, ready, give_up)


class SharedState:
    """Stands for what several gateways share, as far as a claim goes."""

    available = True

    def __init__(self, claim: Step) -> None:
        self.claim = claim
        self.hold: Step = self.held
        self.taken: set[str] = set()

    def token(self) -> str:
        self.taken.add("t")
        return "t"

    async def held(self, *_: object) -> bool:
        return True

    def free(self, name: str, token: str) -> None:
        self.taken.remove(token)


class Call:
    """One call through a relay with one provider, one key and one alias."""

    def __init__(self, upstream: Upstream, model: str = "lab/m") -> None:
        self.upstream = upstream
        self.client = Client()
        self.send: Any = self.client.send
        self.refresh: Any = self.nothing
        self.claim: Any = None
        self.allowance = Allowance()
        self.line = Line()
        self.gate = Gate(None)
        self.state: SharedState | None = None
        self.records: list[CallRecord] = []
        self.broken: list[tuple[str, str | None, str | None]] = []
        self.listening = asyncio.Event()
        self.left = asyncio.Event()
        self.body: bytes | None = json.dumps({"model": model, "stream": True}).encode()
        self.headers = [(b"x-agent-name", b"tester")]
        self.key = Key("k1", "sk-1", "org")
        self.provider = Provider.of("lab", OpenAI(), base_url="http://up/v1")

    async def nothing(self) -> None: ...

    async def receive(self) -> dict[str, Any]:
        if self.body is not None:
            body, self.body = self.body, None
            return {"type": "http.request", "body": body}
        self.listening.set()
        await self.left.wait()
        return {"type": "http.disconnect"}

    def note(
        self, exc: BaseException, request_id: str, path: str, hide: Callable[[str], str]
    ) -> None:
        self.broken.append((type(exc).__name__, request_id, path))

    def relay(self, tasks: asyncio.TaskGroup) -> Relay:
        counters = Counters(None, lambda: 0.0)
        counters.configure(Allowances(keys={"k1": self.allowance}))
        pools = {"lab": KeyPool("lab", [self.key], counters, chance=lambda: 1.0)}
        targets = [Candidate(Target("lab", "m")), Candidate(Target("lab", "other"))]
        two = Alias(targets, pools=pools)
        relay = Relay(
            routes=Routes(
                planner=Planner(["lab"], {"two": two}, {"m": "lab"}.get, list),
                providers={"lab": self.provider},
                pools=pools,
                retries=RetryBudget(),
                max_wait=3600,
            ),
            line=self.line,
            gate=self.gate,
            transport=self.upstream,
            books=Books(
                self.records.append,
                lambda *_: Quote(None, "none", None),
                str,
                "metadata",
                gpu_memory_mb=lambda: 512.0,
            ),
            prices=Prices({}, {}),
            limits=Limits(1_000_000, 3600, 3600),
            start=tasks.create_task,
            refresh_models=lambda: self.refresh(),
            broken=self.note,
        )
        if self.claim is not None:
            relay.claims = Claims(SharedState(self.claim), lambda: pools)
        return relay

    async def serve(
        self,
        interrupt: Callable[[asyncio.Task[None]], object] | None = None,
        wait: Wait | None = None,
    ) -> bool:
        """Serve; with ``interrupt``, do that once ``wait`` is reached. True if it was cancelled."""
        scope = {
            "request_id": "ID",
            "caller": Caller(CLIENT.id, CLIENT),
            "headers": self.headers,
            "path": "/v1/chat/completions",
            "started": monotonic(),
        }
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            relay = self.relay(tasks)
            serving = tasks.create_task(relay.serve(Operation.CHAT, scope, self.receive, self.send))
            if interrupt is not None and wait is not None:
                await wait.reached.wait()
                assert relay.in_flight == 1
                interrupt(serving)
            await asyncio.wait([serving])
        assert (relay.in_flight, self.key.in_flight, len(self.line)) == (0, 0, 0)
        assert self.quota.slots.used == 0
        assert self.state is None or not self.state.taken
        return serving.cancelled()

    @property
    def quota(self) -> Quota:
        return self.gate._quotas.of(("client", CLIENT.id), CLIENT.limits)

    @property
    def row(self) -> CallRecord:
        (record,) = self.records
        assert record.is_final
        return record


def at_the_body(wait: Wait) -> Call:
    call = Call(Upstream())
    call.body, call.listening = None, wait.reached
    return call


def at_the_lists(wait: Wait) -> Call:
    call = Call(Upstream(), "m")
    call.refresh = wait
    return call


def in_line(wait: Wait) -> Call:
    call = Call(Upstream())
    call.allowance = Allowance(concurrency=0)
    call.line = Waited(wait)
    return call


def at_the_claim(wait: Wait) -> Call:
    call = Call(Upstream())
    call.claim = wait
    return call


def at_the_slot(wait: Wait) -> Call:
    """Where calls at a time are counted for all gateways."""
    call = Call(Upstream())
    call.state = SharedState(wait)
    call.state.hold = wait
    call.gate = Gate(call.state)  # type: ignore[arg-type]
    return call


def at_the_window(wait: Wait) -> Call:
    """Where requests and tokens are."""
    call = at_the_slot(wait)
    assert call.state is not None
    call.state.hold = call.state.held
    return call


def at_the_head(wait: Wait) -> Call:
    return Call(Upstream(head=wait))


def at_a_refusals_body(wait: Wait) -> Call:
    return Call(Upstream(500, Stalled(wait, b'{"error"')))


def at_the_first_event(wait: Wait) -> Call:
    return Call(Upstream(body=Stalled(wait, event({"role": "assistant"}))))


def at_the_next_event(wait: Wait) -> Call:
    return Call(Upstream(body=Stalled(wait, event({"content": "a"}))))


def at_sending_the_head(wait: Wait) -> Call:
    call = Call(Upstream())
    call.send = wait
    return call


def at_sending_a_chunk(wait: Wait) -> Call:
    call = Call(Upstream())

    async def send(message: dict[str, Any]) -> None:
        await (wait() if message["type"].endswith("body") else call.client.send(message))

    call.send = send
    return call


WAITS = [
    at_the_body,
    at_the_lists,
    in_line,
    at_the_claim,
    at_the_slot,
    at_the_window,
    at_the_head,
    at_a_refusals_body,
    at_the_first_event,
    at_the_next_event,
    at_sending_the_head,
    at_sending_a_chunk,
]
ATTEMPTED = WAITS[6:]


@pytest.mark.parametrize("place", WAITS)
async def test_a_client_that_leaves_is_counted_and_nothing_stays_held(
    place: Callable[[Wait], Call],
) -> None:
    wait = Wait()
    call = place(wait)
    assert not await call.serve(lambda _: call.left.set(), wait)
    assert (call.row.status, call.row.client_status) == ("cancelled", 499)
    assert call.row.error_reason == "client_closed"
    assert call.row.key_id == ("k1" if place in ATTEMPTED else None)
    assert call.upstream.body.closed == (place in ATTEMPTED and place is not at_the_head)
    assert not call.broken


@pytest.mark.parametrize("place", WAITS)
async def test_a_call_that_is_cut_by_the_end_is_counted_and_nothing_stays_held(
    place: Callable[[Wait], Call],
) -> None:
    wait = Wait()
    call = place(wait)
    assert await call.serve(lambda serving: serving.cancel(), wait)
    begun = place in (at_the_next_event, at_sending_the_head, at_sending_a_chunk)
    assert (call.row.status, call.row.client_status) == ("error", 200 if begun else 503)
    assert call.row.error_reason == "interrupted"
    assert call.upstream.body.closed == (place in ATTEMPTED and place is not at_the_head)
    assert not call.broken


class Mistake(Exception):
    pass


def mistaken(*_: object, **__: object) -> Any:
    raise Mistake("secret words")


@pytest.mark.parametrize("place", WAITS[1:])
async def test_a_mistake_of_ours_is_a_500_a_row_and_a_report(place: Callable[[Any], Call]) -> None:
    call = place(mistaken)
    assert not await call.serve()
    assert call.broken == [("Mistake", "ID", "/v1/chat/completions")]
    assert (call.row.status, call.row.error_reason) == ("error", "internal")
    assert (call.row.client_status, call.row.error_message) == (500, "Mistake")
    assert call.upstream.body.closed == (place in ATTEMPTED and place is not at_the_head)
    if place in (at_the_next_event, at_sending_a_chunk):
        assert call.client.status == 200  # and no end: the connection is cut
        assert not call.client.ended
    elif place is not at_sending_the_head:
        assert (call.client.status, call.client.ended) == (500, True)
        assert b"secret words" not in call.client.body


async def test_a_call_that_goes_well_is_one_row_and_gives_all_back() -> None:
    call = Call(Upstream(), "m")
    assert not await call.serve()
    assert (call.row.status, call.row.client_status, call.row.http_status) == ("success", 200, 200)
    assert (call.row.provider, call.row.model, call.row.requested_model) == ("lab", "m", "m")
    assert (call.row.client_id, call.row.agent_name) == ("master", "tester")
    assert (call.client.status, call.client.ended) == (200, True)
    assert call.upstream.body.closed == 1


class Whole(Upstream):
    """Answers with JSON."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.body = Body(b'{"choices": [{"message": {"content": "a"}}]}')
        return httpx.Response(200, headers=[JSON], stream=self.body)


@pytest.mark.parametrize(
    ("upstream", "last"),
    [
        (Whole(), b'{"choices"'),
        (Upstream(), b"[DONE]"),
        (Upstream(body=Body(event({"content": "a"}), DONE, 0.01, b": on\n\n")), b"[DONE]"),
        (Upstream(body=Body(event({"content": "a"}), event(finish="stop"))), None),
        (Upstream(body=Body(event({"content": "a"}))), b"stream_truncated"),
        (Upstream(400, Body(b'{"error": {"message": "no"}}')), b'"error"'),
    ],
)
async def test_the_row_is_there_before_the_last_of_the_answer_goes(
    upstream: Upstream, last: bytes | None
) -> None:
    """``last`` None: the end of the body itself."""
    call = Call(upstream)
    at_the_last: list[int] = []

    async def send(message: dict[str, Any]) -> None:
        await call.client.send(message)
        body = message.get("body", b"")
        if (last in body) if last else message.get("more_body") is False:
            at_the_last.append(len(call.records))
        elif body:
            assert call.records == []

    call.send = send
    await call.serve()
    assert at_the_last == [1]
    assert call.row.is_final


async def test_a_client_that_leaves_while_it_gets_the_last_has_had_its_answer() -> None:
    call, stuck = Call(Whole()), Wait()

    async def send(message: dict[str, Any]) -> None:
        if "body" in message:
            await stuck()

    call.send = send
    await call.serve(lambda _: call.left.set(), stuck)
    assert (call.row.status, call.row.client_status) == ("success", 200)


async def test_failed_attempts_are_rows_that_are_not_final() -> None:
    call = Call(Upstream(500, Body(b'{"error": {"message": "no"}}')), "two")
    await call.serve()
    assert [(row.attempt, row.is_final, row.model) for row in call.records] == [
        (1, False, "m"),
        (2, True, "other"),
    ]
    assert {row.error_reason for row in call.records} == {"server_error"}
    assert call.client.status == 502
    assert (b"x-tollkeeper-attempts", b"2") in call.client.headers


async def test_a_request_goes_up_with_our_key_and_no_more_of_the_client_than_is_listed() -> None:
    call = Call(Upstream())
    call.headers += [(b"authorization", b"Bearer client"), (b"cookie", b"a"), (b"accept", b"x/y")]
    await call.serve()
    (request,) = call.upstream.requests
    assert str(request.url) == "http://up/v1/chat/completions"
    assert dict(request.headers) == {
        "host": "up",
        "content-type": "application/json",
        "accept-encoding": "identity",
        "user-agent": "tollkeeper",
        "authorization": "Bearer sk-1",
        "accept": "x/y",
    }


async def test_nobody_overtakes_who_waits_already() -> None:
    call = Call(Upstream())
    free = False
    first = asyncio.ensure_future(
        call.line.wait("lab/m", lambda _: 0.0 if free else 60.0, monotonic() + 60)
    )
    serving = asyncio.ensure_future(call.serve())
    async with asyncio.timeout(20):
        while len(call.line) < 2:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.001)
    assert not call.upstream.requests
    free = True
    call.line.nudge()
    await serving
    assert first.done()
    assert call.row.status == "success"


@pytest.mark.parametrize(("host", "used"), [("127.0.0.1", 512.0), ("up", None)])
async def test_this_machines_gpus_are_told_of_calls_that_it_serves_itself(
    host: str, used: float | None
) -> None:
    call = Call(Upstream())
    call.provider = Provider.of("lab", OpenAI(), base_url=f"http://{host}/v1")
    await call.serve()
    assert (call.row.status, call.row.gpu_memory_used_mb) == ("success", used)


@pytest.mark.parametrize(("secret", "asked"), [(None, ["/api/ps"]), ("sk-1", [])])
async def test_an_ollama_is_asked_for_its_memory_unless_it_is_somebodys_account(
    secret: str | None, asked: list[str]
) -> None:
    call = Call(Upstream(head=lambda: asyncio.sleep(0.01)))
    call.provider = Provider.of("lab", Ollama(), base_url="http://127.0.0.1/v1")
    call.key = Key("k1", secret, "org")
    await call.serve()
    assert [each.url.path for each in call.upstream.requests if each.method == "GET"] == asked
    assert call.row.status == "success"
