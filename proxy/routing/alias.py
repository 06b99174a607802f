"""An alias: a name for several targets, in tiers, and the strategy that puts each tier in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Literal

import msgspec

from proxy.routing.affinity import Affinity, rendezvous
from proxy.routing.keypool import KeyPool
from proxy.routing.latency import pick
from proxy.types import Demand, Target

Strategy = Literal[
    "fallback", "weighted", "round_robin", "least_busy", "lowest_latency", "lowest_cost", "sticky"
]

Cost = Callable[[Target, int, int], int | None]
"""Nano-dollars of so many input and output tokens at a target; None: not known."""

OUTPUT_TOKENS = 500
"""What an answer is taken to be long where the request does not bound it more tightly."""


class Candidate(msgspec.Struct):
    """A target of an alias. The lowest ``tier`` that can serve does; ``turn`` is its place in the
    round within that."""

    target: Target
    tier: int = 1
    weight: float = 1.0
    turn: float = 0.0


class Alias:
    """Orders the targets for each request; those that cannot serve now come last in their tier."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        strategy: Strategy = "fallback",
        *,
        rewrite_model: bool = False,
        context_window: tuple[Target, ...] = (),
        content_filter: tuple[Target, ...] = (),
        pools: Mapping[str, KeyPool],
        cost: Cost = lambda *_: None,
        chance: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self.strategy = strategy
        self.rewrite_model = rewrite_model
        self.context_window = context_window
        self.content_filter = content_filter
        self.sessions = Affinity()
        self._pools = pools
        self._cost = cost
        self._chance = chance
        numbers = sorted({each.tier for each in candidates})
        self._tiers = [[each for each in candidates if each.tier == tier] for tier in numbers]
        self._turns = [0.0 for _ in self._tiers]
        self.targets = tuple(each.target for tier in self._tiers for each in tier)
        for each in candidates:
            each.turn = 0.5 / each.weight

    def order(self, demand: Demand, now: float) -> tuple[Target, ...]:
        """The targets, best first."""
        if self.strategy == "fallback":
            return self.targets
        ordered: list[Candidate] = []
        for place, tier in enumerate(self._tiers):
            if len(tier) == 1:
                ordered += tier
                continue
            can = [each for each in tier if self._pool(each).open(each.target.model, now)]
            if can:
                ordered += self._ranked(can, place, demand, now)
            ordered += [each for each in tier if each not in can]
        return tuple(each.target for each in ordered)

    def served(self, target: Target, demand: Demand, now: float) -> None:
        """A target has served: its session stays with it."""
        if self.strategy == "sticky" and demand.session is not None:
            self.sessions.keep(demand.session, str(target), now)

    def _ranked(
        self, tier: list[Candidate], place: int, demand: Demand, now: float
    ) -> list[Candidate]:
        match self.strategy:
            case "weighted" | "round_robin":
                return self._round(tier, place)
            case "lowest_latency":
                models = [(self._pool(each), each.target.model) for each in tier]
                stream = demand.stream
                values = [pool.health.latency("", m, stream, now) for pool, m in models]
                loads = [pool.health.busy(model) for pool, model in models]
                return _first(tier, pick(values, loads, self._chance()))
            case "lowest_cost":
                tokens = min(demand.max_tokens or OUTPUT_TOKENS, OUTPUT_TOKENS)
                costs = {
                    str(each.target): self._cost(each.target, demand.tokens, tokens)
                    for each in tier
                }
                return sorted(tier, key=lambda each: _unknown_last(costs[str(each.target)]))
            case "sticky" if demand.session is not None:
                return _first(tier, self._kept(tier, demand.session, now))
            case _:
                return sorted(tier, key=lambda each: (self._load(each), each.turn))

    def _round(self, tier: list[Candidate], place: int) -> list[Candidate]:
        """Stride scheduling: who was taken waits for the longer, the lighter it weighs."""
        ranked = sorted(tier, key=attrgetter("turn"))
        first = ranked[0]
        self._turns[place] = turn = max(first.turn, self._turns[place])
        first.turn = turn + (1.0 if self.strategy == "round_robin" else 1.0 / first.weight)
        return ranked

    def _kept(self, tier: list[Candidate], session: str, now: float) -> int:
        names = [str(each.target) for each in tier]
        kept = self.sessions.get(session, now)
        if kept in names:
            return names.index(kept)
        return rendezvous(session, names, [each.weight for each in tier])

    def _load(self, candidate: Candidate) -> float:
        return self._pool(candidate).health.busy(candidate.target.model) / candidate.weight

    def _pool(self, candidate: Candidate) -> KeyPool:
        return self._pools[candidate.target.provider]


def _first(tier: list[Candidate], place: int) -> list[Candidate]:
    return [tier[place], *tier[:place], *tier[place + 1 :]]


def _unknown_last(cost: int | None) -> tuple[bool, int]:
    return cost is None, cost or 0
