"""A provider under a clock of its own: its limits, its manners, and what there was to be had."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from datetime import datetime
from typing import Literal, NamedTuple, Protocol
from zoneinfo import ZoneInfo

import msgspec

from proxy.clock import day
from proxy.types import Headers

PACIFIC = ZoneInfo("America/Los_Angeles")
EPOCH = datetime(2026, 10, 26, tzinfo=PACIFIC).timestamp()
"""A Monday's midnight where Gemini's days end. The week ends with a Sunday of 25 hours."""


class Ask(NamedTuple):
    """A request: the tokens of its prompt, and those of the answer, which nobody knows before."""

    prompt: int
    output: int


# What a provider allows.


class Allowed(Protocol):
    def wait(self, now: float, cost: float) -> float:
        """Seconds until there is room."""
        ...

    def take(self, now: float, cost: float) -> None: ...


class Bucket:
    """Fills up steadily, as Groq's and OpenAI's do. What was used beforehand is owed."""

    def __init__(self, amount: int, seconds: float) -> None:
        self.amount, self.seconds = amount, seconds
        self._level, self._at = float(amount), 0.0

    def level(self, now: float) -> float:
        level = self._level + (now - self._at) * self.amount / self.seconds
        self._level, self._at = level if level < self.amount else self.amount, now
        return self._level

    def wait(self, now: float, cost: float) -> float:
        lacking = cost - self.level(now)
        return lacking * self.seconds / self.amount if lacking > 0 else 0.0

    def take(self, now: float, cost: float) -> None:
        self._level = self.level(now) - cost


class Midnight:
    """Is whole again when the day is over in California, as Gemini's."""

    def __init__(self, amount: int) -> None:
        self.amount = amount
        self._left, self._ends = float(amount), 0.0

    def wait(self, now: float, cost: float) -> float:
        if now >= self._ends:
            self._left, self._ends = self.amount, day(EPOCH + now, PACIFIC)[1] - EPOCH
        return self._ends - now if self._left < cost else 0.0

    def take(self, now: float, cost: float) -> None:
        self._left -= cost

    def undo(self, taken: float) -> None:
        """The call of then did not count."""
        self._left = min(self.amount, self._left + 1)


class Exactly:
    """What is configured, to the letter: so much in any span of that length."""

    def __init__(self, amount: int, seconds: float) -> None:
        self.amount, self.seconds, self.used = amount, seconds, 0.0
        self._taken: deque[tuple[float, float]] = deque()

    def wait(self, now: float, cost: float) -> float:
        taken = self._taken
        while taken and taken[0][0] <= now - self.seconds:
            self.used -= taken.popleft()[1]
        return 0.0 if self.used + cost <= self.amount else taken[0][0] + self.seconds - now

    def take(self, now: float, cost: float) -> None:
        self._taken.append((now, cost))
        self.used += cost

    def undo(self, taken: float) -> None:
        """The call of then did not count."""
        if (taken, 1) in self._taken:
            self._taken.remove((taken, 1))
            self.used -= 1


class Quota(NamedTuple):
    """The limits of one group, and what a refusal calls them."""

    limits: list[tuple[str, Literal["requests", "tokens"], Allowed]]

    def lacks(self, now: float, ask: Ask) -> tuple[str, str, float] | None:
        """The limit that keeps a call out for longest; None if it is admitted, and counted."""
        worst: tuple[str, str, float] | None = None
        for name, kind, limit in self.limits:
            wait = limit.wait(now, 1 if kind == "requests" else ask.prompt)
            if wait > 1e-9 and (worst is None or wait > worst[2]):
                worst = name, kind, wait
        if worst is not None:
            return worst
        for _, kind, limit in self.limits:
            limit.take(now, 1 if kind == "requests" else ask.prompt + ask.output)
        return None

    def headers(self, now: float) -> Headers:
        """As Groq sends them: what is left of the day's requests and the minute's tokens."""
        found = []
        for name, kind, limit in self.limits:
            if name in ("RPD", "TPM") and isinstance(limit, Bucket):
                level = limit.level(now)
                reset = (limit.amount - level) * limit.seconds / limit.amount
                for figure, value in (
                    ("limit", str(limit.amount)),
                    ("remaining", str(max(0, math.floor(level)))),
                    ("reset", f"{reset:.3f}s"),
                ):
                    found.append((f"x-ratelimit-{figure}-{kind}".encode(), value.encode()))
        return found


# What a provider answers.

Manner = Literal["groq", "gemini", "silent"]


class Answer(NamedTuple):
    status: int
    headers: Headers
    body: bytes


class Upstream:
    """A provider with its own truth. ``quotas`` are its groups', ``dead`` and ``down`` say when it
    knows a key no more, and when it answers nobody."""

    def __init__(self, manner: Manner, owners: dict[str, str], quotas: dict[str, Quota]) -> None:
        self.manner = manner
        self.owners = owners
        self.quotas = quotas
        self.dead: dict[str, tuple[float, float]] = {}
        self.down: list[tuple[float, float]] = []

    def is_down(self, now: float) -> bool:
        while self.down and self.down[0][1] <= now:
            self.down.pop(0)
        return bool(self.down) and self.down[0][0] <= now

    def is_dead(self, key: str, now: float) -> bool:
        begins, ends = self.dead.get(key, (math.inf, 0.0))
        return begins <= now < ends

    def answer(self, key: str, ask: Ask, now: float) -> Answer:
        if self.is_down(now):
            return Answer(500, [], b"")
        if self.is_dead(key, now):
            return Answer(401, [], b"")
        quota = self.quotas[self.owners[key]]
        lacking = quota.lacks(now, ask)
        headers = quota.headers(now) if self.manner == "groq" else []
        if lacking is None:
            return Answer(200, headers, b"")
        return self._refusal(*lacking, headers)

    def _refusal(self, name: str, kind: str, wait: float, headers: Headers) -> Answer:
        match self.manner:
            case "groq":
                message = f"Rate limit reached on ({name}). Please try again in {wait:.3f}s."
                error = {"message": message, "type": kind, "code": "rate_limit_exceeded"}
                hint = str(math.ceil(wait)).encode()
                return _answer(429, {"error": error}, [*headers, (b"retry-after", hint)])
            case "gemini":
                daily = name == "RPD"
                seconds = 36 if daily else math.ceil(wait)  # of a day it says nothing sensible
                quota = f"GenerateRequestsPer{'Day' if daily else 'Minute'}PerProjectPerModel"
                details = [
                    {"@type": "QuotaFailure", "violations": [{"quotaId": quota}]},
                    {"@type": "RetryInfo", "retryDelay": f"{seconds}s"},
                ]
                error = {"code": 429, "status": "RESOURCE_EXHAUSTED", "details": details}
                return _answer(429, [{"error": error | {"message": "You exceeded your quota."}}])
            case "silent":
                return _answer(429, {"error": {"message": "Too many requests."}})


def _answer(status: int, body: object, headers: Headers | None = None) -> Answer:
    return Answer(status, headers or [], msgspec.json.encode(body))


class Oracle:
    """Knows the limits and serves whom it can."""

    def __init__(self, upstream: Upstream, quotas: Iterable[tuple[str, Quota]]) -> None:
        self.served = 0
        self._upstream = upstream
        self._quotas = list(quotas)

    def asked(self, ask: Ask, now: float) -> None:
        if self._upstream.is_down(now):
            return
        for key, quota in self._quotas:
            if not self._upstream.is_dead(key, now) and quota.lacks(now, ask) is None:
                self.served += 1
                return
