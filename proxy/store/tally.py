"""The measures of some calls, as a row of rollups keeps them: counts, exact sums and sketches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from proxy.bounds import MOST_SUM
from proxy.store.costs import unpriced
from proxy.store.sketch import Sketch
from proxy.types import CallRecord

_LARGEST = 1e9


class Tally(msgspec.Struct):
    """The columns of a row behind its key, in order. None is unknown: no call of them had any."""

    attempts: int = 0
    requests: int = 0
    failovers: int = 0
    unpriced: int = 0
    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    nano_usd: int | None = None
    latency_total: int = 0
    ttft_total: int = 0
    speed_total: int = 0
    latency_sketch: Sketch = msgspec.field(default_factory=Sketch)
    ttft_sketch: Sketch = msgspec.field(default_factory=Sketch)
    speed_sketch: Sketch = msgspec.field(default_factory=Sketch)

    def count(self, call: CallRecord) -> None:
        """Add one call."""
        self.attempts += 1
        if call.is_final:
            self.requests += 1
            self.failovers += call.attempt > 1
            if call.total_duration_ms is not None:
                self.latency_total += thousandths(call.total_duration_ms)
                self.latency_sketch.add(call.total_duration_ms)
        self.unpriced += unpriced(call)
        self.input_tokens = plus(self.input_tokens, call.input_tokens)
        self.output_tokens = plus(self.output_tokens, call.output_tokens)
        self.total_tokens = plus(self.total_tokens, call.total_tokens)
        self.nano_usd = plus(self.nano_usd, call.cost_nano_usd)
        if call.time_to_first_token_ms is not None:
            self.ttft_total += thousandths(call.time_to_first_token_ms)
            self.ttft_sketch.add(call.time_to_first_token_ms)
        if call.tokens_per_second is not None:
            self.speed_total += thousandths(call.tokens_per_second)
            self.speed_sketch.add(call.tokens_per_second)

    def update(self, other: Tally) -> None:
        """Add the calls of another tally."""
        self.attempts += other.attempts
        self.requests += other.requests
        self.failovers += other.failovers
        self.unpriced += other.unpriced
        self.input_tokens = plus(self.input_tokens, other.input_tokens)
        self.output_tokens = plus(self.output_tokens, other.output_tokens)
        self.total_tokens = plus(self.total_tokens, other.total_tokens)
        self.nano_usd = plus(self.nano_usd, other.nano_usd)
        self.latency_total += other.latency_total
        self.ttft_total += other.ttft_total
        self.speed_total += other.speed_total
        self.latency_sketch.update(other.latency_sketch)
        self.ttft_sketch.update(other.ttft_sketch)
        self.speed_sketch.update(other.speed_sketch)

    def copy(self) -> Tally:
        """Another one of the same calls."""
        made = Tally()
        made.update(self)
        return made

    def onto(self, row: Sequence[Any]) -> list[Any]:
        """What the values of a row become with these calls too; None is a value that is not there.

        It runs for thousands of rows a second, hence without a function for each of their sums.
        """
        mine = msgspec.structs.astuple(self)
        values: list[Any] = []
        for more, held in zip(mine[:_SKETCHES], row[:_SKETCHES], strict=True):
            total = held if more is None else more if held is None else more + held
            if total is not None and not -MOST_SUM <= total <= MOST_SUM:
                total = MOST_SUM if total > 0 else -MOST_SUM
            values.append(total)
        for sketch, dump in zip(mine[_SKETCHES:], row[_SKETCHES:], strict=True):
            values.append(sketch.onto(dump))
        return values


_SKETCHES = Tally.__struct_fields__.index("latency_sketch")  # the first, behind the numbers


def thousandths(value: float) -> int:
    """A duration in microseconds, or a speed in thousandths of a token a second, rounded half up.

    What is beyond 1e9, or below 0, counts as that: so no sum is ever too large for a database.
    """
    if not 0 <= value <= _LARGEST:
        value = min(max(value, 0.0), _LARGEST)
    return math.floor(value * 1000 + 0.5)


def plus(one: int | None, other: int | None) -> int | None:
    """The sum of what is known; None if nothing is."""
    if one is None or other is None:
        return other if one is None else one
    return one + other
