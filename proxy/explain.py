"""``tollkeeper explain MODEL``: who would serve a request, in what order, and who would not.

Nothing is sent to any provider. What the gateways have learnt comes from their database, and from
the shared state where one is configured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from proxy import tariffs
from proxy.clock import monotonic, now_ms, rfc3339
from proxy.learnt import restore
from proxy.metering.pricing import Prices
from proxy.relay.claims import Claims
from proxy.relay.relay import Routes
from proxy.routes import Builder
from proxy.routing.keypool import KeyPool
from proxy.routing.obstacles import Obstacle, key_obstacle, target_obstacle
from proxy.schema import ProviderSettings, Settings
from proxy.sharing.shared import Shared
from proxy.store.address import StoreError
from proxy.store.listed import listed
from proxy.store.look import look
from proxy.types import Demand, Plan, Target, Usage

_NOWHERE = "http://127.0.0.1:1/v1"  # the demo's address, which nobody asks


async def explain(settings: Settings, model: str) -> str:
    """The plan for a model, as text for a person; GatewayError if nothing answers to the name."""
    prices = Prices({}, {})
    models: list[tuple[str, str]] = []
    routes = _routes(settings, models, prices)
    note = await _learn(settings, routes, models)
    plan = routes.planner.plan(model, Demand(), monotonic())
    await prices.resolve([(target.provider, target.model) for target in plan.targets])
    plan = routes.planner.plan(model, Demand(), monotonic())  # now with what they cost
    return "\n".join(_lines(settings, routes, plan, note))


def _routes(settings: Settings, models: Sequence[tuple[str, str]], prices: Prices) -> Routes:
    def cost(target: Target, given: int, made: int) -> int | None:
        quote = prices.quote(target.provider, target.model, Usage(given, made, given + made))
        return None if quote is None else quote.cost_nano_usd

    def find(name: str) -> str | None:
        names = (name, f"{name}:latest")
        return next((provider for provider, listed in models if listed in names), None)

    builder = Builder(
        listed=find,
        names=lambda: [name for _, name in models],
        cost=cost,
        changed=lambda _: None,
        released=lambda: None,
    )
    configured = settings.providers or {"demo": ProviderSettings(type="demo")}
    demo = ProviderSettings(type="demo", base_url=_NOWHERE)
    routes = builder.routes(
        settings, {name: demo if p.type == "demo" else p for name, p in configured.items()}
    )
    tariffs.configure(prices, settings, routes.providers)
    return routes


async def _learn(settings: Settings, routes: Routes, models: list[tuple[str, str]]) -> str:
    """Let the pools know what the gateways do; says where that comes from."""
    note = "nothing is kept: what was learnt is not known"
    if settings.telemetry.keeps:
        try:
            async with look(settings.telemetry.database_url) as connection:
                models += await listed(connection)
                await restore(connection, routes.pools)
            note = f"as of {rfc3339(now_ms())}"
        except StoreError as error:
            note = f"{error}: what was learnt is not known"
    if settings.state.url is not None:
        shared = Shared(
            settings.state.url,
            prefix=settings.state.prefix,
            changed=lambda _: None,
            away=lambda _: None,
            back=lambda: None,
        )
        await shared.open()
        rests, _ = await shared.snapshot()
        Claims(shared, lambda: routes.pools).heard(rests)
        note += "" if shared.available else "; the shared state cannot be reached"
        await shared.close()
    return note


def _lines(settings: Settings, routes: Routes, plan: Plan, note: str) -> Iterator[str]:
    how = "a model of its provider"
    if plan.alias is not None:
        how = f"an alias, {settings.models[plan.alias].strategy}"
    yield f"{plan.requested_model}: {how} ({note})"
    for place, target in enumerate(plan.targets, 1):
        yield from _target_lines(f"{place}.", target, routes.pools[target.provider])
    for reason, targets in plan.instead.items():
        for target in targets:
            yield from _target_lines(f"{reason}:", target, routes.pools[target.provider])


def _target_lines(place: str, target: Target, pool: KeyPool) -> Iterator[str]:
    now = monotonic()
    shut = target_obstacle(pool, target.model, now)
    yield f"{place} {target}{_skipped(shut)}"
    tried: list[str] = []
    while shut is None and (lease := pool.lease(target.model, now, tried=tried)) is not None:
        lease.release(sent=False)
        tried.append(lease.key.name)
        yield f"   {lease.key.name if lease.key.secret is not None else 'no key needed'}"
    for key in pool.keys:
        if key.name not in tried:
            found = key_obstacle(pool, key, target.model, now)
            name = key.name if key.secret is not None else "no key needed"
            yield f"   {name}{_skipped(found)}"


def _skipped(obstacle: Obstacle | None) -> str:
    if obstacle is None:
        return ""
    if math.isinf(obstacle.wait):
        return f"  skipped: {obstacle.why}"
    until = rfc3339(now_ms() + round(obstacle.wait * 1000))
    return f"  skipped: {obstacle.why}, {obstacle.state} until {until}"
