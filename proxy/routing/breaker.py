"""A circuit breaker: whether a model at a provider is asked at all, after it failed.

closed      calls go; failures are counted
open        none goes before ``until``
half_open   one goes, the probe; it closes the breaker or opens it again, for twice as long

After Nygard, "Release It!", and https://martinfowler.com/bliki/CircuitBreaker.html. Everything
here is synchronous and pure state. Times are seconds of the monotonic clock, given by the caller.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from proxy.routing.window import Window

State = Literal["closed", "open", "half_open"]

PROBE_SECONDS = 1.0
"""When to look again while a probe is out: nobody knows how long it takes."""
ELAPSED = "elapsed"
RECOVERED = "recovered"
RESET = "reset"
"""Reasons of transitions that no failure caused."""
_MAX_DOUBLINGS = 60  # by then every open time is the longest, and no float overflows


class BreakerRules(msgspec.Struct, frozen=True):
    """When a breaker opens, and for how long.

    It opens after ``failures`` in a row (0: never), or when at least ``rate`` of the outcomes of
    the last ``window`` seconds are failures and there were at least ``minimum`` outcomes. It stays
    open for ``open_for`` seconds, twice as long each time a probe fails, up to ``longest``.
    """

    failures: int = 5
    rate: float = 0.5
    minimum: int = 20
    window: float = 30.0
    open_for: float = 10.0
    longest: float = 300.0


class Transition(msgspec.Struct, frozen=True):
    """A change of state, to be logged and stored.

    ``reason`` is the failure that opened the breaker, else "elapsed", "recovered" or "reset".
    ``until`` ends the open time (None unless it opened); ``openings`` counts those in a row.
    """

    from_state: State
    to_state: State
    reason: str
    until: float | None
    openings: int


class Breaker:
    """The breaker of one model at one provider.

    Whoever was admitted reports once: ``succeeded``, ``failed`` or ``gave_up``, with the
    ``probing`` that it read when it was admitted. That call holds the only probe slot until it
    reports, whatever happens to the breaker meanwhile, so two probes are never out.
    """

    __slots__ = (
        "_failures",
        "_out",
        "_outcomes",
        "_row",
        "openings",
        "pending",
        "rules",
        "state",
        "until",
    )

    def __init__(self, rules: BreakerRules) -> None:
        self.rules = rules
        self.state: State = "closed"
        self.until = 0.0
        """When the open time ends; 0.0 unless open."""
        self.openings = 0
        """How often it opened since it was last closed."""
        self.pending: Transition | None = None
        """What the last ``admit`` changed: to half_open, or None. It need not be cleared."""
        self._out = False  # whether a probe has yet to report
        self._row = 0
        self._outcomes = Window(rules.window)
        self._failures = Window(rules.window)

    @property
    def probing(self) -> bool:
        """Whether a probe decides. Right after ``admit`` was True: whether that call is it."""
        return self._out and self.state == "half_open"

    def configure(self, rules: BreakerRules) -> None:
        """Judge by other rules from now on; in a window of another length nothing has happened."""
        if rules.window != self.rules.window:
            self._outcomes, self._failures = Window(rules.window), Window(rules.window)
        self.rules = rules

    def wait(self, now: float) -> float:
        """Seconds until a call may go; 0.0: now."""
        if self.state == "closed":
            return 0.0
        if self.state == "open" and self.until > now:
            self.until = min(self.until, now + self.rules.longest)  # one restored may be beyond it
            return self.until - now
        return PROBE_SECONDS if self._out else 0.0

    def admit(self, now: float) -> bool:
        """Let a call go if ``wait`` is 0.0. ``probing`` then says whether it is the probe.

        If this ended the open time, ``pending`` is the transition.
        """
        if self.state == "closed":
            return True
        self.pending = None
        if self.wait(now):
            return False
        self._out = True
        if self.state == "open":
            self.pending = self._become("half_open", ELAPSED)
        return True

    def succeeded(self, now: float, probe: bool) -> Transition | None:
        """The upstream answered: a row of failures ends; a probe closes the breaker."""
        if probe:
            self._out = False
        if self.state == "closed":
            self._row = 0
            self._outcomes.add(now)
        elif probe and self.state == "half_open":
            return self._close(RECOVERED)
        return None

    def failed(self, now: float, reason: str, probe: bool) -> Transition | None:
        """The upstream failed. A call from before the breaker opened changes nothing any more."""
        if probe:
            self._out = False
        if self.state == "half_open" and probe:
            return self._open(now, reason)
        if self.state != "closed" or not self.rules.failures:
            return None
        self._row += 1
        self._outcomes.add(now)
        self._failures.add(now)
        return self._open(now, reason) if self._too_many(now) else None

    def gave_up(self, probe: bool) -> None:
        """The call ended and said nothing of the upstream's health; another may probe."""
        if probe:
            self._out = False

    def restore(self, state: State, until: float, openings: int) -> None:
        """Take a state that was stored. A breaker that never opens stays closed."""
        if not self.rules.failures:
            state = "closed"
        self._close(RESET)
        if state != "closed":
            self.state, self.openings = state, openings
            self.until = until if state == "open" else 0.0

    def reset(self, now: float) -> Transition | None:
        """Close it and forget all: somebody knows better. None if it was closed."""
        return self._close(RESET)

    def _too_many(self, now: float) -> bool:
        rules = self.rules
        if self._row >= rules.failures:
            return True
        outcomes = self._outcomes.total(now)
        return outcomes >= rules.minimum and self._failures.total(now) >= rules.rate * outcomes

    def _open(self, now: float, reason: str) -> Transition:
        rules = self.rules
        seconds = rules.open_for * 2.0 ** min(self.openings, _MAX_DOUBLINGS)
        self.openings += 1
        self.until = now + min(seconds, rules.longest)
        return self._become("open", reason)

    def _close(self, reason: str) -> Transition | None:
        self.openings = 0
        self.pending = None
        self._row = 0
        self._outcomes.clear()
        self._failures.clear()
        return None if self.state == "closed" else self._become("closed", reason)

    def _become(self, state: State, reason: str) -> Transition:
        before, self.state = self.state, state
        if state != "open":
            self.until = 0.0
        return Transition(
            before, state, reason, self.until if state == "open" else None, self.openings
        )
