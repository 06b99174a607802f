"""Rates of tokens, and what so many tokens cost at them: integers from end to end.

Only tokens are priced. What a provider charges for searches or a service tier is only in the cost
that it reports itself.
"""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from typing import Literal

import msgspec

from proxy.bounds import MOST_NANO_USD
from proxy.types import Usage

_PER_MILLION = 1_000_000


class Level(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Rates in integer nano-dollars per million tokens: 0.59 USD a million is 590,000,000.

    Nine decimals of a dollar a million: prices as they are published are exact. None is not
    known; where the rate of a share is None, its tokens cost what the others of its side cost.
    """

    input: int | None = None
    output: int | None = None
    cache_read: int | None = None
    cache_write: int | None = None
    input_audio: int | None = None
    input_image: int | None = None
    output_audio: int | None = None
    output_image: int | None = None
    reasoning: int | None = None


class Tier(Level, frozen=True, kw_only=True):
    """The rates of a whole call whose input is longer than ``above`` tokens."""

    above: int


class Rates(Level, frozen=True, kw_only=True):
    """The rates of one model. ``tiers`` rise by ``above``; ``version`` says which price this is:
    the catalogue's release and date, or a digest of what was configured."""

    tiers: tuple[Tier, ...] = ()
    source: Literal["config", "catalog"] = "catalog"
    version: str | None = None

    def level(self, input_tokens: int) -> Level:
        """The rates of a call with so many input tokens."""
        level: Level = self
        for tier in self.tiers:
            if input_tokens > tier.above:
                level = tier
        return level


def nano_dollars(usd: Decimal | float | None) -> int | None:
    """Dollars as nano-dollars, half up. A float counts as the decimal that it prints as."""
    if usd is None:
        return None
    exact = usd if isinstance(usd, Decimal) else Decimal(str(usd))
    return int(exact.scaleb(9).to_integral_value(ROUND_HALF_UP))


def cost(usage: Usage, rates: Rates) -> int | None:
    """The cost in nano-dollars: exact sums, rounded once at the end, half up; never negative.

    Counts are inclusive: cached tokens are inside the input, reasoning inside the output. None
    if a count or a rate that matters is not known (a count matters only where it costs something),
    or if it is more than a call can cost.
    """
    if rates.tiers and usage.input_tokens is None:
        return None
    return cost_at(usage, rates.level(usage.input_tokens or 0))


def cost_at(usage: Usage, level: Level) -> int | None:
    """The cost at rates that are settled: also of the sums of many calls, all at this level."""
    paid_in = _side(
        usage.input_tokens,
        level.input,
        (usage.cached_tokens, level.cache_read),
        (usage.cache_write_tokens, level.cache_write),
        (usage.input_audio_tokens, level.input_audio),
        (usage.input_image_tokens, level.input_image),
    )
    paid_out = _side(
        usage.output_tokens,
        level.output,
        (usage.output_audio_tokens, level.output_audio),
        (usage.output_image_tokens, level.output_image),
        (usage.reasoning_tokens, level.reasoning),
    )
    nano = _rounded(paid_in, paid_out)
    return None if nano is None or nano > MOST_NANO_USD else nano


def at_most(given: int, made: int, rates: Rates) -> int | None:
    """What so many tokens in and out cost, before a call; None where nobody knows. What is beyond
    all that a call can cost counts as that."""
    level = rates.level(given)
    nano = _rounded(_product(given, level.input), _product(made, level.output))
    return None if nano is None else min(nano, MOST_NANO_USD)


def _rounded(paid_in: int | None, paid_out: int | None) -> int | None:
    """The sum of both sides, each a million times what it costs."""
    if paid_in is None or paid_out is None:
        return None
    return (paid_in + paid_out + _PER_MILLION // 2) // _PER_MILLION


def _side(
    total: int | None, rate: int | None, *shares: tuple[int | None, int | None]
) -> int | None:
    """One side of a call with its shares, each a count and its rate, times a million.

    Shares that overlap, or that are more than the whole, are held to it: the first come first.
    """
    if total is None and any(share_rate for _, share_rate in shares):
        return None
    if not total or total < 0 or rate is None:
        return _product(total, rate)
    left, paid = total, 0
    for count, share_rate in shares:
        if count and count > 0:
            taken = min(count, left)
            left -= taken
            paid += taken * (rate if share_rate is None else share_rate)
    return paid + left * rate


def _product(count: int | None, rate: int | None) -> int | None:
    if rate is None:
        return None if count else 0
    if count is None or count < 0:
        return None if rate else 0
    return count * rate
