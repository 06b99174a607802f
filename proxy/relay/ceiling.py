"""``X-Max-Cost-Usd``: what a client is willing to pay for a call. Who is dearer is not asked."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal

from proxy.errors import ErrorReason, GatewayError
from proxy.metering.pricing import Prices
from proxy.money import dollars
from proxy.relay.attribution import MAX_COST
from proxy.relay.forecast import Volume, forecasts
from proxy.routing.keypool import KeyPool
from proxy.types import Plan, Target

HEADER = MAX_COST.decode()

_DOLLARS = re.compile(rb"(?:\d{1,9}(?:\.\d{0,18})?|\.\d{1,18})")


async def affordable(
    plan: Plan, header: bytes, of: Volume, prices: Prices, pools: Mapping[str, KeyPool]
) -> Plan:
    """What of a plan the header lets through. GatewayError 400 or 402."""
    most = ceiling(header)
    found = await forecasts(prices, plan.everyone, of, pools)
    return below(plan, most, lambda target: found[target].total_nano)


def ceiling(value: bytes) -> int:
    """The header's nano-dollars; what is less than one counts as none. GatewayError 400 for what
    is no amount."""
    found = _DOLLARS.fullmatch(value.strip())
    if found is None:
        raise GatewayError(
            400,
            f"{HEADER} must be an amount of US dollars, such as 0.01.",
            ErrorReason.INVALID_REQUEST,
            code="invalid_max_cost",
            param=HEADER,
        )
    return int(Decimal(found[0].decode()).scaleb(9))


def below(plan: Plan, most: int, cost: Callable[[Target], int | None]) -> Plan:
    """The plan with the targets that cost at most so many nano-dollars; an unknown cost is more
    than any. GatewayError 402 where that is none: clients do not send it again by themselves, as
    they would a 429, and it says that money is the matter."""
    costs = {target: cost(target) for target in plan.everyone}

    def may(target: Target) -> bool:
        nano = costs[target]
        return nano is not None and nano <= most

    found = plan.only(may)
    if not found.targets:
        known = [nano for target in plan.targets if (nano := costs[target]) is not None]
        least = f"is estimated at {dollars(min(known)):.9f}" if known else "has no known price"
        raise GatewayError(
            402,
            f"The cheapest target of '{plan.requested_model[:100]}' {least}"
            f"{' US dollars' if known else ''}, and {HEADER} is {dollars(most):.9f}.",
            ErrorReason.FORBIDDEN,
            code="max_cost_exceeded",
            param=HEADER,
            should_retry=False,
        )
    return found
