"""What a call cost, in integer nano-dollars.

    provider    the provider itself said so (OpenRouter's ``usage.cost``)
    config      the user's own table, or a provider whose calls are free
    catalog     the public catalogue of list prices (``proxy.metering.catalog``)
    none        not known

The catalogue takes some 40 MB, so it is never loaded here: a child process is asked for the
rates of a model once, and every call after that is a multiplication.

Only tokens are priced, at the rates for text. What a provider charges for audio, images, searches
or a service tier is only in the cost that it reports itself.
"""

from __future__ import annotations

import asyncio
import fnmatch
import logging
import math
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from proxy.clock import monotonic
from proxy.types import Usage

CostSource = Literal["provider", "config", "catalog", "none"]
Pair = tuple[str, str]

_PER_MILLION = 1_000_000
_CHILD_LIMIT = 20.0  # seconds; it needs about 0.3
_FRESH = 3600.0  # seconds: list prices change by the day, some by the hour
_RETRY = 60.0  # seconds until a catalogue that could not be asked is asked again
_CAPACITY = 8192  # models remembered; names come from clients, so there must be an end
_ROOT = Path(__file__).parents[2]

_log = logging.getLogger("tollkeeper.prices")


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """Rates in integer nano-dollars per million tokens: 0.59 USD a million is 590,000,000.

    Nine decimals of a dollar a million: prices as they are published are exact. None is not
    known; where a cache rate is None, cached tokens cost what other input costs.
    """

    input: int | None = None
    output: int | None = None
    cache_read: int | None = None
    cache_write: int | None = None


class Tier(Level, frozen=True, kw_only=True):
    """The rates of a whole call whose input is longer than ``above`` tokens."""

    above: int


class Rates(Level, frozen=True, kw_only=True):
    """The rates of one model. ``tiers`` rise by ``above``; ``version`` names the catalogue."""

    tiers: tuple[Tier, ...] = ()
    source: Literal["config", "catalog"] = "catalog"
    version: str | None = None


class Quote(msgspec.Struct, frozen=True):
    """The cost of one call and where it comes from: the ``cost_*`` columns of its row."""

    cost_nano_usd: int | None
    cost_source: CostSource
    price_version: str | None


class Price(Protocol):
    """An entry of the user's table, in US dollars per million tokens."""

    @property
    def input(self) -> Decimal | float | None: ...
    @property
    def output(self) -> Decimal | float | None: ...
    @property
    def cached_input(self) -> Decimal | float | None: ...
    @property
    def cache_write(self) -> Decimal | float | None: ...


_FREE = Rates(input=0, output=0, source="config")
_UNPRICED = Quote(None, "none", None)


def nano_dollars(usd: Decimal | float | None) -> int | None:
    """Dollars as nano-dollars, half up. A float counts as the decimal that it prints as."""
    if usd is None:
        return None
    exact = usd if isinstance(usd, Decimal) else Decimal(str(usd))
    return int(exact.scaleb(9).to_integral_value(ROUND_HALF_UP))


