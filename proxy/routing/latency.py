"""Which of several targets answers soonest: a decaying mean for each, and the choice among them.

After Finagle's Peak EWMA, https://github.com/twitter/finagle (``loadbalancer/PeakEwma.scala``):
the cost of a target is its mean latency times its load, and the mean is sensitive to peaks: it
rises quickly and falls gradually. Two things differ. A peak counts for half instead of replacing
the mean, since one long prompt makes a slow first token at any target. And the mean does not fade
while nobody calls, since ``pick`` explores instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp

TAU = 60.0
"""Seconds in which an old mean falls to 1/e of its weight."""
LEAST = 0.2
"""The least weight of a sample, however soon after another."""
PEAK = 0.5
"""The least weight of a sample above the mean."""
PENALTY = 10.0
"""Seconds that a failure adds to the mean of a target; they fade by TAU, and halve at a success."""
MAX_PENALTY = 60.0
_FORGOTTEN = 0.001


class Latency:
    """The time to first token of one target, in seconds."""

    __slots__ = ("_at", "_failed_at", "_mean", "_penalty", "_tau")

    def __init__(self, tau: float = TAU) -> None:
        self._tau = tau
        self._mean: float | None = None
        self._at = 0.0
        self._penalty = 0.0
        self._failed_at = 0.0

    def add(self, now: float, seconds: float) -> None:
        """A call brought its first token after so many seconds."""
        mean = self._mean
        if mean is None:
            self._mean = seconds
        else:
            weight = max(1.0 - exp((self._at - now) / self._tau), PEAK if seconds > mean else LEAST)
            self._mean = mean + weight * (seconds - mean)
        self._at = now
        self._penalty *= 0.5

    def failed(self, now: float) -> None:
        """A call failed. However fast that was, the target is slow for a while."""
        self._penalty = min(self._fading(now) + PENALTY, MAX_PENALTY)
        self._failed_at = now

    def value(self, now: float) -> float | None:
        """The mean and what is left of the penalty; None: nothing is known (any more)."""
        mean = self._mean
        if not self._penalty:
            return mean
        penalty = self._fading(now)
        if mean is not None:
            return mean + penalty
        return penalty if penalty > _FORGOTTEN else None

    def _fading(self, now: float) -> float:
        return self._penalty * exp((self._failed_at - now) / self._tau)


def pick(
    values: Sequence[float | None], loads: Sequence[int], chance: float, explore: float = 0.05
) -> int:
    """The index of the target to take; there is at least one.

    ``values`` are latencies (None: unmeasured) and ``loads`` the calls that each has in flight.
    ``chance`` is a random number of [0, 1): below ``explore`` it takes a target that is not the
    best, all of them alike, so that one which has recovered is noticed.
    """
    best = _best(values, loads)
    others = len(values) - 1
    if chance < explore and others:
        other = int(chance / explore * others)
        return other if other < best else other + 1
    return best


def _best(values: Sequence[float | None], loads: Sequence[int]) -> int:
    """An unmeasured target that nobody measures yet, else the least latency times load.

    One call at a time measures, so that a burst does not go to a target of which nothing is known.
    Where nothing at all is known, the least load. Ties go to the first.
    """
    best, least = -1, 0.0
    for index, value in enumerate(values):
        load = loads[index]
        if value is None:
            if not load:
                return index
            continue
        cost = value * (load + 1)
        if best < 0 or cost < least:
            best, least = index, cost
    return best if best >= 0 else min(range(len(values)), key=loads.__getitem__)
