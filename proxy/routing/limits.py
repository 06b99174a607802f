"""How much may be used: counts of our own, and what the provider's answers tell.

A counter says how long a call would have to wait. It is asked before the call is made, so that a
key which would certainly be refused is not asked at all.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from datetime import tzinfo
from typing import Literal, Protocol

import msgspec

from proxy.clock import day
from proxy.duration import duration

STEPS = 60
"""A sliding window moves on in steps of a sixtieth. A step is let go when all of it is older than
the window, so that no window of that length ever holds more than the limit."""

SOON = 0.1
"""Seconds after which to look again for a call to end: nobody knows how long it takes."""

MINUTE = 60
DAY = 86_400


class Limit(msgspec.Struct, frozen=True):
    """``amount`` requests or tokens in ``seconds``."""

    kind: Literal["requests", "tokens"]
    amount: int
    seconds: int

    @property
    def type(self) -> str:
        """As ``rate_limits.limit_type`` has it: ``requests_minute``, ``tokens_day``."""
        return f"{self.kind}_{'minute' if self.seconds == MINUTE else 'day'}"


class Counter(Protocol):
    """What stands between a key and a call. ``tokens`` are those that it is expected to use."""

    @property
    def why(self) -> str:
        """What is used up, for a person."""
        ...

    def wait(self, now: float, tokens: int) -> float:
        """Seconds until the call may go; 0.0: now."""
        ...

    def take(self, now: float, tokens: int) -> None:
        """The call goes."""
        ...

    def ended(self, taken: float, expected: int, used: int | None) -> None:
        """The call that was taken at ``taken`` has ended; ``used`` tokens, None if unknown."""
        ...

    def undone(self, taken: float, expected: int) -> None:
        """The call was never made."""
        ...


class Sliding:
    """Counts what was used in the last ``seconds``, in steps.

    ``share`` is this process's part of the limit, where several share it and cannot ask each other.
    """

    __slots__ = ("_away", "_counts", "_step", "blocked_until", "limit", "name", "room", "used")

    def __init__(self, name: str, limit: Limit) -> None:
        self.name = name
        self.limit = limit
        self.room = limit.amount
        self.used = 0
        self.blocked_until = 0.0  # another gateway has used it up
        self._step = limit.seconds / STEPS
        self._counts: deque[list[int]] = deque()  # [step, count]

    @property
    def why(self) -> str:
        return f"{self.limit.type} {self.used}/{self.room}"

    def share(self, part: float) -> None:
        self.room = max(1, math.floor(self.limit.amount * part))

    def wait(self, now: float, tokens: int) -> float:
        self._forget(now)
        cost = tokens if self.limit.kind == "tokens" else 1
        # One call may always go: what it was expected to use was only a guess.
        if self.used + cost <= self.room or not self.used:
            return max(0.0, self.blocked_until - now)
        over, gone = self.used + cost - self.room, 0
        for gone, count in self._counts:  # noqa: B007 (the step that makes room, else the last)
            over -= count
            if over <= 0:
                break
        return max(1e-3, (gone + STEPS + 1) * self._step - now, self.blocked_until - now)

    def take(self, now: float, tokens: int) -> None:
        self.add(now, tokens if self.limit.kind == "tokens" else 1)

    def ended(self, taken: float, expected: int, used: int | None) -> None:
        if self.limit.kind == "tokens" and used is not None and used != expected:
            self.add(taken, used - expected)

    def undone(self, taken: float, expected: int) -> None:
        self.add(taken, -expected if self.limit.kind == "tokens" else -1)

    def add(self, when: float, count: int) -> None:
        """Count in the step that ``when`` falls into; what is no longer in the window is gone."""
        step = int(when // self._step)
        counts = self._counts
        if not counts or counts[-1][0] < step:
            if count > 0:
                counts.append([step, count])
                self.used += count
            return
        for entry in reversed(counts):
            if entry[0] == step:
                change = max(count, -entry[1])
                entry[1] += change
                self.used += change
                return

    def inherit(self, other: Sliding) -> None:
        """Go on with the counts of a window of the same length and another limit."""
        self.used, self._counts = other.used, other._counts

    def started(self, now: float) -> int | None:
        """When a fixed window began, UTC milliseconds; None for one that slides."""
        return None

    def resets(self, now: float) -> float:
        """Seconds until nothing of what was used counts any more."""
        self._forget(now)
        last = self._counts[-1][0] if self._counts else None
        return 0.0 if last is None else max(0.0, (last + STEPS + 1) * self._step - now)

    def _forget(self, now: float) -> None:
        counts, oldest = self._counts, int(now // self._step) - STEPS
        while counts and counts[0][0] < oldest:
            self.used -= counts.popleft()[1]


class Daily(Sliding):
    """Counts from one midnight of the provider's to the next. ``wall`` is epoch seconds."""

    __slots__ = ("_begins", "_ends", "_wall", "_zone")

    def __init__(self, name: str, limit: Limit, zone: tzinfo, wall: Callable[[], float]) -> None:
        super().__init__(name, limit)
        self._zone = zone
        self._wall = wall
        self._begins = self._ends = -math.inf

    def wait(self, now: float, tokens: int) -> float:
        self._forget(now)
        cost = tokens if self.limit.kind == "tokens" else 1
        if self.used + cost <= self.room or not self.used:
            return max(0.0, self.blocked_until - now)
        return max(1e-3, self._ends - now)

    def add(self, when: float, count: int) -> None:
        self._forget(when)
        if when >= self._begins:
            self.used = max(0, self.used + count)

    def inherit(self, other: Sliding) -> None:
        if isinstance(other, Daily):
            self.used, self._begins, self._ends = other.used, other._begins, other._ends

    def started(self, now: float) -> int | None:
        self._forget(now)
        return round((self._wall() - (now - self._begins)) * 1000)

    def resets(self, now: float) -> float:
        self._forget(now)
        return self._ends - now if self.used else 0.0

    def _forget(self, now: float) -> None:
        if now >= self._ends:
            wall = self._wall()
            first, last = day(wall, self._zone)
            self._begins, self._ends, self.used = now - (wall - first), now + (last - wall), 0