def cost(usage: Usage, rates: Rates) -> int | None:
    """The cost in nano-dollars: exact sums, rounded once at the end, half up; never negative.

    Counts are inclusive: cached tokens are inside the input, reasoning inside the output. None
    if a count or a rate that matters is not known; a count matters only where it costs something.
    """
    level: Level = rates
    if rates.tiers:
        if usage.input_tokens is None:
            return None
        for tier in rates.tiers:
            if usage.input_tokens > tier.above:
                level = tier
    paid_in = _input_cost(usage, level)
    paid_out = _product(usage.output_tokens, level.output)
    if paid_in is None or paid_out is None:
        return None
    return (paid_in + paid_out + _PER_MILLION // 2) // _PER_MILLION


def _input_cost(usage: Usage, level: Level) -> int | None:
    """The input with its cached shares, times a million."""
    total, rate = usage.input_tokens, level.input
    if total is None and (level.cache_read or level.cache_write):
        return None
    if not total or total < 0 or rate is None:
        return _product(total, rate)
    # A provider that counts cached tokens beside the input and not inside is held to the input.
    read = min(max(usage.cached_tokens or 0, 0), total)
    write = min(max(usage.cache_write_tokens or 0, 0), total - read)
    read_rate = rate if level.cache_read is None else level.cache_read
    write_rate = rate if level.cache_write is None else level.cache_write
    return (total - read - write) * rate + read * read_rate + write * write_rate


def _product(count: int | None, rate: int | None) -> int | None:
    if rate is None:
        return None if count else 0
    if count is None or count < 0:
        return None if rate else 0
    return count * rate


class Prices:
    """Prices of all models in use, one event loop's own.

    ``table`` is the user's (keys "provider/model", or with ``*``, ``?`` and ``[``, where ``*``
    matches slashes too); ``references`` names each provider in the catalogue (its id there, or an
    https address; None: not listed); the providers in ``free`` cost nothing.
    """

    def __init__(
        self,
        table: Mapping[str, Price],
        references: Mapping[str, str | None],
        free: frozenset[str] = frozenset(),
    ) -> None:
        self._lock = asyncio.Lock()
        self.configure(table, references, free)

    def configure(
        self,
        table: Mapping[str, Price],
        references: Mapping[str, str | None],
        free: frozenset[str] = frozenset(),
    ) -> None:
        """Go by these from now on; the catalogue is asked anew."""
        self._exact: dict[str, Rates] = {}
        self._globs: list[tuple[re.Pattern[str], Rates]] = []
        for key, price in sorted(table.items(), key=lambda item: -len(item[0])):
            if any(mark in key for mark in "*?["):
                self._globs.append((re.compile(fnmatch.translate(key)), _table_rates(price)))
            else:
                provider, _, model = key.partition("/")
                self._exact[_name(provider, model)] = _table_rates(price)
        self._references = references
        self._free = free
        self._known: dict[Pair, tuple[Rates | None, float]] = {}  # rates, good until

    def quote(self, provider: str, model: str, usage: Usage | None) -> Quote | None:
        """The cost of a call; None while the catalogue has yet to be asked for this model.

        After ``resolve`` of the same pair the answer is not None for a minute at least.
        """
        if usage is None:
            return _UNPRICED
        reported = usage.cost_nano_usd
        if reported is not None and reported >= 0:
            return Quote(reported, "provider", None)
        if usage.input_tokens is None and usage.output_tokens is None:
            return _UNPRICED
        entry = self._known.get((provider, model)) or self._without_asking(provider, model)
        if entry is None or entry[1] < monotonic():
            return None
        rates = entry[0]
        amount = None if rates is None else cost(usage, rates)
        if rates is None or amount is None:
            return _UNPRICED
        return Quote(amount, rates.source, rates.version)

    def rates(self, provider: str, model: str) -> Rates | None:
        """What is known now about a model's price; never asks the catalogue."""
        entry = self._known.get((provider, model)) or self._without_asking(provider, model)
        return None if entry is None else entry[0]

    async def resolve(self, pairs: Collection[Pair]) -> None:
        """Ask the catalogue for the (provider, model) pairs that are not known yet; never raises.

        Pairs whose rates are out of date are asked again on the way. If the catalogue cannot be
        asked, what was known stays, and the next try is a minute away.
        """
        async with self._lock:
            now = monotonic()
            stale = [pair for pair, (rates, until) in self._known.items() if rates and until < now]
            due = [pair for pair in dict.fromkeys([*pairs, *stale]) if self._is_due(pair, now)]
            if not due:
                return
            asked = [(self._references.get(provider) or "", model) for provider, model in due]
            try:
                answers = await look_up(asked)
                until = monotonic() + _FRESH
            except (OSError, ValueError, msgspec.MsgspecError) as error:
                _log.warning("the price catalogue could not be asked: %s", error or repr(error))
                answers = [self.rates(*pair) for pair in due]
                until = monotonic() + _RETRY
            for pair, rates in zip(due, answers, strict=True):
                self._keep(pair, rates, until)

    def _is_due(self, pair: Pair, now: float) -> bool:
        entry = self._known.get(pair) or self._without_asking(*pair)
        return entry is None or entry[1] < now

    def _without_asking(self, provider: str, model: str) -> tuple[Rates | None, float] | None:
        """The user's word, free, or unlisted; None if it is for the catalogue to say."""
        name = _name(provider, model)
        rates = self._exact.get(name)
        if rates is None:
            rates = next((rates for glob, rates in self._globs if glob.match(name)), None)
        if rates is None and provider in self._free:
            rates = _FREE
        if rates is None and self._references.get(provider):
            return None
        return self._keep((provider, model), rates, math.inf)

    def _keep(self, pair: Pair, rates: Rates | None, until: float) -> tuple[Rates | None, float]:
        if pair not in self._known and len(self._known) >= _CAPACITY:
            del self._known[next(iter(self._known))]
        entry = self._known[pair] = (rates, until)
        return entry


def _name(provider: str, model: str) -> str:
    # Gemini lists its models as "models/gemini-..." and takes and answers them without.
    return f"{provider}/{model.removeprefix('models/')}"


def _table_rates(price: Price) -> Rates:
    return Rates(
        input=nano_dollars(price.input),
        output=nano_dollars(price.output),
        cache_read=nano_dollars(price.cached_input),
        cache_write=nano_dollars(price.cache_write),
        source="config",
    )


async def look_up(pairs: Sequence[Pair]) -> list[Rates | None]:
    """The catalogue's rates for (reference, model) pairs, in their order, by a child process.

    Raises OSError if the child cannot be started, fails or takes longer than 20 s, and
    msgspec.DecodeError or ValueError if its answer is not what was asked for.
    """
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "proxy.metering.catalog",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=_ROOT,  # else a folder named "proxy" where the gateway was started would be run
    )
    try:
        async with asyncio.timeout(_CHILD_LIMIT):
            output, complaint = await child.communicate(msgspec.json.encode(pairs) + b"\n")
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode != 0:
        last = complaint.decode(errors="replace").strip().rpartition("\n")[2]
        raise ChildProcessError(f"it ended with status {child.returncode}: {last}")
    answers = msgspec.json.decode(output, type=list[Rates | None])
    if len(answers) != len(pairs):
        raise ValueError(f"{len(answers)} answers to {len(pairs)} questions")
    return answers
