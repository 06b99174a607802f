"""One try: the request as one provider wants it, sent with one key, and what came back."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import msgspec

from proxy.clock import monotonic, now_ms
from proxy.metering.attempt import Attempt
from proxy.metering.meter import Meter
from proxy.metering.names import identifier
from proxy.providers.base import Provider
from proxy.providers.translation import Translation, translated
from proxy.relay.inbound import Inbound
from proxy.relay.outbound import Outbound, fault_of
from proxy.routing.keypool import KeyLease, KeyPool
from proxy.types import Demand, Fault, Headers, Operation, Plan, Target

MAX_ERROR_BODY = 256 * 1024
ERROR_BODY_SECONDS = 5.0
_FORWARDED = frozenset((b"accept", b"traceparent", b"tracestate", b"idempotency-key"))
_COMMON: Headers = [
    (b"content-type", b"application/json"),
    (b"accept-encoding", b"identity"),
    (b"user-agent", b"tollkeeper"),
]


class Call(msgspec.Struct):
    """What all tries of one call share. ``deadline`` is for all of them together.

    ``asked`` is since when a key is wanted for the next try, ``fault`` how the last one failed.
    ``over``: no other try may be made. ``went_on``: it was after one that may have been executed;
    ``went_instead``: other targets took over.
    """

    operation: Operation
    inbound: Inbound
    fields: Headers
    demand: Demand
    plan: Plan
    meter: Meter
    began: float
    deadline: float
    asked: float
    fault: Fault | None = None
    over: bool = False
    went_on: bool = False
    went_instead: bool = False


async def exchange(
    call: Call,
    target: Target,
    provider: Provider,
    pool: KeyPool,
    lease: KeyLease,
    attempt: Attempt,
    transport: httpx.AsyncBaseTransport,
    peek: float,
) -> Outbound | Fault:
    """Send the request once. What it holds is let go of here, or goes on with the Outbound. Raises
    Untranslatable, before anything is sent."""
    if lease.key.secret is not None:
        attempt.key_id, attempt.account = lease.key.name, lease.key.quota_group
    attempt.normalise = provider.dialect.usage
    request, translation = _request(call, target, provider, lease, attempt)
    call.meter.admit(attempt)
    response: httpx.Response | None = None
    outbound: Outbound | None = None
    kept = False
    attempt.sent = monotonic()
    try:
        response = await transport.handle_async_request(request)
        fields = response.headers.raw
        attempt.first_byte = response.extensions.get("first_byte", monotonic())
        _note_head(attempt, response.status_code, fields)
        if attempt.rate_headers:
            group = lease.key.quota_group
            now = monotonic()
            pool.counters.hear(group, target.model, attempt.rate_headers, now, attempt.sent)
        if not 200 <= response.status_code < 300:
            return await _refusal(provider, response)
        if translation is not None:
            fields = translated(response, translation)
        plan = call.plan
        outbound = Outbound(
            response,
            fields,
            attempt,
            lease,
            hide_usage=call.inbound.lacks_usage
            and (provider.include_usage or translation is not None),
            alias=plan.alias if plan.rewrite_model else None,
            mend_tools=provider.dialect.mends_tool_indices,
        )
        fault = await outbound.peek(peek)
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
                outbound.close()
            elif response is not None:
                await response.aclose()


def _request(
    call: Call, target: Target, provider: Provider, lease: KeyLease, attempt: Attempt
) -> tuple[httpx.Request, Translation | None]:
    """The request for a provider. Raises Untranslatable."""
    dialect = provider.dialect
    url = provider.url(call.operation)
    passed = [
        (name, value)
        for name, value in call.fields
        if name in _FORWARDED or name in dialect.forwarded
    ]
    headers = [
        (b"host", url.netloc),
        *_COMMON,
        *dialect.headers(lease.key.secret),
        *dialect.defaults({name for name, _ in passed}),
        *passed,
    ]
    left = max(call.deadline - monotonic(), 0.001)
    waits: dict[str, Any] = {
        "connect": min(provider.connect, left),
        "first_byte": min(provider.first_byte, left),
        "read": provider.idle,
    }
    body, translation = dialect.translate(
        call.operation,
        call.inbound.edited(target.model, provider.include_usage),
        call.inbound.asked.stream,
    )
    request = httpx.Request(
        "POST",
        url,
        headers=headers,
        stream=httpx.ByteStream(body),
        extensions={"timeout": waits, "sent": attempt.went_out},
    )
    return request, translation


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
            attempt.upstream_request_id = identifier(value.decode("latin-1"))
    attempt.rate_headers = tuple(limits)