class Slots:
    """So many calls at a time."""

    __slots__ = ("amount", "name", "used")

    def __init__(self, name: str, amount: int) -> None:
        self.name = name
        self.amount = amount
        self.used = 0

    @property
    def why(self) -> str:
        return f"concurrent {self.used}/{self.amount}"

    def wait(self, now: float, tokens: int) -> float:
        return 0.0 if self.used < self.amount else SOON

    def take(self, now: float, tokens: int) -> None:
        self.used += 1

    def ended(self, taken: float, expected: int, used: int | None) -> None:
        self.used -= 1

    def undone(self, taken: float, expected: int) -> None:
        self.used -= 1


class Told:
    """What the newest answer told of one limit, in ``x-ratelimit-*`` as OpenAI and Groq send them.

    Their buckets fill up steadily: ``reset`` is when this one is full again, so the next call is
    admitted long before (https://console.groq.com/docs/rate-limits).
    """

    __slots__ = ("_at", "_limit", "_remaining", "_reset", "_sent", "kind")

    def __init__(self, kind: Literal["requests", "tokens"]) -> None:
        self.kind = kind
        self._limit = self._remaining = self._sent = 0
        self._at = self._reset = 0.0

    @property
    def why(self) -> str:
        return f"the provider told that {self._remaining} of {self._limit} {self.kind} remain"

    def hear(self, limit: int, remaining: int, reset: float, now: float) -> None:
        self._limit, self._remaining, self._reset = limit, min(remaining, limit), reset
        self._at, self._sent = now, 0

    def now(self, now: float) -> tuple[int, int, float] | None:
        """The limit, what of it is used by now, and the seconds until it is whole; None: untold."""
        if not self._limit:
            return None
        left = self._reset - (now - self._at)
        spent = self._limit - self._remaining
        used = spent * left / self._reset if left > 0 and self._reset else 0.0
        return self._limit, min(self._limit, math.ceil(used) + self._sent), max(0.0, left)

    def wait(self, now: float, tokens: int) -> float:
        cost = min(tokens, self._limit) if self.kind == "tokens" else 1
        lacking = cost - (self._remaining - self._sent)
        if lacking <= 0:
            return 0.0
        passed, spent = now - self._at, self._limit - self._remaining
        if passed >= self._reset or spent <= 0:
            return 0.0
        return max(0.0, min(lacking * self._reset / spent, self._reset) - passed)

    def take(self, now: float, tokens: int) -> None:
        self._sent += tokens if self.kind == "tokens" else 1

    def ended(self, taken: float, expected: int, used: int | None) -> None:
        pass  # the answer has told

    def undone(self, taken: float, expected: int) -> None:
        self._sent -= expected if self.kind == "tokens" else 1


def read_headers(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, int, int, float]]:
    """Kind, limit, what remains, and seconds until the limit is whole again, where all are told."""
    fields = dict(headers)
    found = []
    for kind, names in _FIELDS:
        limit, remaining, reset = (fields.get(name) for name in names)
        if limit and remaining and reset and limit.isdigit() and remaining.isdigit():
            seconds = duration(reset.decode("latin-1"))
            if seconds is not None and len(limit) < 16:
                found.append((kind, int(limit), int(remaining), seconds))
    return found


_FIELDS = [
    (kind, [f"x-ratelimit-{figure}-{kind}".encode() for figure in ("limit", "remaining", "reset")])
    for kind in ("requests", "tokens")
]
