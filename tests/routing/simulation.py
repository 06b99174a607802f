"""A gateway under a clock of its own: no socket, no task, no waiting.

It does with its key pool what the relay does, and checks every call that it sends against what was
known by then.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Generator, Iterable
from itertools import count
from random import Random
from typing import Literal

from proxy.providers import DIALECTS
from proxy.relay.verdict import judge
from proxy.routing.breaker import BreakerRules
from proxy.routing.counters import Allowance, Allowances, Counters
from proxy.routing.events import Event, Lifted, Parked
from proxy.routing.health import Turned
from proxy.routing.key import Key
from proxy.routing.keypool import KeyLease, KeyPool
from proxy.routing.limits import DAY, MINUTE, Limit
from proxy.routing.retries import RetryBudget
from proxy.store.usage import Used
from proxy.types import Action, Headers
from tests.routing.provider import EPOCH, Answer, Ask, Exactly, Midnight, Upstream

HOUR, WEEK = 3600.0, 7 * 86_400.0
MODEL = "m"


class Clock:
    """Seconds since the week began, and whatever goes on meanwhile."""

    def __init__(self) -> None:
        self.now = 0.0
        self._numbers = count()
        self._pending: list[tuple[float, int, Generator[float]]] = []

    def wall(self) -> float:
        return EPOCH + self.now

    def start(self, process: Generator[float], at: float | None = None) -> None:
        """Let a process run; it yields the seconds for which it wants to sleep."""
        heapq.heappush(
            self._pending, (self.now if at is None else at, next(self._numbers), process)
        )

    def run(self, until: float = math.inf) -> None:
        pending = self._pending
        while pending and pending[0][0] <= until:
            self.now, _, process = heapq.heappop(pending)
            for seconds in process:
                heapq.heappush(pending, (self.now + seconds, next(self._numbers), process))
                break
        self.now = max(self.now, until) if until < math.inf else self.now


class Figures:
    """What happened."""

    def __init__(self) -> None:
        self.asked = self.served = self.sent = self.probes = 0
        self.statuses: Counter[int] = Counter()
        self.served_at: dict[str, list[float]] = defaultdict(list)
        self.refused_at: list[float] = []
        self.failed_at: list[tuple[float, bool]] = []
        """When a call failed, and whether it was a breaker's probe."""
        self.shut_at: list[float] = []
        """When a request found the breaker open."""
        self.calls: deque[tuple[float, str, int]] = deque()
        """When each call of the last day was sent, with which key, and the tokens it used."""

    def __str__(self) -> str:
        statuses = ", ".join(f"{number} x {status}" for status, number in self.statuses.items())
        return (
            f"{self.asked} asked, {self.served} served, {self.sent} sent ({statuses}),"
            f" {self.probes} probes"
        )


