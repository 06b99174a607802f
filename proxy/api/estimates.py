"""``POST /v1/cost-estimate``: what a request would cost, target by target, before it is made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from fastapi import APIRouter, Request

from proxy.clock import monotonic
from proxy.errors import ErrorReason, GatewayError
from proxy.metering.pricing import Prices
from proxy.money import dollars
from proxy.relay.allowed import allowed
from proxy.relay.forecast import Forecast, Volume, forecasts, volume
from proxy.relay.inbound import ClientGone, Inbound, content_length, parse, read_body
from proxy.relay.relay import Routes
from proxy.routing.obstacles import obstacle
from proxy.schema import ServerSettings
from proxy.types import Caller, Demand, Operation, Plan


def estimates_router(
    routes: Callable[[], Routes],
    refresh_models: Callable[[], Awaitable[None]],
    prices: Prices,
    server: ServerSettings,
) -> APIRouter:
    """``routes`` are those of now; ``refresh_models`` asks for the providers' lists, which alone
    know a bare name; ``server`` says how large a body may be and how long it may take."""
    router = APIRouter()

    @router.post("/v1/cost-estimate")
    async def estimate(request: Request) -> dict[str, Any]:
        inbound = await _read(request, server)
        current = routes()
        if not current.planner.known(inbound.model):
            await refresh_models()
        of, caller = volume(inbound), request.scope["caller"]
        plan = _plan(current, inbound, of, caller)
        found = await forecasts(prices, plan.targets, of, current.pools)
        plan = _plan(current, inbound, of, caller)  # a strategy may go by costs: now it knows them
        return {
            "model": inbound.model,
            "input_tokens": of.given,
            "counted_by": of.counted_by,
            "max_output_tokens": of.most,
            "assumed_output_tokens": of.made if of.most is None else None,
            "targets": [_shown(found[target], of, current) for target in plan.targets],
        }

    return router


async def _read(request: Request, server: ServerSettings) -> Inbound:
    length = content_length(request.scope["headers"])
    try:
        body = await read_body(request.receive, length, server.max_body, server.body_timeout)
    except ClientGone:
        raise GatewayError(499, "The client left.", ErrorReason.CLIENT_CLOSED) from None
    return parse(body, _operation(body))


class _Members(msgspec.Struct):
    messages: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    prompt: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    input: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_members = msgspec.json.Decoder(_Members).decode


def _operation(body: bytes) -> Operation:
    """What a body asks for, which its path would say otherwise."""
    try:
        found = _members(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Operation.CHAT  # whoever reads it says what is wrong
    if found.messages is msgspec.UNSET:
        if found.prompt is not msgspec.UNSET:
            return Operation.COMPLETION
        if found.input is not msgspec.UNSET:
            return Operation.EMBEDDINGS
    return Operation.CHAT


def _plan(routes: Routes, inbound: Inbound, of: Volume, caller: Caller) -> Plan:
    demand = Demand(of.given, inbound.asked.max_tokens, inbound.asked.stream, inbound.session)
    plan = routes.planner.plan(inbound.model, demand, monotonic(), take=False)
    return plan if caller.client is None else allowed(plan, caller.client)


def _shown(found: Forecast, of: Volume, routes: Routes) -> dict[str, Any]:
    target, rates = found.target, found.rates
    level = None if rates is None else rates.level(of.given)
    told = of.most is not None or of.made == 0
    made = None
    if told and found.total_nano is not None and found.input_nano is not None:
        made = found.total_nano - found.input_nano
    pool = routes.pools[target.provider]
    return {
        "provider": target.provider,
        "model": target.model,
        "input_price_per_mtok": dollars(None if level is None else level.input),
        "output_price_per_mtok": dollars(None if level is None else level.output),
        "input_cost_usd": dollars(found.input_nano),
        "output_cost_usd": dollars(made),
        "total_usd": dollars(found.total_nano),
        "cost_source": "none" if rates is None else rates.source,
        "price_version": None if rates is None else rates.version,
        "free_keys": found.free_keys,
        "available": obstacle(pool, target.model, monotonic(), of.given) is None,
    }
