"""How the models of one provider do: their breakers, their speed, and the calls under way."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from proxy.routing.breaker import Breaker, BreakerRules, Transition
from proxy.routing.latency import Latency

_MOST = 4096  # models of which something is held; clients may name any


class Turned(msgspec.Struct, frozen=True):
    """The breaker of a provider's model has changed its state."""

    provider: str
    model: str
    transition: Transition


class Health:
    """A breaker for each model that ever failed, latencies, and how many calls are under way."""

    def __init__(
        self, provider: str, rules: BreakerRules, changed: Callable[[Turned], None]
    ) -> None:
        self.breakers: dict[str, Breaker] = {}
        self._provider = provider
        self._rules = rules
        self._changed = changed
        self._latencies: dict[tuple[str, bool], dict[str, Latency]] = {}  # the latter by key
        self._busy: dict[str, int] = {}

    def configure(self, rules: BreakerRules) -> None:
        """Judge by these rules from now on."""
        self._rules = rules
        for breaker in self.breakers.values():
            breaker.configure(rules)

    @property
    def breaks(self) -> bool:
        """Whether a breaker may open at all."""
        return self._rules.failures > 0

    def wait(self, model: str, now: float) -> float:
        """Seconds until the breaker lets a call go; 0.0: now."""
        breaker = self.breakers.get(model)
        return 0.0 if breaker is None else breaker.wait(now)

    def begin(self, model: str, now: float) -> bool:
        """A call goes, as ``wait`` allowed; whether it is the one that decides over the breaker."""
        self._busy[model] = self._busy.get(model, 0) + 1
        breaker = self.breakers.get(model)
        if breaker is None or breaker.state == "closed":
            return False
        breaker.admit(now)
        self._tell(model, breaker.pending)
        return breaker.probing

    def end(self, model: str, probe: bool) -> None:
        """A call has ended; ``probe``: it was to decide, and said nothing."""
        busy = self._busy[model] - 1
        if busy:
            self._busy[model] = busy
        else:
            del self._busy[model]
        if probe:
            self.breaker(model).gave_up(probe)

    def succeeded(self, model: str, probe: bool, now: float) -> None:
        breaker = self.breakers.get(model)
        if breaker is not None:
            self._tell(model, breaker.succeeded(now, probe))

    def failed(self, model: str, reason: str, probe: bool, now: float) -> None:
        self._tell(model, self.breaker(model).failed(now, reason, probe))

    def breaker(self, model: str) -> Breaker:
        """The breaker of a model, made when it is first needed."""
        breaker = self.breakers.get(model)
        if breaker is None:
            if len(self.breakers) >= _MOST:
                kept = {m: b for m, b in self.breakers.items() if b.state != "closed"}
                self.breakers = kept if len(kept) < _MOST else {}
            breaker = self.breakers[model] = Breaker(self._rules)
        return breaker

    def troubled(self) -> bool:
        """Whether any breaker is open."""
        return any(breaker.state == "open" for breaker in self.breakers.values())

    def relieve(self, now: float) -> None:
        """The provider can be reached: where a breaker is open, a call may look at once."""
        for breaker in self.breakers.values():
            if breaker.state == "open":
                breaker.until = now

    def busy(self, model: str) -> int:
        """How many calls to a model are under way."""
        return self._busy.get(model, 0)

    def latency(self, key: str, model: str, stream: bool, now: float) -> float | None:
        """Seconds to the first token of late, with one key or ("") any; None: never measured."""
        return self.latencies((key,), model, stream, now)[0]

    def latencies(
        self, keys: Iterable[str], model: str, stream: bool, now: float
    ) -> list[float | None]:
        """The same for each of several keys."""
        known = self._latencies.get((model, stream))
        if known is None:
            return [None for _ in keys]
        return [None if (each := known.get(key)) is None else each.value(now) for key in keys]

    def measure(self, key: str, model: str, stream: bool, now: float, first: float | None) -> None:
        """Seconds to a first token; None: there was none, the call failed."""
        known = self._latencies.get((model, stream))
        if known is None:
            if len(self._latencies) >= _MOST:
                self._latencies.clear()
            known = self._latencies[model, stream] = {}
        latency = known.get(key)
        if latency is None:
            latency = known[key] = Latency()
        if first is None:
            latency.failed(now)
        else:
            latency.add(now, first)

    def _tell(self, model: str, transition: Transition | None) -> None:
        if transition is not None:
            self._changed(Turned(self._provider, model, transition))
