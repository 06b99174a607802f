"""What calls would have cost at other targets of their alias. Pure.

A cost is linear in tokens at one level of a price, so sums of tokens are enough, if those of
calls at different levels are kept apart. A price is today's, without free tiers of single keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from proxy.metering.rates import Rates, cost_at
from proxy.store.savings import Used
from proxy.types import Target

Price = Callable[[Target], Rates | None]


class Alternative(msgspec.Struct, frozen=True):
    """A target, how many of the attempts it served, and what all of them would have cost there, in
    nano-dollars; None: its price is not known."""

    target: Target
    rates: Rates | None
    served: int
    nano: int | None


class Savings(msgspec.Struct, frozen=True):
    """The attempts of one alias, in nano-dollars. ``actual`` is what is known of their cost, None
    if that is nothing; ``unpriced`` are those without one."""

    alias: str
    attempts: int
    input_tokens: int
    output_tokens: int
    actual: int | None
    unpriced: int
    alternatives: tuple[Alternative, ...]

    @property
    def cheapest(self) -> Alternative | None:
        """Of several the first; None where no price is known."""
        known = self._known()
        return min(known, key=lambda each: each.nano or 0) if known else None

    @property
    def dearest(self) -> Alternative | None:
        """As ``cheapest``."""
        known = self._known()
        return max(known, key=lambda each: each.nano or 0) if known else None

    @property
    def possible(self) -> int | None:
        """What the cheapest would have saved; less than 0 where they cost even less."""
        if self.unpriced or self.cheapest is None:
            return None
        return (self.actual or 0) - (self.cheapest.nano or 0)

    @property
    def saved(self) -> int | None:
        """What was saved against the dearest."""
        if self.unpriced or self.dearest is None:
            return None
        return (self.dearest.nano or 0) - (self.actual or 0)

    def _known(self) -> list[Alternative]:
        return [each for each in self.alternatives if each.nano is not None]


def lengths(targets: Iterable[Target], price: Price) -> list[int]:
    """The lengths of a prompt from which on the price of one of the targets is another."""
    found = (price(target) for target in targets)
    return sorted({tier.above for rates in found if rates is not None for tier in rates.tiers})


def savings(
    alias: str, targets: Sequence[Target], used: Sequence[Used], price: Price, steps: Sequence[int]
) -> Savings:
    """Of one alias; ``used`` are its sums, kept apart by these ``lengths``."""
    known = [each.nano_usd for each in used if each.nano_usd is not None]
    return Savings(
        alias,
        sum(each.attempts for each in used),
        sum(each.usage.input_tokens or 0 for each in used),
        sum(each.usage.output_tokens or 0 for each in used),
        sum(known) if known or not used else None,
        sum(each.unpriced for each in used),
        tuple(_alternative(target, used, price(target), steps) for target in targets),
    )


def total(parts: Iterable[int | None]) -> int | None:
    """A sum, None where a part of it is not known."""
    known = list(parts)
    return None if None in known else sum(each or 0 for each in known)


def _alternative(
    target: Target, used: Sequence[Used], rates: Rates | None, steps: Sequence[int]
) -> Alternative:
    served = sum(each.attempts for each in used if Target(each.provider, each.model) == target)
    if rates is None:
        return Alternative(target, None, served, None if used else 0)
    costs = (
        # One token more than the last length that they are beyond: they are all at this level.
        cost_at(each.usage, rates.level(steps[each.lengths - 1] + 1 if each.lengths else 0))
        for each in used
    )
    return Alternative(target, rates, served, total(costs))


def by_alias(used: Iterable[Used], names: Iterable[str]) -> Mapping[str, list[Used]]:
    """The sums of each name, which can be none."""
    found: dict[str, list[Used]] = {name: [] for name in names}
    for each in used:
        found[each.requested_model].append(each)
    return found
