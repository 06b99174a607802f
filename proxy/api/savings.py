"""``GET /stats/savings``: what the calls of each alias would have cost at its other targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Response

from proxy.api.listing import Listing
from proxy.api.stats import Asked, reading, window
from proxy.metering.pricing import Prices
from proxy.metering.rates import Rates
from proxy.money import dollars
from proxy.savings import Alternative, Savings, by_alias, lengths, savings, total
from proxy.store.engine import Store
from proxy.store.savings import used
from proxy.types import Target

_BLANK = dict.fromkeys(
    (
        *("alias", "attempts", "input_tokens", "output_tokens", "cost_usd", "unpriced"),
        *("cheapest", "cheapest_usd", "dearest", "dearest_usd", "possible_usd", "saved_usd"),
    )
)


def savings_router(
    store: Store, aliases: Callable[[], Mapping[str, Sequence[Target]]], prices: Prices
) -> APIRouter:
    """``aliases`` are the targets of each as they are configured now."""
    router = APIRouter()

    def price(target: Target) -> Rates | None:
        return prices.rates(target.provider, target.model)

    @router.get("/stats/savings", response_model=None)
    async def endpoint(asked: Asked) -> Response:
        filters, configured = asked.filters(), aliases()
        targets = {target for each in configured.values() for target in each}
        await prices.resolve([(target.provider, target.model) for target in targets])
        steps = lengths(targets, price)
        async with reading(store) as connection:
            sums = by_alias(await used(connection, filters, configured, steps), configured)
        found = [
            savings(alias, list(dict.fromkeys(configured[alias])), each, price, steps)
            for alias, each in sums.items()
        ]
        found.sort(key=lambda each: (-(each.possible or 0), each.alias))
        return Listing(
            [_shown(each) for each in found],
            None,
            _BLANK,
            window=window(filters),
            totals=_totals(found),
        )

    return router


def _totals(found: Sequence[Savings]) -> dict[str, Any]:
    return {
        "attempts": sum(each.attempts for each in found),
        "input_tokens": sum(each.input_tokens for each in found),
        "output_tokens": sum(each.output_tokens for each in found),
        "cost_usd": dollars(total(each.actual for each in found)),
        "unpriced": sum(each.unpriced for each in found),
        "cheapest_usd": dollars(total(_nano(each.cheapest) for each in found)),
        "dearest_usd": dollars(total(_nano(each.dearest) for each in found)),
        "possible_usd": dollars(total(each.possible for each in found)),
        "saved_usd": dollars(total(each.saved for each in found)),
    }


def _shown(found: Savings) -> dict[str, Any]:
    return {
        "alias": found.alias,
        "attempts": found.attempts,
        "input_tokens": found.input_tokens,
        "output_tokens": found.output_tokens,
        "cost_usd": dollars(found.actual),
        "unpriced": found.unpriced,
        "cheapest": _name(found.cheapest),
        "cheapest_usd": dollars(_nano(found.cheapest)),
        "dearest": _name(found.dearest),
        "dearest_usd": dollars(_nano(found.dearest)),
        "possible_usd": dollars(found.possible),
        "saved_usd": dollars(found.saved),
        "targets": [_target(each) for each in found.alternatives],
    }


def _target(each: Alternative) -> dict[str, Any]:
    return {
        "provider": each.target.provider,
        "model": each.target.model,
        "served": each.served,
        "cost_usd": dollars(each.nano),
        "cost_source": "none" if each.rates is None else each.rates.source,
        "price_version": None if each.rates is None else each.rates.version,
    }


def _name(each: Alternative | None) -> str | None:
    return None if each is None else str(each.target)


def _nano(each: Alternative | None) -> int | None:
    return None if each is None else each.nano
