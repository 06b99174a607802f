"""How much may be used: counts of our own, and what the provider's answers tell.

A counter says how long a call would have to wait. It is asked before the call is made, so that a
key which would certainly be refused is not asked at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from datetime import tzinfo
from typing import Literal, Protocol

import msgspec

from proxy.clock import day
from proxy.duration import duration

SOON = 0.1
"""Seconds after which to look again for a call to end: nobody knows how long it takes."""

MINUTE = 60
HOUR = 3600
DAY = 86_400
_SPANS = {MINUTE: "minute", HOUR: "hour", DAY: "day"}


def steps(seconds: int) -> int:
    """In how many steps a sliding window moves on: a minute by the second, a day by six minutes.

    A step is let go when all of it is older than the window, so that no window of that length ever
    holds more than the limit. The scripts of the shared state count in the same steps.
    """
    return 60 if seconds <= 3600 else 240


class Limit(msgspec.Struct, frozen=True):
    """``amount`` requests or tokens in ``seconds``."""

    kind: Literal["requests", "tokens"]
    amount: int
    seconds: int

    @property
    def type(self) -> str:
        """As ``rate_limits.limit_type`` has it: ``requests_minute``, ``tokens_day``."""
        return f"{self.kind}_{_SPANS[self.seconds]}"


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

    def admit(self, now: float, tokens: int) -> float:
        """``wait``, and ``take`` if that is 0.0: in one step, since every request pays for it."""
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

    __slots__ = (
        "_by_tokens",
        "_counts",
        "_stale",
        "_step",
        "_step_ends",
        "_steps",
        "blocked_until",
        "limit",
        "name",
        "room",
        "used",
    )

    def __init__(self, name: str, limit: Limit) -> None:
        self.name = name
        self.limit = limit
        self.room = limit.amount
        self.used = 0
        self.blocked_until = 0.0  # another gateway has used it up
        self._by_tokens = limit.kind == "tokens"
        self._steps = steps(limit.seconds)
        self._step = limit.seconds / self._steps
        self._step_ends = -math.inf  # of the newest step
        self._stale = math.inf  # when something no longer counts
        self._counts: list[list[int]] = []  # [step, count], the oldest first

    @property
    def why(self) -> str:
        return f"{self.limit.type} {self.used}/{self.room}"

    def allow(self, limit: Limit, part: float) -> None:
        """Hold to another amount in as many seconds, and to this part of it."""
        self.limit = limit
        self.room = max(1, math.floor(limit.amount * part))

    def wait(self, now: float, tokens: int) -> float:
        if now >= self._stale:
            self.forget(now)
        cost = tokens if self._by_tokens else 1
        # One call may always go: what it was expected to use was only a guess.
        if self.used + cost <= self.room or not self.used:
            return 0.0 if now >= self.blocked_until else self.blocked_until - now
        return max(1e-3, self._frees(cost) - now, self.blocked_until - now)

    def take(self, now: float, tokens: int) -> None:
        cost = tokens if self._by_tokens else 1
        if now < self._step_ends:
            self._counts[-1][1] += cost
            self.used += cost
        else:
            self.add(now, cost)

    def admit(self, now: float, tokens: int) -> float:
        cost = tokens if self._by_tokens else 1
        used = self.used + cost
        if self.blocked_until <= now < self._step_ends and now < self._stale and used <= self.room:
            self._counts[-1][1] += cost
            self.used = used
            return 0.0
        wait = self.wait(now, tokens)
        if not wait:
            self.take(now, tokens)
        return wait

    def ended(self, taken: float, expected: int, used: int | None) -> None:
        if self._by_tokens and used is not None and used != expected:
            self.add(taken, used - expected)

    def undone(self, taken: float, expected: int) -> None:
        self.add(taken, -expected if self._by_tokens else -1)

    def add(self, when: float, count: int) -> None:
        """Count in the step that ``when`` falls into; what is no longer in the window is gone."""
        step = int(when // self._step)
        counts = self._counts
        place = len(counts)
        while place and counts[place - 1][0] > step:
            place -= 1
        if place and counts[place - 1][0] == step:
            entry = counts[place - 1]
            change = max(count, -entry[1])
            entry[1] += change
            self.used += change
        elif count > 0 and (not counts or step >= counts[-1][0] - self._steps):
            counts.insert(place, [step, count])
            self.used += count
            self._stale = self._gone(counts[0][0])
            self._step_ends = (counts[-1][0] + 1) * self._step

    def forget(self, now: float) -> None:
        """Let go of what no longer counts."""
        counts, oldest = self._counts, int(now // self._step) - self._steps
        while counts and counts[0][0] < oldest:
            self.used -= counts.pop(0)[1]
        self._stale = self._gone(counts[0][0]) if counts else math.inf

    def uses(self, now: float) -> list[tuple[float, int]]:
        """What counts now, and when at the latest it was counted."""
        self.forget(now)
        return [(min(now, (step + 1) * self._step), count) for step, count in self._counts]

    def started(self, now: float) -> int | None:
        """When a fixed window began, UTC milliseconds; None for one that slides."""
        return None

    def resets(self, now: float) -> float:
        """Seconds until nothing of what was used counts any more."""
        if now >= self._stale:
            self.forget(now)
        return max(0.0, self._gone(self._counts[-1][0]) - now) if self.used else 0.0

    def _frees(self, cost: int) -> float:
        """When enough is gone for a call, or all of it."""
        over, gone = self.used + cost - self.room, 0
        for gone, count in self._counts:  # noqa: B007 (the last, if none makes enough room)
            over -= count
            if over <= 0:
                break
        return self._gone(gone)

    def _gone(self, step: int) -> float:
        """When nothing of a step counts any more."""
        return (step + self._steps + 1) * self._step


class Daily(Sliding):
    """Counts from one midnight of the provider's to the next. ``wall`` is epoch seconds.

    The wall clock decides, which may be set: it is read again every second.
    """

    __slots__ = ("_begins", "_midnight", "_next_midnight", "_wall", "_zone")

    def __init__(self, name: str, limit: Limit, zone: tzinfo, wall: Callable[[], float]) -> None:
        super().__init__(name, limit)
        self._zone = zone
        self._wall = wall
        self._stale = -math.inf
        self._begins = -math.inf  # the last midnight, on the clock of the calls
        self._midnight = self._next_midnight = -math.inf  # on the wall clock

    def take(self, now: float, tokens: int) -> None:
        self.used += tokens if self._by_tokens else 1

    def admit(self, now: float, tokens: int) -> float:
        used = self.used + (tokens if self._by_tokens else 1)
        if self.blocked_until <= now < self._stale and used <= self.room:
            self.used = used
            return 0.0
        return super().admit(now, tokens)

    def add(self, when: float, count: int) -> None:
        if when >= self._begins:
            self.used = max(0, self.used + count)

    def forget(self, now: float) -> None:
        wall = self._wall()
        if not self._midnight <= wall < self._next_midnight:
            first, last = day(wall, self._zone)
            if first > self._midnight:  # else the clock was set back: what was used still counts
                self.used = 0
            self._midnight, self._next_midnight = first, last
        self._begins = now - (wall - self._midnight)
        self._stale = now + min(1.0, self._next_midnight - wall)

    def uses(self, now: float) -> list[tuple[float, int]]:
        self.forget(now)
        return [(now, self.used)] if self.used else []

    def started(self, now: float) -> int | None:
        self.forget(now)
        return round(self._midnight * 1000)

    def resets(self, now: float) -> float:
        self.forget(now)
        return self._next_midnight - self._wall() if self.used else 0.0

    def _frees(self, cost: int) -> float:
        return self._begins + self._next_midnight - self._midnight


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

    def admit(self, now: float, tokens: int) -> float:
        if self.used < self.amount:
            self.used += 1
            return 0.0
        return SOON

    def ended(self, taken: float, expected: int, used: int | None) -> None:
        self.used -= 1

    def undone(self, taken: float, expected: int) -> None:
        self.used -= 1


class Told:
    """What the newest answer told of one limit, in ``x-ratelimit-*`` as OpenAI and Groq send them.

    Their buckets fill up steadily: ``reset`` is when this one is full again, so the next call is
    admitted long before (https://console.groq.com/docs/rate-limits).
    """

    __slots__ = ("_at", "_by_tokens", "_heard", "_level", "_limit", "_rate", "kind")

    def __init__(self, kind: Literal["requests", "tokens"]) -> None:
        self.kind = kind
        self._by_tokens = kind == "tokens"
        self._limit = 0
        self._level = 0.0  # what was left at ``_at``
        self._rate = 0.0  # what comes back in a second; 0.0 as long as nobody has told
        self._at = 0.0
        self._heard = -math.inf

    @property
    def why(self) -> str:
        return (
            f"the provider told that {max(0, int(self._level))} of {self._limit} {self.kind} remain"
        )

    def hear(self, limit: int, remaining: int, reset: float, now: float, sent: float) -> None:
        """An answer to a call that was ``sent`` then. Of calls under way together nobody knows
        which was counted last: the least that one of them tells is what is left."""
        remaining = min(remaining, limit)
        if limit == self._limit and sent < self._heard:
            remaining = min(remaining, int(self._now(now)))
        if reset > 0 and remaining < limit:
            self._rate = (limit - remaining) / reset
        self._limit, self._level, self._at, self._heard = limit, float(remaining), now, now

    def now(self, now: float) -> tuple[int, int, float] | None:
        """The limit, what of it is used by now, and the seconds until it is whole; None: untold."""
        if not self._limit:
            return None
        used = min(self._limit, self._limit - math.floor(self._now(now)))
        return self._limit, used, used / self._rate if self._rate else 0.0

    def wait(self, now: float, tokens: int) -> float:
        cost = min(tokens, self._limit) if self._by_tokens else 1
        lacking = cost - self._now(now)
        return lacking / self._rate if lacking > 1e-9 and self._rate else 0.0

    def take(self, now: float, tokens: int) -> None:
        cost = tokens if self._by_tokens else 1
        self._level, self._at = max(0.0, self._now(now) - cost), now

    def admit(self, now: float, tokens: int) -> float:
        level = self._level + (now - self._at) * self._rate
        level = min(level, self._limit) - (tokens if self._by_tokens else 1)
        if level >= 0:
            self._level, self._at = level, now
            return 0.0
        wait = self.wait(now, tokens)
        if not wait:
            self.take(now, tokens)
        return wait

    def ended(self, taken: float, expected: int, used: int | None) -> None:
        pass  # the answer has told

    def undone(self, taken: float, expected: int) -> None:
        self._level += expected if self._by_tokens else 1

    def _now(self, now: float) -> float:
        return min(float(self._limit), self._level + (now - self._at) * self._rate)


def read_headers(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, int, int, float]]:
    """Kind, limit, what remains, and seconds until the limit is whole again, where all are told.

    What is out of all bounds is not believed: a reset may be an instant, or in milliseconds.
    """
    fields = dict(headers)
    found = []
    for kind, names in _FIELDS:
        limit, remaining, reset = (fields.get(name) for name in names)
        if limit and remaining and reset and _is_count(limit) and _is_count(remaining):
            seconds = duration(reset.decode("latin-1"))
            if seconds is not None and seconds <= DAY:
                found.append((kind, int(limit), int(remaining), seconds))
    return found


def _is_count(figure: bytes) -> bool:
    return figure.isdigit() and len(figure) < 16


_FIELDS = [
    (kind, [f"x-ratelimit-{figure}-{kind}".encode() for figure in ("limit", "remaining", "reset")])
    for kind in ("requests", "tokens")
]
