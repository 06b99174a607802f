"""Who rests, for which models, until when and why: the cool-downs of one provider.

A rest ends by itself; a longer one is never shortened, and none is longer than ``longest``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

from proxy.errors import ErrorReason

BACKOFF = (10.0, 30.0, 60.0, 120.0, 300.0)
"""Seconds of a rest for which the provider gave no hint, by refusals in a row."""
KEY_SECONDS = 300.0
"""How long a key is out that the provider refused: it may be repaired meanwhile."""
LONGEST = 86_400.0
"""Seconds after which everything may be tried again, whatever a provider said."""
_MOST = 4096  # places remembered after their rests are over, for the count of refusals in a row

State = Literal["healthy", "cooling", "exhausted", "disabled"]
WORST: tuple[State, ...] = ("healthy", "cooling", "exhausted", "disabled")
_EXHAUSTED = (ErrorReason.QUOTA_EXCEEDED, ErrorReason.CREDIT)

Place = tuple[Literal["group", "key", "target"], str, str]
"""What rests: a quota group, a key, or the provider itself ("target"); its name ("" for the
provider); and the models: one by its name, "" for all, ``*:free`` for all that end so."""


class Rest(msgspec.Struct):
    """``count`` is refusals in a row. From ``probe_at`` on one call may look whether the limit is
    gone; if it is not, the next look is ``probe_wait`` seconds later, twice as long each time."""

    until: float
    reason: ErrorReason
    count: int
    state: State
    probe_at: float | None = None
    probe_wait: float = 0.0

    @property
    def opens(self) -> float:
        """When a call may go, if only to look."""
        return self.until if self.probe_at is None else min(self.until, self.probe_at)


class Rests:
    """The rests of one provider. ``version`` changes with every change of them."""

    def __init__(self, longest: float = LONGEST) -> None:
        self.longest = longest
        self.version = 0
        self._rests: dict[Place, Rest] = {}

    def __bool__(self) -> bool:
        return bool(self._rests)

    def order(
        self,
        place: Place,
        reason: ErrorReason,
        now: float,
        seconds: float | None,
        probe_after: float | None = None,
    ) -> Rest:
        """Let a place rest. ``seconds`` None or 0: the back-off's next step, since a provider that
        refuses and says "at once" would else be asked by every request.

        Calls that were under way together are refused together: only a refusal after a rest is
        over is one more in a row.
        """
        known = self._rests.get(place)
        old = self.at(place, now)
        count = 1 if known is None else known.count + (old is None)
        if not seconds:
            seconds = KEY_SECONDS if place[0] == "key" else BACKOFF[min(count, len(BACKOFF)) - 1]
        rest = Rest(now + min(seconds, self.longest), reason, count, state_of(place, reason))
        if probe_after is not None and probe_after < seconds:
            rest.probe_at, rest.probe_wait = now + probe_after, probe_after
            if old is not None and old.probe_at is not None:  # who looked in vain looks less often
                rest.probe_at = max(rest.probe_at, old.probe_at)
                rest.probe_wait = max(rest.probe_wait, old.probe_wait)
        return self.keep(place, rest, now)

    def keep(self, place: Place, rest: Rest, now: float) -> Rest:
        """Take a rest as it is, from the database or from another gateway, unless one that is
        under way is longer; which of the two holds."""
        rest.until = min(rest.until, now + self.longest)
        old = self.at(place, now)
        if old is not None and old.until >= rest.until:
            return old
        if len(self._rests) >= _MOST:
            self._forget(now)
        self._rests[place] = rest
        self.version += 1
        return rest

    def of(self, key: str, group: str, model: str, now: float) -> Rest | None:
        """The longest rest that keeps a key from a model; None if it may be used."""
        longest: Rest | None = None
        if self._rests:
            for place in places(key, group, model):
                rest = self._rests.get(place)
                if rest is not None and rest.until > now:
                    longest = rest if longest is None or rest.until > longest.until else longest
        return longest

    def wait(self, key: str, group: str, model: str, now: float) -> float:
        """Seconds until a key may be used for a model, if only to look; 0.0: now."""
        rests = self._under_way(key, group, model, now)
        return max(0.0, max((rest.opens for _, rest in rests), default=now) - now)

    def scout(self, key: str, group: str, model: str, now: float) -> list[tuple[Place, Rest]]:
        """A call goes to look whether these rests are over: the next that does goes later."""
        scouted = list(self._under_way(key, group, model, now))
        for _, rest in scouted:
            rest.probe_wait *= 2
            rest.probe_at = now + rest.probe_wait
        return scouted

    def unscout(self, scouted: Iterable[tuple[Place, Rest]]) -> None:
        """That call was never made: another may look at once."""
        for _, rest in scouted:
            if rest.probe_at is not None:
                rest.probe_at -= rest.probe_wait
            rest.probe_wait /= 2

    def at(self, place: Place, now: float) -> Rest | None:
        """The rest of one place, if it is not over."""
        rest = self._rests.get(place)
        return rest if rest is not None and rest.until > now else None

    def lift(self, *lifted: Place) -> list[Place]:
        """End the rests of these places, and forget their refusals; those that there were."""
        found = [place for place in lifted if self._rests.pop(place, None) is not None]
        if found:
            self.version += 1
        return found

    def over(self, key: str, group: str, model: str, now: float) -> None:
        """A call went well: where no rest is under way, refusals in a row start again at none."""
        for place in (*places(key, group, model), ("target", "", model)):
            rest = self._rests.get(place)
            if rest is not None and rest.until <= now:
                del self._rests[place]

    @property
    def places(self) -> list[Place]:
        """All that rest, or whose refusals in a row are remembered."""
        return list(self._rests)

    def current(self, now: float) -> Iterator[tuple[Place, Rest]]:
        """All rests that are under way."""
        return ((place, rest) for place, rest in self._rests.items() if rest.until > now)

    def _under_way(
        self, key: str, group: str, model: str, now: float
    ) -> Iterator[tuple[Place, Rest]]:
        for place in places(key, group, model):
            rest = self._rests.get(place)
            if rest is not None and rest.until > now:
                yield place, rest

    def _forget(self, now: float) -> None:
        """Keep the longest of the rests that are under way, and first those for all models."""
        kept = dict(self.current(now))
        longest = sorted(kept, key=lambda place: (not place[2], kept[place].until))[-_MOST // 2 :]
        self._rests = {place: kept[place] for place in longest}


def places(key: str, group: str, model: str) -> tuple[Place, ...]:
    """Every place where a rest would keep this key from this model."""
    found: tuple[Place, ...] = (("group", group, model), ("group", group, ""), ("key", key, ""))
    family = model.rpartition(":")[2]
    return found if family == model else (*found, ("group", group, f"*:{family}"))


def state_of(place: Place, reason: ErrorReason) -> State:
    """How a person would call it: a key that is refused is out, a day's quota exhausted."""
    if place[0] == "key":
        return "disabled"
    return "exhausted" if reason in _EXHAUSTED else "cooling"
