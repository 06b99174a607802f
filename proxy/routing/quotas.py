"""What a client, a user or a tag may use: requests and tokens in windows, and calls at a time.

The counters are those of the keys. A call is counted as it comes in, its tokens by an estimate; as
it ends they are corrected by what it used, and all of it is given back if nobody was asked.
Everything is synchronous; times are seconds of the monotonic clock, given by the caller.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

from proxy.clients import UNLIMITED, ClientLimits, Holder
from proxy.routing.counters import admit
from proxy.routing.limits import DAY, HOUR, MINUTE, Counter, Limit, Sliding, Slots

GUESS = 1000
"""Tokens of an answer whose length nobody has limited, or a tenth of the tightest limit."""

BELIEVED = 1.0
"""Seconds for which nobody asks again after the others had used a window up: a call that is counted
there may yet be turned away by another limit, and be given back."""

Kind = Literal["requests", "tokens"]
_WINDOWS: dict[str, tuple[Kind, int]] = {
    "rpm": ("requests", MINUTE),
    "rph": ("requests", HOUR),
    "rpd": ("requests", DAY),
    "tpm": ("tokens", MINUTE),
    "tph": ("tokens", HOUR),
    "tpd": ("tokens", DAY),
}
"""What each limit counts, and in how many seconds."""


class Shortage(msgspec.Struct, frozen=True):
    """The limit that says no the longest: what is used of it, what the call needs, and the seconds
    until there is room."""

    limit: str
    amount: int
    used: int
    needs: int
    wait: float


class Standing(msgspec.Struct, frozen=True):
    """The window of a kind in which the least is left; ``reset`` is the seconds until all is."""

    kind: Kind
    amount: int
    remaining: int
    reset: float


class Use(msgspec.Struct, eq=False):
    """A call that was let in. It counts as under way until it is over; only the first end counts.

    ``tokens`` is what it was expected to use.
    """

    counters: tuple[Counter, ...]
    taken: float
    tokens: int
    over: bool = False

    def end(self, used: int | None) -> None:
        """It was made, and used so many tokens; None: as far as anybody knows, as expected."""
        if not self.over:
            self.over = True
            for counter in self.counters:
                counter.ended(self.taken, self.tokens, used)

    def undo(self) -> None:
        """It was never made."""
        if not self.over:
            self.over = True
            for counter in self.counters:
                counter.undone(self.taken, self.tokens)


class Quota:
    """What one of them may use, and has used. ``windows`` bear the names of their limits."""

    def __init__(self, owner: str) -> None:
        self.limits = UNLIMITED
        self.windows: dict[str, Sliding] = {}
        self.slots = Slots(f"{owner}:parallel", sys.maxsize)
        self._owner = owner
        self._counters: tuple[Counter, ...] = (self.slots,)
        self._by_kind: list[tuple[Kind, list[Sliding]]] = []
        self._most = self._guess = 0
        self._others: dict[Sliding, int] = {}  # what others use of a window, as last heard
        self._ends: dict[Sliding, float] = {}  # until when they said that it is used up

    def allow(self, limits: ClientLimits, part: float) -> None:
        """Hold to these limits, and to this part of each. What was counted stays counted."""
        self.limits = limits
        before, self.windows = self.windows, {}
        self._others.clear()
        for name, (kind, seconds) in _WINDOWS.items():
            amount = getattr(limits, name)
            if amount is not None:
                limit = Limit(kind, amount, seconds)
                window = before.get(name) or Sliding(f"{self._owner}:{kind}:{seconds}", limit)
                window.allow(limit, part)
                self.windows[name] = window
        parallel = limits.parallel
        self.slots.amount = sys.maxsize if parallel is None else max(1, int(parallel * part))
        self._counters = (self.slots, *self.windows.values())
        kinds: dict[Kind, list[Sliding]] = {}
        for window in self.windows.values():
            kinds.setdefault(window.limit.kind, []).append(window)
        self._by_kind = list(kinds.items())
        rooms = [window.room for window in kinds.get("tokens", ())]
        self._most = max(rooms, default=0)
        self._guess = min(GUESS, min(rooms, default=0) // 10)

    def expects(self, prompt: int, answer: int | None) -> int:
        """The tokens to count for a call that asks for ``answer`` at most; None: for no maximum.

        Never more than the largest limit: what nobody can have need not be waited for.
        """
        return min(prompt + (self._guess if answer is None else answer), self._most)

    def take(self, now: float, tokens: int) -> Use | Shortage:
        """Count a call that is expected to use so many tokens, or say why not."""
        if admit(self._counters, now, tokens) is None:
            return Use(self._counters, now, tokens)
        return self.shortage(now, tokens)

    def shortage(self, now: float, tokens: int) -> Shortage:
        """What the call would have to wait for the longest."""
        name, slots = "parallel", self.slots
        worst = Shortage(name, slots.amount, slots.used, 1, slots.wait(now, tokens))
        for name, window in self.windows.items():
            wait = window.wait(now, tokens)
            if window.blocked_until > now:
                wait = max(wait, self._ends.get(window, 0.0) - now)
            if wait > worst.wait:
                used = window.room if window.blocked_until > now else window.used
                needs = tokens if window.limit.kind == "tokens" else 1
                worst = Shortage(name, window.room, used, needs, wait)
        return worst

    def hear(self, windows: Iterable[Sliding], used: Iterable[int]) -> None:
        """What these windows hold by now, of all who share them."""
        for window, together in zip(windows, used, strict=False):
            self._others[window] = max(0, together - window.used)

    def denied(self, window_name: str, wait: float, now: float, tokens: int) -> Shortage:
        """With what others use, a window has no room for a call, for so many seconds.

        Where it counts requests nobody is let in until then. Of tokens a smaller call may need
        less, so each is asked for; used is what is known of, as much at least as must be.
        """
        for name, window in self.windows.items():
            if window.name == window_name and window.limit.kind == "tokens":
                amount, known = window.limit.amount, window.used + self._others.get(window, 0)
                return Shortage(name, amount, max(known, amount - tokens + 1), tokens, wait)
            if window.name == window_name:
                window.blocked_until = now + min(wait, BELIEVED)
                self._ends[window] = now + wait
        return self.shortage(now, tokens)

    def standings(self, now: float) -> list[Standing]:
        """How things stand, for requests and for tokens, where these are limited."""
        found = []
        for kind, windows in self._by_kind:
            tightest, remaining, reset = windows[0], sys.maxsize, 0.0
            for window in windows:
                resets = window.resets(now)  # and lets go of what no longer counts
                left = window.room - window.used - self._others.get(window, 0)
                if left < remaining:
                    tightest, remaining, reset = window, left, resets
            if tightest.blocked_until > now:
                remaining, reset = 0, max(reset, self._ends.get(tightest, now) - now)
            found.append(Standing(kind, tightest.limit.amount, max(0, remaining), reset))
        return found

    def replay(self, seconds: int, when: float, requests: int, tokens: int, now: float) -> None:
        """Count what was used before this process began."""
        for window in self.windows.values():
            if window.limit.seconds == seconds:
                window.forget(now)
                window.add(when, tokens if window.limit.kind == "tokens" else requests)


class Quotas:
    """The quotas of all that this process has met."""

    def __init__(self) -> None:
        self._of: dict[Holder, Quota] = {}
        self._part = 1.0

    def of(self, holder: Holder, limits: ClientLimits) -> Quota:
        """The quota of somebody, by the limits that there are now."""
        quota = self._of.get(holder)
        if quota is None:
            quota = self._of[holder] = Quota(":".join(holder))
        if quota.limits is not limits:
            quota.allow(limits, self._part)
        return quota

    def share(self, part: float) -> None:
        """Use only this part of each limit, because others use the rest unseen."""
        self._part = part
        for quota in self._of.values():
            quota.allow(quota.limits, part)

    def windows(self) -> Iterator[Sliding]:
        """All that is counted in windows."""
        return (window for quota in self._of.values() for window in quota.windows.values())
