"""A distribution in little memory: counts on a logarithmic scale, quantiles within 2 %.

After DDSketch (Masson, Rim and Lee, 2019), which two sketches of the same scale can be added to.
"""

from __future__ import annotations

import math

import msgspec

_ERROR = 0.02
_GROWTH = (1 + _ERROR) / (1 - _ERROR)
_SCALE = 1 / math.log(_GROWTH)
_SMALLEST = 1e-6


class Sketch(msgspec.Struct, omit_defaults=True):  # JSON knows no infinity
    """Positive values, counted. ``low`` and ``high`` are exact, and so is the mean."""

    count: int = 0
    total: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    buckets: dict[int, int] = msgspec.field(default_factory=dict)

    def add(self, value: float) -> None:
        """Count one value."""
        self.count += 1
        self.total += value
        self.low = min(self.low, value)
        self.high = max(self.high, value)
        bucket = math.ceil(math.log(max(value, _SMALLEST)) * _SCALE)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1

    def plus(self, other: Sketch) -> Sketch:
        """A new sketch with the values of both."""
        buckets = dict(self.buckets)
        for bucket, count in other.buckets.items():
            buckets[bucket] = buckets.get(bucket, 0) + count
        return Sketch(
            self.count + other.count,
            self.total + other.total,
            min(self.low, other.low),
            max(self.high, other.high),
            buckets,
        )

    @property
    def mean(self) -> float | None:
        """The average; None without values."""
        return self.total / self.count if self.count else None

    def quantile(self, share: float) -> float | None:
        """The value below which that share lies, interpolated linearly; None without values."""
        if not self.count:
            return None
        place = share * (self.count - 1)
        below = math.floor(place)
        lower = self._at(below)
        return lower + (place - below) * (self._at(math.ceil(place)) - lower)

    def _at(self, rank: int) -> float:
        seen = 0
        for bucket in sorted(self.buckets):
            seen += self.buckets[bucket]
            if seen > rank:
                middle = 2 * _GROWTH**bucket / (_GROWTH + 1)
                return min(max(middle, self.low), self.high)
        return self.high
