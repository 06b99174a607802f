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
    round within that: the lowest is next (stride scheduling)."""

    target: Target
    tier: int = 1
    weight: float = 1.0
    turn: float = 0.0


class Alias:
    """Orders the targets for each request: tier by tier, and in a tier as the strategy says.

    Those that cannot serve now come last in their tier. With ``fallback`` the order never changes:
    who cannot serve is passed over when it is asked for a key.
    """

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
            each.turn = self._stride(each) / 2

    def order(self, demand: Demand, now: float, *, take: bool = True) -> tuple[Target, ...]:
        """The targets, best first. ``take`` False leaves the turns as they are."""
        if self.strategy == "fallback":
            return self.targets
        ordered: list[Candidate] = []
        for place, tier in enumerate(self._tiers):
            if len(tier) == 1:
                ordered += tier
                continue
            can = [each for each in tier if self._open(each, now)]
            if can:
                can = self._ranked(can, demand, now)
                if take:
                    self._take_turn(can[0], place)
            ordered += can
            ordered += [each for each in tier if each not in can]
        return tuple(each.target for each in ordered)

    def served(self, target: Target, demand: Demand, now: float) -> None:
        """A target has served: its session stays with it, unless it only helped out."""
        if self.strategy == "sticky" and demand.session is not None and target in self.targets:
            self.sessions.keep(demand.session, str(target), now)

    def _ranked(self, tier: list[Candidate], demand: Demand, now: float) -> list[Candidate]:
        match self.strategy:
            case "weighted" | "round_robin":
                return sorted(tier, key=attrgetter("turn"))
            case "lowest_latency":
                return self._soonest(tier, demand.stream, now)
            case "lowest_cost":
                output = min(demand.max_tokens or OUTPUT_TOKENS, OUTPUT_TOKENS)
                return sorted(tier, key=lambda each: self._price(each, demand.tokens, output))
        ranked = sorted(tier, key=lambda each: (self._load(each), each.turn))
        if self.strategy == "sticky" and demand.session is not None:
            return _first(ranked, self._kept(ranked, demand.session, now))
        return ranked

    def _soonest(self, tier: list[Candidate], stream: bool, now: float) -> list[Candidate]:
        """The one that is picked, then the others by what they took of late."""
        models = [(self._pool(each).health, each.target.model) for each in tier]
        values = [health.latency("", model, stream, now) for health, model in models]
        loads = [health.busy(model) for health, model in models]
        picked = pick(values, loads, self._chance())
        order = sorted(range(len(tier)), key=lambda place: _unknown_last(values[place]))
        return _first([tier[place] for place in order], order.index(picked))

    def _price(self, candidate: Candidate, input: int, output: int) -> tuple[bool, float]:
        return _unknown_last(self._cost(candidate.target, input, output))

    def _take_turn(self, candidate: Candidate, place: int) -> None:
        """Who is taken waits for the longer, the lighter it weighs. Who could not take its turns
        does not get them all at once later."""
        self._turns[place] = turn = max(candidate.turn, self._turns[place])
        candidate.turn = turn + self._stride(candidate)

    def _stride(self, candidate: Candidate) -> float:
        return 1.0 if self.strategy == "round_robin" else 1.0 / candidate.weight

    def _kept(self, tier: list[Candidate], session: str, now: float) -> int:
        names = [str(each.target) for each in tier]
        kept = self.sessions.get(session, now)
        if kept in names:
            return names.index(kept)
        return rendezvous(session, names, [each.weight for each in tier])

    def _load(self, candidate: Candidate) -> float:
        return self._pool(candidate).health.busy(candidate.target.model) / candidate.weight

    def _open(self, candidate: Candidate, now: float) -> bool:
        return self._pool(candidate).open(candidate.target.model, now)

    def _pool(self, candidate: Candidate) -> KeyPool:
        return self._pools[candidate.target.provider]


def _first(ranked: list[Candidate], place: int) -> list[Candidate]:
    return [ranked[place], *ranked[:place], *ranked[place + 1 :]]


def _unknown_last(value: float | None) -> tuple[bool, float]:
    return value is None, value or 0.0
