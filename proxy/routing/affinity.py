"""Which target a session is served by: the same one again, since it has cached the prompt so far.

``rendezvous`` needs no memory and is the same at every node; ``Affinity`` remembers where a session
went in the end, when that was not where the hash says.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from math import log


def rendezvous(session: str, names: Sequence[str], weights: Sequence[float]) -> int:
    """The index of the name that a session belongs to; there is at least one.

    Each name draws a number from the hash of the session and itself, and the highest wins
    (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998). When a name
    leaves, only its own sessions move. With the score ``-weight / ln(u)`` each wins in proportion
    to its weight (Schindelhauer and Schomaker, "Weighted distributed hash tables", 2005). A weight
    of 0 never wins over one above. The hash is BLAKE2b, so that all processes and nodes agree.
    """
    best, highest = 0, -1.0
    for index, name in enumerate(names):
        score = -weights[index] / log(_uniform(f"{session}\0{name}"))
        if score > highest:
            best, highest = index, score
    return best


def _uniform(text: str) -> float:
    """A number between 0 and 1, neither included: 52 bits of a hash, and half of the last one."""
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return ((int.from_bytes(digest) >> 12) + 0.5) / 2.0**52


class Affinity:
    """Remembers a name for each session, of the ``capacity`` sessions that were used last.

    One that was not used for ``ttl`` seconds is forgotten.
    """

    __slots__ = ("_capacity", "_kept", "_ttl")

    def __init__(self, capacity: int = 10_000, ttl: float = 3600.0) -> None:
        self._capacity = capacity
        self._ttl = ttl
        self._kept: OrderedDict[str, tuple[str, float]] = OrderedDict()  # the last used at the end

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, session: str, now: float) -> str | None:
        """The name that was kept for a session, which counts as a use."""
        kept = self._kept.get(session)
        if kept is None:
            return None
        name, used = kept
        if now - used >= self._ttl:
            del self._kept[session]
            return None
        self.keep(session, name, now)
        return name

    def keep(self, session: str, name: str, now: float) -> None:
        """Remember a name, in place of any other; the session not used for longest makes room."""
        kept = self._kept
        kept[session] = (name, now)
        kept.move_to_end(session)
        if len(kept) > self._capacity:
            kept.popitem(last=False)
