"""What a request would cost, before anything is sent. No provider is asked.

Only tokens of text are counted: pictures, sound and the descriptions of tools are not. What a
prompt's cache may save is not known before, and neither is what a provider charges beside tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from proxy.metering import tokenizer
from proxy.metering.pricing import Prices
from proxy.metering.rates import Rates, cost
from proxy.metering.spent import prompt_tokens
from proxy.relay.inbound import Inbound
from proxy.routing.alias import OUTPUT_TOKENS
from proxy.routing.keypool import KeyPool
from proxy.types import Target, Usage


class Volume(msgspec.Struct, frozen=True):
    """The tokens of a request. ``counted_by`` is the vocabulary by which those of its prompt were
    counted, "heuristic" where they were guessed by their length.

    ``most`` is how many it lets be made, in all its answers; None where it does not say. Then
    ``made`` is an assumption.
    """

    given: int
    counted_by: str
    most: int | None
    made: int


class Forecast(msgspec.Struct, frozen=True):
    """What a request would cost at a target with the dearest of its keys, in nano-dollars; None:
    not known. ``free_keys`` is with how many of them it costs nothing."""

    target: Target
    rates: Rates | None
    input_nano: int | None
    total_nano: int | None
    free_keys: int


def volume(inbound: Inbound) -> Volume:
    """The tokens of a request, as far as they can be told."""
    asked, sample = inbound.asked, inbound.prompt
    given = prompt_tokens(asked, sample)
    counted = given is not None and sample is not None
    if given is None:
        given = len(inbound.body) // 4
    made = (asked.max_tokens or OUTPUT_TOKENS) * inbound.answers
    most = None if asked.max_tokens is None or not inbound.answers else made
    return Volume(given, tokenizer.NAME if counted else "heuristic", most, made)


async def forecasts(
    prices: Prices, targets: Sequence[Target], of: Volume, pools: Mapping[str, KeyPool]
) -> dict[Target, Forecast]:
    """What each target would cost; the catalogue is asked if need be."""
    await prices.resolve([(target.provider, target.model) for target in targets])
    return {
        target: forecast(prices, target, _keys(pools[target.provider]), of) for target in targets
    }


def forecast(prices: Prices, target: Target, keys: Iterable[str | None], of: Volume) -> Forecast:
    """By what is known of prices now. ``keys`` are the names of those that may be used; None stands
    for a provider that needs none."""
    found = [_with_key(prices, target, key, of) for key in keys]
    dearest = max(found, key=lambda each: (each.total_nano is None, each.total_nano or 0))
    free = sum(each.free_keys for each in found)
    return msgspec.structs.replace(dearest, free_keys=free)


def _with_key(prices: Prices, target: Target, key: str | None, of: Volume) -> Forecast:
    rates = prices.rates(target.provider, target.model, key)
    if rates is None:
        return Forecast(target, None, None, None, 0)
    given = cost(Usage(input_tokens=of.given, output_tokens=0), rates)
    total = cost(Usage(input_tokens=of.given, output_tokens=of.made), rates)
    return Forecast(target, rates, given, total, int(total == 0))


def _keys(pool: KeyPool) -> list[str | None]:
    return [key.name if key.secret is not None else None for key in pool.keys]
