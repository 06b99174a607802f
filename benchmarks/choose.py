"""What choosing a key costs: 16 keys, 8 models, and everything that may stand in the way.

python benchmarks/choose.py        microseconds for each strategy, median and best of 25 rounds
"""

from __future__ import annotations

import statistics
import time

from proxy.routing.counters import Allowance, Allowances, Counters
from proxy.routing.key import Key
from proxy.routing.keypool import KeyPool, KeyStrategy
from proxy.routing.limits import DAY, MINUTE, Limit

KEYS, MODELS, ROUNDS, CALLS = 16, 8, 25, 2000
STRATEGIES: tuple[KeyStrategy, ...] = (
    *("least_busy", "weighted", "round_robin"),
    *("fallback", "sticky", "lowest_latency"),
)
TOLD = [
    (f"x-ratelimit-{figure}-{kind}".encode(), value)
    for kind in ("requests", "tokens")
    for figure, value in (("limit", b"9000000"), ("remaining", b"8999999"), ("reset", b"8ms"))
]


def pool(strategy: KeyStrategy) -> KeyPool:
    """Every group and model has limits a minute, a day and at a time, and has told of its own."""
    limits = (Limit("requests", 10**9, MINUTE), Limit("tokens", 10**12, DAY))
    each = Allowance(limits, concurrency=10**6)
    counters = Counters(None, time.time)
    groups = {f"org-{n}": each for n in range(KEYS)}
    counters.configure(Allowances(groups=groups, models={"*": each}))
    made = KeyPool("lab", [], counters, chance=lambda: 0.5)
    keys = [Key(f"k{n}", f"sk-{n}", f"org-{n}", 1 + n % 3) for n in range(KEYS)]
    made.configure(keys, strategy)
    now = time.perf_counter()
    for group in groups:
        for model in range(MODELS):
            counters.hear(group, f"m{model}", TOLD, now, now)
    return made


def measure(strategy: KeyStrategy) -> tuple[float, float]:
    """Median and least microseconds of one ``lease``."""
    keys = pool(strategy)
    models = [f"m{n}" for n in range(MODELS)]
    rounds = []
    for _ in range(ROUNDS):
        held = []
        begun = time.perf_counter()
        for n in range(CALLS):
            now = time.perf_counter()
            held.append(keys.lease(models[n % MODELS], now, tokens=100, session="s", stream=True))
        rounds.append((time.perf_counter() - begun) / CALLS * 1e6)
        for lease in held:
            assert lease is not None
            lease.succeeded(time.perf_counter(), 0.1)
            lease.release()
    return statistics.median(rounds), min(rounds)


def lines() -> list[str]:
    """A line for each strategy."""
    found = []
    for strategy in STRATEGIES:
        median, least = measure(strategy)
        found.append(f"{strategy} {median:.1f} us (best round {least:.1f})")
    return found


if __name__ == "__main__":
    print(f"Choosing one of {KEYS} keys, {MODELS} models:", ", ".join(lines()))
