"""The whole story of a call, top to bottom.

A request is read, planned, and tried: for each target of the plan a key is leased, the request is
sent, and the answer is held until it is known to be one. Then it goes to the client as it comes,
and the meter writes down what it took. Once a byte has gone to the client there is no other try.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any

import httpx
import msgspec

from proxy.clock import monotonic, now_ms
from proxy.errors import ErrorReason, GatewayError
from proxy.metering.meter import Attempt, Books, Meter
from proxy.providers.base import Provider
from proxy.relay.attribution import attribution
from proxy.relay.client import ClientWatch
from proxy.relay.inbound import ClientGone, Inbound, content_length, parse, read_body
from proxy.relay.outbound import STOPPED, Outbound, Send, fault_of, interrupt, send_error
from proxy.relay.verdict import client_answer, judge
from proxy.routing.keypool import KeyLease, KeyPool, Parked
from proxy.routing.planner import Planner
from proxy.types import (
    Action,
    Caller,
    Fault,
    Headers,
    Operation,
    Plan,
    Source,
    Target,
    Verdict,
)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

MAX_ERROR_BODY = 256 * 1024
ERROR_BODY_SECONDS = 5.0
_LEFT = "the client left"
_FORWARDED = frozenset((b"accept", b"traceparent", b"tracestate", b"idempotency-key"))
_COMMON: Headers = [
    (b"content-type", b"application/json"),
    (b"accept-encoding", b"identity"),
    (b"user-agent", b"tollkeeper"),
]


class Limits(msgspec.Struct, frozen=True):
    """How much a client may send and how long may be waited. Bytes and seconds."""

    max_body: int
    body_timeout: float
    peek: float


class Relay:
    """Serves calls. One instance for a process; ``in_flight`` counts the calls it is serving."""

    def __init__(
        self,
        *,
        planner: Planner,
        providers: dict[str, Provider],
        pools: dict[str, KeyPool],
        transport: httpx.AsyncBaseTransport,
        books: Books,
        limits: Limits,
        start: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        refresh_models: Callable[[], Awaitable[None]],
        parked: Callable[[str, Parked, Source], None],
        broken: Callable[[BaseException, str | None, str | None], None],
    ) -> None:
        self.in_flight = 0
        self._planner = planner
        self._providers = providers
        self._pools = pools
        self._transport = transport
        self._books = books
        self._limits = limits
        self._start = start
        self._refresh_models = refresh_models
        self._parked = parked
        self._broken = broken

    async def serve(self, operation: Operation, scope: Scope, receive: Receive, send: Send) -> None:
        """One call, from its first byte to its last row."""
        request_id: str = scope["request_id"]
        caller: Caller = scope["caller"]
        fields: Headers = scope["headers"]
        meter = Meter(
            self._books,
            request_id,
            scope["path"],
            caller.client_id,
            attribution(fields),
            scope["started"],
        )
        self.in_flight += 1
        watch = ClientWatch(receive)
        outbound: Outbound | None = None
        try:
            body = await read_body(
                receive, content_length(fields), self._limits.max_body, self._limits.body_timeout
            )
            meter.admitted = monotonic()
            inbound = parse(body, operation)
            meter.asked = inbound.asked
            watch.begin(self._start)
            plan = await self._plan(inbound.model)
            if len(plan.targets) == 1:
                meter.target = plan.targets[0]
            outbound = await self._try_all(plan, operation, inbound, fields, meter)
            del body, inbound  # a stream may last for minutes, and its prompt be long
            await self._deliver(outbound, meter, send)
        except GatewayError as error:
            meter.refuse(error)
            error.message = self._books.redact(error.message)  # it may quote the provider
            await send_error(send, error, _answer_headers(meter))
        except ClientGone:
            meter.close(None, 499, reason=ErrorReason.CLIENT_CLOSED, message=_LEFT)
        except asyncio.CancelledError:
            if outbound is not None and outbound.told_all:
                meter.close("success", outbound.status)
            if not watch.gone:
                status = outbound.status if outbound is not None else 503
                meter.close("error", status, reason=ErrorReason.INTERRUPTED, message=STOPPED)
                await interrupt(send, outbound, _answer_headers(meter))
                raise
            meter.close("cancelled", 499, reason=ErrorReason.CLIENT_CLOSED, message=_LEFT)
        except Exception as exc:
            self._broken(exc, request_id, scope["path"])
            meter.close("error", 500, reason=ErrorReason.INTERNAL, message=type(exc).__name__)
            if outbound is None or not outbound.started:
                mistake = GatewayError(500, "The gateway made a mistake.", ErrorReason.INTERNAL)
                await send_error(send, mistake, _answer_headers(meter))
        finally:
            watch.end()
            if outbound is not None:
                outbound.release()
            self.in_flight -= 1

    async def _plan(self, model: str) -> Plan:
        if not self._planner.known(model):
            await self._refresh_models()  # a bare name: only the providers' lists know it
        return self._planner.plan(model)

    async def _try_all(
        self,
        plan: Plan,
        operation: Operation,
        inbound: Inbound,
        fields: Headers,
        meter: Meter,
    ) -> Outbound:
        """The first answer that is one. GatewayError when nothing is left to try.

        What may have been executed (and billed) goes on at most once, and never to a sibling key.
        """
        deadline = monotonic() + max(self._providers[t.provider].first_byte for t in plan.targets)
        fault: Fault | None = None
        went_on = False
        for target in plan.targets:
            tried: set[str] = set()
            while (now := monotonic()) < deadline:
                lease = self._pools[target.provider].lease(target.model, tried, now)
                if lease is None:
                    break
                tried.add(lease.key.name)
                attempt = meter.attempt(target, now)
                found = await self._try_one(
                    plan, target, operation, inbound, fields, lease, attempt, deadline
                )
                if isinstance(found, Outbound):
                    return found
                fault = attempt.fault = found
                verdict = judge(fault)
                self._park(lease, verdict, fault)
                if verdict.action is Action.STOP:
                    raise client_answer(fault, target)
                if fault.executed:
                    if went_on:
                        raise client_answer(fault, target)
                    went_on = True
                    break
                if verdict.action is Action.NEXT_TARGET:
                    break
        raise self._nothing_left(plan, fault, meter.last.target if meter.last else target)

    async def _try_one(
        self,
        plan: Plan,
        target: Target,
        operation: Operation,
        inbound: Inbound,
        sent_by_client: Headers,
        lease: KeyLease,
        attempt: Attempt,
        deadline: float,
    ) -> Outbound | Fault:
        """Send the request once. What it holds is let go of here, or goes on with the Outbound."""
        provider = self._providers[target.provider]
        if lease.key.secret is not None:
            attempt.key_id, attempt.account = lease.key.name, lease.key.quota_group
        attempt.normalise = provider.dialect.usage
        request = self._request(
            provider, target, operation, inbound, sent_by_client, lease, deadline
        )
        response: httpx.Response | None = None
        outbound: Outbound | None = None
        kept = False
        attempt.sent = monotonic()
        try:
            response = await self._transport.handle_async_request(request)
            fields = response.headers.raw
            _note_head(attempt, response.status_code, fields)
            if not 200 <= response.status_code < 300:
                return await _refusal(provider, response)
            outbound = Outbound(
                response,
                fields,
                attempt,
                lease,
                hide_usage=provider.include_usage and inbound.lacks_usage,
                mend_tools=provider.dialect.mends_tool_indices,
                alias=plan.alias if plan.rewrite_model else None,
            )
            fault = await outbound.peek(self._limits.peek)
            if fault is None and outbound.tap.error is not None:
                fault = provider.dialect.classify_event(outbound.tap.error, now_ms() / 1000)
            kept = fault is None
            return fault if fault is not None else outbound
        except httpx.HTTPError as exc:
            return fault_of(exc)
        finally:
            if not kept:
                attempt.ended = monotonic()
                if outbound is not None:
                    outbound.release()
                elif response is not None:
                    await response.aclose()
                lease.release()

    async def _deliver(self, outbound: Outbound, meter: Meter, send: Send) -> None:
        attempt, lease = outbound.attempt, outbound.lease
        whole = await outbound.deliver(send, _answer_headers(meter))
        error = outbound.tap.error
        if error is not None:
            provider = self._providers[attempt.target.provider]
            fault = provider.dialect.classify_event(error, now_ms() / 1000)
            self._park(lease, judge(fault), fault)
            meter.close(
                "error", outbound.status, reason=ErrorReason.STREAM_ERROR, message=fault.message
            )
        elif not whole:
            meter.close(None, outbound.status)
        else:
            lease.succeeded(monotonic())
            meter.close("success", outbound.status)

    def _request(
        self,
        provider: Provider,
        target: Target,
        operation: Operation,
        inbound: Inbound,
        fields: Headers,
        lease: KeyLease,
        deadline: float,
    ) -> httpx.Request:
        dialect = provider.dialect
        url = provider.url(operation)
        passed = [f for f in fields if f[0] in _FORWARDED or f[0] in dialect.forwarded]
        headers = [
            (b"host", url.netloc),
            *_COMMON,
            *dialect.headers(lease.key.secret),
            *dialect.defaults({name for name, _ in passed}),
            *passed,
        ]
        left = max(deadline - monotonic(), 0.001)
        return httpx.Request(
            "POST",
            url,
            headers=headers,
            stream=httpx.ByteStream(inbound.edited(target.model, provider.include_usage)),
            extensions={
                "timeout": {
                    "connect": min(provider.connect, left),
                    "first_byte": min(provider.first_byte, left),
                    "read": provider.idle,
                }
            },
        )

    def _park(self, lease: KeyLease, verdict: Verdict, fault: Fault) -> None:
        parked = lease.park(verdict, fault.reason, monotonic())
        if parked is not None:
            self._parked(lease.provider, parked, fault.hint or "local")

    def _nothing_left(self, plan: Plan, fault: Fault | None, last: Target) -> GatewayError:
        """429 if every key rests and the first is back soon, else what went wrong last."""
        now = monotonic()
        rests = [self._pools[t.provider].outlook(t.model, now) for t in plan.targets]
        resting = [rest for rest in rests if rest is not None]
        waiting = [rest for rest in resting if rest.state != "disabled"]
        if len(resting) == len(rests) and waiting:
            seconds = max(1, math.ceil(min(rest.until for rest in waiting) - now))
            reason = fault.reason if fault is not None else waiting[0].reason
            cause = f"; the last cause: {fault.message}" if fault is not None else f" ({reason})"
            return GatewayError(
                429,
                f"Every key for '{plan.requested_model}' must wait, {seconds} s at least{cause}",
                ErrorReason.NO_KEYS,
                code="rate_limit_exceeded",
                retry_after=seconds,
            )
        if fault is not None:
            answer = client_answer(fault, last)
            if answer.status == 429:
                answer.status, answer.type = 503, "api_error"
            return answer
        if resting:
            return GatewayError(
                502,
                f"Every key for '{plan.requested_model}' is disabled ({resting[0].reason}).",
                ErrorReason.NO_KEYS,
                code="upstream_authentication",
                should_retry=False,
            )
        return GatewayError(504, "There was no time left to try.", ErrorReason.TIMEOUT)


async def _refusal(provider: Provider, response: httpx.Response) -> Fault:
    """What an answer that is no success means. Its body is read, within bounds."""
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(ERROR_BODY_SECONDS):
            async for chunk in response.stream:  # type: ignore[union-attr]
                parts.append(chunk)
                size += len(chunk)
                if size > MAX_ERROR_BODY:
                    break
    except (TimeoutError, httpx.HTTPError):
        pass  # the status says enough
    body = b"".join(parts)
    return provider.dialect.classify(
        response.status_code, response.headers.raw, body, now_ms() / 1000
    )


def _note_head(attempt: Attempt, status: int, fields: Headers) -> None:
    """Keep what the head of an answer tells about the call and the limits."""
    attempt.http_status = status
    limits = []
    for name, value in fields:
        if name.startswith(b"x-ratelimit-"):
            limits.append((name, value))
        elif name == b"x-request-id" or (name == b"cf-ray" and not attempt.upstream_request_id):
            attempt.upstream_request_id = value.decode("latin-1")[:128]
    attempt.rate_headers = tuple(limits)


def _answer_headers(meter: Meter) -> Headers:
    """What every answer tells: its id, and which attempt at which target it comes from, if any."""
    headers = [(b"x-request-id", meter.request_id.encode())]
    attempt = meter.last
    if attempt is None:
        return headers
    upstream = ((attempt.ended or monotonic()) - attempt.sent) * 1000
    gateway = (attempt.sent - meter.admitted) * 1000
    headers += [
        (b"x-tollkeeper-provider", attempt.target.provider.encode()),
        (b"x-tollkeeper-model", _ascii(attempt.target.model)),
        (b"x-tollkeeper-attempts", b"%d" % attempt.number),
        (b"server-timing", b"gateway;dur=%.2f, upstream;dur=%.2f" % (gateway, upstream)),
    ]
    if attempt.key_id:
        headers.append((b"x-tollkeeper-key", _ascii(attempt.key_id)))
    if attempt.upstream_request_id:
        headers.append((b"x-tollkeeper-upstream-request-id", _ascii(attempt.upstream_request_id)))
    return headers


def _ascii(text: str) -> bytes:
    """Text from a client or a configuration as a header value: one line, printable."""
    return text.encode("ascii", "backslashreplace").translate(None, _CONTROL)


_CONTROL = bytes((*range(32), 127))
