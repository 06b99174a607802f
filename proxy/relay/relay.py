"""The whole story of a call, top to bottom.

A request is read, planned, and tried: for each target of the plan a key is leased, the request is
sent, and the answer is held until it is known to be one. Then it goes to the client as it comes,
and the meter writes down what it took. Once a byte has gone to the client there is no other try.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from functools import partial
from typing import Any

import httpx
import msgspec

from proxy.clock import monotonic, now_ms
from proxy.errors import ErrorReason, GatewayError
from proxy.metering import estimate
from proxy.metering.attempt import Attribution
from proxy.metering.meter import LEFT, Books, Meter
from proxy.metering.pricing import Prices
from proxy.providers.base import Provider
from proxy.providers.residency import Residency
from proxy.providers.translation import Untranslatable
from proxy.relay.allowed import Admit, allowed
from proxy.relay.attribution import attribution, completed
from proxy.relay.ceiling import affordable
from proxy.relay.claims import Claims
from proxy.relay.client import ClientWatch
from proxy.relay.drains import Drains
from proxy.relay.exchange import Call, exchange
from proxy.relay.exhausted import exhausted
from proxy.relay.forecast import volume
from proxy.relay.gate import Entry, Gate
from proxy.relay.headers import answer_headers
from proxy.relay.inbound import ClientGone, Inbound, content_length, parse, read_body
from proxy.relay.line import Line
from proxy.relay.outbound import STOPPED, Outbound, Send, interrupt, send_error
from proxy.relay.verdict import client_answer, judge
from proxy.routing.keypool import KeyLease, KeyPool
from proxy.routing.obstacles import Obstacle, obstacle
from proxy.routing.planner import Planner
from proxy.routing.retries import RetryBudget
from proxy.types import Action, Caller, Demand, Fault, Headers, Operation, Target

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class Limits(msgspec.Struct, frozen=True):
    """How much a client may send and how long may be waited. Bytes and seconds.

    ``drain`` is how long an answer is read on after its client has left.
    """

    max_body: int
    body_timeout: float
    peek: float
    drain: float = 0.0


class Routes(msgspec.Struct, frozen=True):
    """Who may serve, and how often it may be tried: what a reload swaps, whole.

    ``max_wait`` is the seconds that a request may wait for a key.
    """

    planner: Planner
    providers: dict[str, Provider]
    pools: dict[str, KeyPool]
    retries: RetryBudget
    max_wait: float


class Relay:
    """Serves calls. One instance for a process; ``in_flight`` counts the calls it is serving.

    A call goes by the ``routes`` that there are when it begins. With ``claims``, a key is claimed
    from all gateways that share their state; ``admit`` asks the budgets.
    """

    def __init__(
        self,
        *,
        routes: Routes,
        line: Line,
        gate: Gate,
        transport: httpx.AsyncBaseTransport,
        books: Books,
        prices: Prices,
        limits: Limits,
        start: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        refresh_models: Callable[[], Awaitable[None]],
        broken: Callable[[BaseException, str, str, Callable[[str], str]], None],
        admit: Admit | None = None,
    ) -> None:
        self.in_flight = 0
        self.routes = routes
        self._line = line
        self._gate = gate
        self.claims: Claims | None = None
        self._transport = transport
        self._books = books
        self._prices = prices
        self._limits = limits
        self._drains = Drains(limits.drain)
        self._start = start
        self._residency = Residency(transport, start)
        self._refresh_models = refresh_models
        self._broken = broken
        self._admit = admit

    async def serve(self, operation: Operation, scope: Scope, receive: Receive, send: Send) -> None:
        """One call, from its first byte to its last row."""
        request_id: str = scope["request_id"]
        caller: Caller = scope["caller"]
        fields: Headers = scope["headers"]
        who = attribution(fields, caller.client, self._books.redact)
        meter = Meter(
            self._books, request_id, scope["path"], caller.client_id, who, scope["started"]
        )
        self.in_flight += 1
        watch = ClientWatch(receive, partial(self._drains.linger, meter))
        outbound: Outbound | None = None
        entry = self._gate.entry(caller.client)
        if entry is not None:
            meter.over, send = entry.end, entry.telling(send)
        try:
            inbound = await self._read(operation, receive, fields, meter, entry)
            meter.who = who = completed(who, inbound, self._books.redact)
            watch.begin(self._start)
            routes = self.routes
            call = await self._call(routes, operation, inbound, fields, meter, caller, who, entry)
            outbound = await self._serve_or_wait(routes, call)
            plan, demand = call.plan, call.demand
            del inbound, call  # a stream may last for minutes, and its prompt be long
            meter.forget()
            if await self._deliver(routes, outbound, meter, send):
                routes.planner.served(plan, outbound.attempt.target, demand, monotonic())
        except GatewayError as error:
            meter.refuse(error)
            error.message = self._books.redact(error.message)  # it may quote the provider
            await send_error(send, error, answer_headers(meter))
        except ClientGone:
            meter.close(None, 499, reason=ErrorReason.CLIENT_CLOSED, message=LEFT)
        except asyncio.CancelledError:
            if not watch.gone:
                status = outbound.status if outbound is not None else 503
                meter.close("error", status, reason=ErrorReason.INTERRUPTED, message=STOPPED)
                await interrupt(send, outbound, answer_headers(meter))
                raise
            if outbound is not None and outbound.tap.error is not None:  # it had been told of that
                _close(routes, outbound, meter, whole=False)
            meter.close("cancelled", 499, reason=ErrorReason.CLIENT_CLOSED, message=LEFT)
        except Exception as exc:
            self._broken(exc, request_id, scope["path"], meter.hide)
            meter.close("error", 500, reason=ErrorReason.INTERNAL, message=type(exc).__name__)
            if outbound is None or not outbound.started:
                mistake = GatewayError(500, "The gateway made a mistake.", ErrorReason.INTERNAL)
                await send_error(send, mistake, answer_headers(meter))
        finally:
            watch.end()
            if outbound is not None:
                outbound.lease.used = outbound.attempt.total_tokens
                outbound.release()
            self.in_flight -= 1

    async def _read(
        self,
        operation: Operation,
        receive: Receive,
        fields: Headers,
        meter: Meter,
        entry: Entry | None,
    ) -> Inbound:
        if self._books.journal is not None:
            self._books.journal.check()
        most, seconds = self._limits.max_body, self._limits.body_timeout
        if entry is not None:
            most = entry.body(most)
        body = await read_body(receive, content_length(fields), most, seconds)
        meter.admitted, meter.request = monotonic(), body
        inbound = parse(body, operation)
        meter.asked, meter.prompt = inbound.asked, inbound.prompt
        return inbound

    async def _call(
        self,
        routes: Routes,
        operation: Operation,
        inbound: Inbound,
        fields: Headers,
        meter: Meter,
        caller: Caller,
        who: Attribution,
        entry: Entry | None,
    ) -> Call:
        """The plan for a request, and until when it may be tried."""
        planner, asked = routes.planner, inbound.asked
        if not planner.known(inbound.model):
            await self._refresh_models()  # a bare name: only the providers' lists know it
        tokens = estimate.prompt_tokens(asked.prompt_length, asked.message_count)
        demand = Demand(
            tokens if tokens is not None else len(inbound.body) // 4,
            asked.max_tokens,
            asked.stream,
            who.session_id or inbound.session,
        )
        now = monotonic()
        plan = planner.plan(inbound.model, demand, now)
        if len(plan.targets) == 1:
            meter.target = plan.targets[0]
        if caller.client is not None:
            plan = allowed(plan, caller.client)
        if who.max_cost is not None:
            of = volume(inbound)
            plan = await affordable(plan, who.max_cost, of, self._prices, routes.pools)
            now = monotonic()  # the catalogue may have been asked
        made = inbound.answers
        if entry is not None:
            await entry.admit(who, made, demand.tokens, asked)
        if self._admit is not None:
            plan, meter.told = await self._admit(meter.request_id, caller, who, plan, demand, made)
        longest = max(routes.providers[target.provider].first_byte for target in plan.targets)
        routes.retries.request(now)
        return Call(operation, inbound, fields, demand, plan, meter, now, now + longest, now)

    async def _serve_or_wait(self, routes: Routes, call: Call) -> Outbound:
        """The first answer that is one; waits for a key once, if one will be free soon.

        GatewayError when nothing is left to try.
        """
        model, give_up = call.plan.requested_model, call.began + routes.max_wait

        def obstacles() -> list[Obstacle | None]:
            now, tokens = monotonic(), call.demand.tokens
            return [
                obstacle(routes.pools[target.provider], target.model, now, tokens)
                for target in call.plan.targets
            ]

        def ready(now: float) -> float:
            return min(0.0 if each is None else each.wait for each in obstacles())

        waits = self._line.busy(model)  # who came before goes first
        while True:
            if waits and not await self._line.wait(model, ready, give_up):
                break
            outbound = await self._try_each(routes, call)
            if outbound is not None:
                return outbound
            now = monotonic()
            if call.over or not 0 < ready(now) <= give_up - now:
                break
            waits = True
        last = call.meter.last.target if call.meter.last else call.plan.targets[-1]
        raise exhausted(model, obstacles(), call.fault, last)

    async def _try_each(self, routes: Routes, call: Call) -> Outbound | None:
        """Try the targets of the plan in turn; None if none could serve.

        What may have been executed (and billed) goes on at most once, and never to a sibling key.
        """
        targets = list(call.plan.targets)
        while targets and not call.over:
            target = targets.pop(0)
            tried: set[str] = set()
            while (lease := await self._lease(routes, call, target, tried)) is not None:
                tried.add(lease.key.name)
                try:
                    found = await self._try(routes, call, target, lease)
                except Untranslatable as error:  # another target may take it
                    refused = Fault(ErrorReason.INVALID_REQUEST, str(error))
                    call.fault = call.fault or refused
                    break
                if isinstance(found, Outbound):
                    return found
                fault = call.fault = found
                verdict = judge(fault)
                if verdict.action is Action.STOP:
                    targets = list(call.plan.instead.get(fault.reason, ()))
                    if not targets or call.went_instead:
                        raise client_answer(fault, target)
                    call.went_instead = True
                    break
                if fault.executed:
                    if call.went_on:
                        raise client_answer(fault, target)
                    call.went_on = True
                    break
                if verdict.action is Action.NEXT_TARGET:
                    break
        return None

    async def _lease(
        self, routes: Routes, call: Call, target: Target, tried: set[str]
    ) -> KeyLease | None:
        """A key for one try, unless there is none, no time, or no retry left."""
        pool, demand = routes.pools[target.provider], call.demand
        denied: set[str] = set()  # each key is claimed once
        while (now := monotonic()) < call.deadline:
            lease = pool.lease(
                target.model,
                now,
                tried=tried | denied,
                tokens=demand.tokens,
                session=demand.session,
                stream=demand.stream,
            )
            if lease is None:
                return None
            if call.meter.attempts and not routes.retries.spend(now):
                lease.release(sent=False)
                break
            if self.claims is None or await self.claims.granted(pool, lease):
                return lease
            denied.add(lease.key.name)
        call.over = True
        return None

    async def _try(
        self, routes: Routes, call: Call, target: Target, lease: KeyLease
    ) -> Outbound | Fault:
        attempt = call.meter.attempt(target, call.asked)
        provider = routes.providers[target.provider]
        if provider.is_local:
            attempt.gpu_memory_mb = self._books.gpu_memory_mb()
        if lease.key.secret is None:
            self._residency.ask(provider, target.model, attempt.holds)
        found: Outbound | Fault | None = None
        try:
            found = await exchange(
                call,
                target,
                provider,
                routes.pools[target.provider],
                lease,
                attempt,
                self._transport,
                self._limits.peek,
            )
            if isinstance(found, Fault):
                attempt.fault = found
                lease.used = None if found.executed else 0
                _learn(lease, found)
                if attempt.left is not None:
                    raise ClientGone  # for whom there is no other try
            return found
        finally:
            if not isinstance(found, Outbound):
                lease.release(sent=attempt.admitted)
            call.asked = monotonic()

    async def _deliver(self, routes: Routes, outbound: Outbound, meter: Meter, send: Send) -> bool:
        """Send the answer on, and write its row before the last of it goes; whether it came
        whole."""
        went_well = False

        def known(whole: bool) -> None:
            nonlocal went_well
            went_well = _close(routes, outbound, meter, whole)

        await outbound.deliver(send, answer_headers(meter), known)
        return went_well


def _close(routes: Routes, outbound: Outbound, meter: Meter, whole: bool) -> bool:
    """Learn from an answer, and write its row; whether it went well."""
    attempt, lease, tap = outbound.attempt, outbound.lease, outbound.tap
    if tap.error is not None:
        dialect = routes.providers[attempt.target.provider].dialect
        fault = dialect.classify_event(tap.error, now_ms() / 1000)
        _learn(lease, fault)
        attempt.fault = msgspec.structs.replace(fault, reason=ErrorReason.STREAM_ERROR)
        meter.close("error", outbound.status)
        return False
    if not whole:
        if attempt.fault is not None:
            _learn(lease, attempt.fault)
        meter.close(None, outbound.status)
        return False
    now = monotonic()
    first = tap.first_token if tap.first_token is not None else attempt.ended
    lease.succeeded(now, (first if first is not None else now) - attempt.sent)
    meter.close("success", outbound.status)
    return True


def _learn(lease: KeyLease, fault: Fault) -> None:
    lease.failed(judge(fault), fault.reason, monotonic(), fault.hint or "local")
