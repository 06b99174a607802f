"""A distribution in little memory: counts on a logarithmic scale, quantiles within 2 %.

After DDSketch (Masson, Rim and Lee, 2019), of which two of the same scale can be added up. Written
down, a sketch is a dump: where it begins on the scale and in how many bytes (1, 2, 4 or 8) a count
is written, then a count for each step. To add up thousands of dumps, each becomes one large number,
with 64 bits for each step.
"""

from __future__ import annotations

import math
import struct
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import accumulate

import msgspec

_ERROR = 0.02
_GROWTH = (1 + _ERROR) / (1 - _ERROR)
_SCALE = 1 / math.log(_GROWTH)
_SMALLEST = 1e-4  # what is not larger counts as 0
_LARGEST = 1e12
_FIRST = math.ceil(math.log(_SMALLEST) * _SCALE)

_HEAD = struct.Struct("<H")
_COUNTS = [struct.Struct(f"<{size}") for size in "BHIQ"]
_LANE = 64


class Sketch(msgspec.Struct):
    """Values from 0 on; ``counts`` tells how many lie on a step of the scale."""

    counts: dict[int, int] = msgspec.field(default_factory=dict)

    def add(self, value: float) -> None:
        """Count one value."""
        counts, step = self.counts, _step(value)
        counts[step] = counts.get(step, 0) + 1

    def extend(self, values: Iterable[float]) -> None:
        """Count many values."""
        self.update(Sketch(Counter(map(_step, values))))

    def update(self, other: Sketch) -> None:
        """Count the values of another one."""
        counts = self.counts
        for step, count in other.counts.items():
            counts[step] = counts.get(step, 0) + count

    def plus(self, other: Sketch) -> Sketch:
        """A new sketch with the values of both."""
        both = Sketch(dict(self.counts))
        both.update(other)
        return both

    @property
    def count(self) -> int:
        """How many values there are."""
        return sum(self.counts.values())

    def quantiles(self, *shares: float) -> list[float]:
        """For each share the value below which that much lies, interpolated linearly.

        Without values there are none, and the list is empty.
        """
        if not self.counts:
            return []
        steps = sorted(self.counts)
        ranks = list(accumulate(self.counts[step] for step in steps))
        found = []
        for share in shares:
            place = share * (ranks[-1] - 1)
            below = math.floor(place)
            lower = _value(steps[bisect_right(ranks, below)])
            upper = _value(steps[bisect_right(ranks, math.ceil(place))])
            found.append(lower + (place - below) * (upper - lower))
        return found

    def onto(self, dump: bytes | None) -> bytes | None:
        """What a dump becomes with these values too; None without any."""
        if not self.counts:
            return dump
        if not dump:
            return _dumped(self.counts)
        return self._into(dump) or _dumped(self.plus(of_lanes(lanes(dump))).counts)

    def _into(self, dump: bytes) -> bytes | None:
        """The dump with its counts raised; None where so few bytes are too few for one of them."""
        head = dump[0] | dump[1] << 8
        first, power = head >> 2, head & 3
        raised = bytearray(dump)
        if (low := min(self.counts)) < first:
            raised[: _HEAD.size] = _HEAD.pack(low << 2 | power) + bytes((first - low) << power)
            first = low
        if (room := _HEAD.size + (max(self.counts) + 1 - first << power) - len(raised)) > 0:
            raised += bytes(room)
        try:
            if power == 0:
                for step, count in self.counts.items():
                    raised[_HEAD.size + step - first] += count
            else:
                form = _COUNTS[power]
                for step, count in self.counts.items():
                    at = _HEAD.size + (step - first << power)
                    form.pack_into(raised, at, form.unpack_from(raised, at)[0] + count)
        except (ValueError, struct.error):
            return None
        return bytes(raised)


def lanes(dump: bytes | None) -> int:
    """The counts of a dump as one number: that of two together is their sum."""
    if not dump:
        return 0
    head: int = _HEAD.unpack_from(dump)[0]
    size = _COUNTS[head & 3].size
    # Each byte goes to its place in a lane by slices: there is no faster way to spread them.
    spread = bytearray((len(dump) - _HEAD.size) // size * 8)
    for place in range(size):
        spread[place::8] = dump[_HEAD.size + place :: size]
    return int.from_bytes(spread, "little") << _LANE * (head >> 2)


def of_lanes(lanes: int) -> Sketch:
    """The sketch whose counts are in the number."""
    first = max((lanes & -lanes).bit_length() - 1, 0) // _LANE
    lanes >>= _LANE * first
    size = -(-lanes.bit_length() // _LANE)
    counts = struct.unpack(f"<{size}Q", lanes.to_bytes(size * 8, "little"))
    return Sketch({first + place: count for place, count in enumerate(counts) if count})


def _dumped(counts: Mapping[int, int]) -> bytes:
    first, power = min(counts), ((max(counts.values()).bit_length() - 1) // 8).bit_length()
    row = [0] * (max(counts) - first + 1)
    for step, count in counts.items():
        row[step - first] = count
    form = f"<{len(row)}{_COUNTS[power].format[1:]}"
    return _HEAD.pack(first << 2 | power) + struct.pack(form, *row)


def _step(value: float) -> int:
    if value <= _SMALLEST:
        return 0
    if value > _LARGEST:
        value = _LARGEST
    return math.ceil(math.log(value) * _SCALE) - _FIRST


def _value(step: int) -> float:
    """The middle of a step: no value on it is further away than the error."""
    return 2 * _GROWTH ** (step + _FIRST) / (_GROWTH + 1) if step else 0.0