class Gateway:
    """Leases, sends, judges, learns and releases as ``relay/relay.py`` does in ``_try_each``."""

    def __init__(
        self,
        clock: Clock,
        upstream: Upstream,
        keys: Callable[[], list[Key]],
        *,
        allowances: Allowances | None = None,
        strategy: Literal["weighted", "least_busy", "round_robin"] = "weighted",
        heard: Callable[[Event], None] = lambda _: None,
        seed: int = 1,
    ) -> None:
        self.clock = clock
        self.upstream = upstream
        self.figures = Figures()
        self.budget = RetryBudget()
        self.known = Known(clock, allowances or Allowances())
        self._keys = keys
        self._allowances = allowances or Allowances()
        self._strategy = strategy
        self._heard = heard
        self._random = Random(seed)
        self._dialect = DIALECTS["gemini" if upstream.manner == "gemini" else "groq"]
        self.pool = self.restart()

    def restart(self) -> KeyPool:
        """A new process: nothing is known but what is restored."""
        self.pool = KeyPool(
            "lab",
            (),
            Counters(self._dialect.day, self.clock.wall),
            chance=self._random.random,
            changed=self._changed,
        )
        self.pool.configure(self._keys(), self._strategy, BreakerRules())
        self.pool.counters.configure(self._allowances)
        self.budget = RetryBudget()
        self.known.restart()
        return self.pool

    def serve(self, ask: Ask) -> Generator[float]:
        """One request of a client, to its end."""
        clock, pool, figures = self.clock, self.pool, self.figures
        figures.asked += 1
        self.budget.request(clock.now)
        if pool.health.wait(MODEL, clock.now) and pool.health.breaker(MODEL).state == "open":
            figures.shut_at.append(clock.now)
        tried: set[str] = set()
        while (lease := self._lease(pool, tried, ask)) is not None:
            tried.add(lease.key.name)
            answer = self._send(lease, ask)
            yield 0.2 + 0.3 * self._random.random()
            now, key = clock.now, lease.key
            if answer.headers:
                pool.counters.hear(key.quota_group, MODEL, answer.headers, now, lease.taken)
                self.known.hear(key.quota_group, answer.headers)
            if answer.status == 200:
                yield 1.0
                lease.used = ask.prompt + ask.output
                lease.succeeded(clock.now, now - lease.taken)
                figures.served += 1
                figures.served_at[key.name].append(clock.now)
                lease.release()
                self.known.ended(lease)
                return
            fault = self._dialect.classify(*answer, clock.wall())
            verdict = judge(fault)
            lease.used = None if fault.executed else 0
            lease.failed(verdict, fault.reason, now, fault.hint or "local")
            lease.release()
            self.known.ended(lease)
            if verdict.action is not Action.NEXT_KEY:
                return

    def used(self, seconds: int, grain: float) -> list[Used]:
        """What the rows tell of the last so many seconds, as ``store/usage.py`` sums them up."""
        rows: dict[tuple[str, int], Used] = {}
        for at, key, tokens in self.figures.calls:
            if at >= self.clock.now - seconds:
                place = key, int((EPOCH + at) // grain)
                instant = round((EPOCH + at) * 1000)
                row = rows.get(place) or Used(
                    "lab", key, self.upstream.owners[key], MODEL, instant, 0, 0
                )
                rows[place] = row._replace(requests=row.requests + 1, tokens=row.tokens + tokens)
        return list(rows.values())

    def _lease(self, pool: KeyPool, tried: set[str], ask: Ask) -> KeyLease | None:
        now = self.clock.now
        lease = pool.lease(MODEL, now, tried=tried, tokens=ask.prompt)
        if lease is not None and tried and not self.budget.spend(now):
            lease.release(sent=False)
            return None
        return lease

    def _send(self, lease: KeyLease, ask: Ask) -> Answer:
        now, figures = self.clock.now, self.figures
        self.known.check(lease)
        answer = self.upstream.answer(lease.key.name, ask, now)
        figures.sent += 1
        figures.statuses[answer.status] += 1
        tokens = ask.prompt + ask.output if answer.status == 200 else 0
        calls = figures.calls
        calls.append((now, lease.key.name, tokens))
        while calls[0][0] < now - DAY:
            calls.popleft()
        figures.probes += bool(lease.lifts)
        if answer.status == 500:
            figures.failed_at.append((now, lease.probe))
        elif answer.status == 429:
            figures.refused_at.append(now)
        return answer

    def _changed(self, event: Event) -> None:
        self.known.learn(event)
        self._heard(event)


class Known:
    """What could be known at any time, kept here in the simplest way, to judge each call by."""

    def __init__(self, clock: Clock, allowances: Allowances) -> None:
        self._clock = clock
        self._windows = {
            group: [self._exactly(limit) for limit in each.limits if limit.kind == "requests"]
            for group, each in allowances.groups.items()
        }
        self._rests: dict[tuple[str, str, str], Parked] = {}
        self._told: dict[str, list[tuple[int, int, float, float]]] = {}
        self._probe: KeyLease | None = None
        self.opened: list[tuple[float, float]] = []
        """When the breaker opened, and until when."""

    def _exactly(self, limit: Limit) -> Exactly | Midnight:
        return Exactly(limit.amount, limit.seconds)

    def daily(self, amounts: dict[str, int]) -> None:
        """The days of these groups end at midnight."""
        for group, amount in amounts.items():
            minute = [each for each in self._windows[group] if isinstance(each, Exactly)][:1]
            self._windows[group] = [*minute, Midnight(amount)]

    def restart(self) -> None:
        self._told.clear()
        self._probe = None

    def hear(self, group: str, headers: Headers) -> None:
        values = [value.decode() for _, value in headers]
        self._told[group] = [
            (int(limit), int(remaining), float(reset[:-1]), self._clock.now)
            for limit, remaining, reset in (values[0:3], values[3:6])
        ]

    def learn(self, event: Event) -> None:
        match event:
            case Parked(place=place, rest=rest):
                known = self._rests.get(place)
                if known is not None and known.rest.until > self._clock.now:
                    assert rest.until >= known.rest.until - 1e-3, "a deadline was shortened"
                self._rests[place] = event
            case Lifted(places=places):
                for place in places:
                    self._rests.pop(place, None)
            case Turned(transition=turn) if turn.until is not None:
                self.opened.append((self._clock.now, turn.until))

    def ended(self, lease: KeyLease) -> None:
        if lease is self._probe:
            self._probe = None
        if not lease.counts:  # a key that is not let in uses up nothing
            for window in self._windows.get(lease.key.quota_group, ()):
                window.undo(lease.taken)

    def check(self, lease: KeyLease) -> None:
        """Fails for a call that would certainly be refused, as far as anybody knew."""
        now, key, group = self._clock.now, lease.key.name, lease.key.quota_group
        if lease.probe:
            assert self._probe is None, "two calls probed at a time"
            self._probe = lease
        for place in (("group", group, MODEL), ("group", group, ""), ("key", key, "")):
            parked = self._rests.get(place)
            if parked is not None and parked.rest.until > now + 1e-3:
                told = f"{key} was asked {parked.rest.until - now:.3f} s before its rest was over"
                assert lease.lifts, told
        for limit, remaining, reset, at in self._told.get(group, ()):
            left = remaining + (now - at) * (limit - remaining) / reset if reset else limit
            assert left >= 0.999, f"{key} was asked though {left:.3f} of {limit} were left"
        for window in self._windows.get(group, ()):
            wait = window.wait(now, 1)
            assert wait <= 1e-6, f"{key} was asked {wait:.3f} s before its limit allows it"
            window.take(now, 1)


def allowances(groups: Iterable[str], rpm: int, rpd: int, tpm: int) -> Allowances:
    each = Allowance(
        (
            Limit("requests", rpm, MINUTE),
            Limit("requests", rpd, DAY),
            Limit("tokens", tpm, MINUTE),
        )
    )
    return Allowances(groups=dict.fromkeys(groups, each))
