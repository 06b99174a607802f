"""What a call cost, in integer nano-dollars.

    provider    the provider itself said so (OpenRouter's ``usage.cost``)
    config      a key on a free tier, the user's own table, or a provider whose calls are free
    catalog     the public catalogue of list prices (``proxy.metering.catalog``)
    none        not known

Beside the cost stands the list cost: what the catalogue says that the call costs whoever pays for
it. The catalogue takes some 40 MB, so it is never loaded here: a child process is asked for the
rates of a model once, and every call after that is a multiplication.

Only tokens are priced. What a provider charges for searches or a service tier is only in the cost
that it reports itself.
"""

from __future__ import annotations

import asyncio
import fnmatch
import hashlib
import logging
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import msgspec

from proxy.bounds import MOST_NANO_USD
from proxy.clock import monotonic
from proxy.types import Target, Usage

CostSource = Literal["provider", "config", "catalog", "none"]
Pair = tuple[str, str]
_Known = TypeVar("_Known")

_PER_MILLION = 1_000_000
_CHILD_LIMIT = 20.0  # seconds; it needs about 0.3
_FRESH = 3600.0  # seconds: list prices change by the day, some by the hour
_RETRY = 60.0  # seconds until a catalogue that could not be asked is asked again
_CAPACITY = 8192  # models remembered; names come from clients, so there must be an end
_ROOT = Path(__file__).parents[2]

_log = logging.getLogger("tollkeeper.prices")


class Level(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Rates in integer nano-dollars per million tokens: 0.59 USD a million is 590,000,000.

    Nine decimals of a dollar a million: prices as they are published are exact. None is not
    known; where the rate of a share is None, its tokens cost what the others of its side cost.
    """

    input: int | None = None
    output: int | None = None
    cache_read: int | None = None
    cache_write: int | None = None
    input_audio: int | None = None
    input_image: int | None = None
    output_audio: int | None = None
    output_image: int | None = None
    reasoning: int | None = None


class Tier(Level, frozen=True, kw_only=True):
    """The rates of a whole call whose input is longer than ``above`` tokens."""

    above: int


class Rates(Level, frozen=True, kw_only=True):
    """The rates of one model. ``tiers`` rise by ``above``; ``version`` says which price this is:
    the catalogue's release and date, or a digest of what was configured."""

    tiers: tuple[Tier, ...] = ()
    source: Literal["config", "catalog"] = "catalog"
    version: str | None = None

    def level(self, input_tokens: int) -> Level:
        """The rates of a call with so many input tokens."""
        level: Level = self
        for tier in self.tiers:
            if input_tokens > tier.above:
                level = tier
        return level


class Quote(msgspec.Struct, frozen=True):
    """What one call cost, who says so, and what it costs by the list: columns of its row."""

    cost_nano_usd: int | None
    cost_source: CostSource
    price_version: str | None
    list_cost_nano_usd: int | None = None


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
    @property
    def input_audio(self) -> Decimal | float | None: ...
    @property
    def output_audio(self) -> Decimal | float | None: ...


Free = Mapping[tuple[str, str | None], bool]
"""Whether calls of a (provider, key) are free, where that is said of the key; of (provider, None)
for its other keys and for calls that name none."""

_NOBODY: Free = {}
_FREE = Rates(input=0, output=0, source="config", version="config")
_UNPRICED = Quote(None, "none", None)
_FREE_MODEL = ":free"


def nano_dollars(usd: Decimal | float | None) -> int | None:
    """Dollars as nano-dollars, half up. A float counts as the decimal that it prints as."""
    if usd is None:
        return None
    exact = usd if isinstance(usd, Decimal) else Decimal(str(usd))
    return int(exact.scaleb(9).to_integral_value(ROUND_HALF_UP))


def cost(usage: Usage, rates: Rates) -> int | None:
    """The cost in nano-dollars: exact sums, rounded once at the end, half up; never negative.

    Counts are inclusive: cached tokens are inside the input, reasoning inside the output. None
    if a count or a rate that matters is not known (a count matters only where it costs something),
    or if it is more than a call can cost.
    """
    if rates.tiers and usage.input_tokens is None:
        return None
    return cost_at(usage, rates.level(usage.input_tokens or 0))


def cost_at(usage: Usage, level: Level) -> int | None:
    """The cost at rates that are settled: also of the sums of many calls, all at this level."""
    paid_in = _side(
        usage.input_tokens,
        level.input,
        (usage.cached_tokens, level.cache_read),
        (usage.cache_write_tokens, level.cache_write),
        (usage.input_audio_tokens, level.input_audio),
        (usage.input_image_tokens, level.input_image),
    )
    paid_out = _side(
        usage.output_tokens,
        level.output,
        (usage.output_audio_tokens, level.output_audio),
        (usage.output_image_tokens, level.output_image),
        (usage.reasoning_tokens, level.reasoning),
    )
    return _rounded(paid_in, paid_out)


def _rounded(paid_in: int | None, paid_out: int | None) -> int | None:
    """The sum of both sides, each a million times what it costs."""
    if paid_in is None or paid_out is None:
        return None
    paid = (paid_in + paid_out + _PER_MILLION // 2) // _PER_MILLION
    return paid if paid <= MOST_NANO_USD else None


def _side(
    total: int | None, rate: int | None, *shares: tuple[int | None, int | None]
) -> int | None:
    """One side of a call with its shares, each a count and its rate, times a million.

    Shares that overlap, or that are more than the whole, are held to it: the first come first.
    """
    if total is None and any(share_rate for _, share_rate in shares):
        return None
    if not total or total < 0 or rate is None:
        return _product(total, rate)
    left, paid = total, 0
    for count, share_rate in shares:
        if count and count > 0:
            taken = min(count, left)
            left -= taken
            paid += taken * (rate if share_rate is None else share_rate)
    return paid + left * rate


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
    https address; None: not listed); ``free`` says whose calls cost nothing. A key that is said to
    be free beats the table, a provider does not.
    """

    def __init__(
        self, table: Mapping[str, Price], references: Mapping[str, str | None], free: Free = _NOBODY
    ) -> None:
        self._lock = asyncio.Lock()
        self._wanted: dict[Pair, None] = {}  # by those who wait for the catalogue
        self.configure(table, references, free)

    def configure(
        self, table: Mapping[str, Price], references: Mapping[str, str | None], free: Free = _NOBODY
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
        self._own: dict[Pair, Rates | None] = {}  # what the table says, where it was looked up
        self._listed: dict[Pair, tuple[Rates | None, float]] = {}  # the catalogue, good until

    def quote(
        self, provider: str, model: str, usage: Usage | None, key: str | None = None
    ) -> Quote | None:
        """The cost of a call; None while the catalogue has yet to be asked what this model costs.

        After ``resolve`` of the same pair the answer is not None for a minute at least, and the
        list cost, which may come later than the cost, is what the catalogue says.
        """
        if usage is None:
            return _UNPRICED
        listed = self._list_rates(provider, model)
        reported = usage.cost_nano_usd
        if reported is not None and reported >= 0:
            return Quote(
                reported, "provider", None, None if listed is None else cost(usage, listed)
            )
        if usage.input_tokens is None and usage.output_tokens is None:
            return _UNPRICED
        rates = self._configured(provider, model, key)
        if rates is None and self._references.get(provider):
            entry = self._listed.get((provider, model))
            if entry is None or entry[1] < monotonic():
                return None
            rates = entry[0]
        amount = None if rates is None else cost(usage, rates)
        by_list = amount
        if listed is not rates:
            by_list = None if listed is None else cost(usage, listed)
        if rates is None or amount is None:
            return Quote(None, "none", None, by_list)
        return Quote(amount, rates.source, rates.version, by_list)

    def estimate(self, target: Target, given: int, made: int) -> int | None:
        """Nano-dollars of a prompt and an answer; None where nobody knows, or not yet."""
        rates = self._configured(target.provider, target.model, None)
        if rates is None and self._references.get(target.provider):
            rates, until = self._listed.get((target.provider, target.model), (None, 0.0))
            if until < monotonic():
                return None
        if rates is None:
            return None
        level = rates.level(given)
        return _rounded(_product(given, level.input), _product(made, level.output))

    def rates(self, provider: str, model: str, key: str | None = None) -> Rates | None:
        """What is known now about a model's price with a key; never asks the catalogue."""
        own = self._configured(provider, model, key)
        return own if own is not None else self._listed.get((provider, model), (None,))[0]

    async def resolve(self, pairs: Collection[Pair]) -> bool:
        """Ask the catalogue for the (provider, model) pairs that are not known yet; never raises.

        Pairs whose rates are out of date are asked again on the way. If the catalogue cannot be
        asked, what was known stays, the next try is a minute away, and False is returned.
        """
        paid = [(provider, _paid(model)) for provider, model in pairs]
        own = dict.fromkeys([*pairs, *paid])
        self._wanted.update(own)  # whoever asks next asks for everybody
        async with self._lock:
            now = monotonic()
            stale = [pair for pair, (rates, until) in self._listed.items() if rates and until < now]
            wanted, self._wanted = own | self._wanted | dict.fromkeys(stale), {}
            due = [pair for pair in wanted if self._is_due(pair, now)]
            if not due:
                return True
            asked = [(self._references.get(provider) or "", model) for provider, model in due]
            answered = True
            try:
                answers = await look_up(asked)
                until = monotonic() + _FRESH
            except (OSError, ValueError, msgspec.MsgspecError) as error:
                _log.warning("the price catalogue could not be asked: %s", error or repr(error))
                answers = [self._listed.get(pair, (None,))[0] for pair in due]
                until = monotonic() + _RETRY
                answered = False
            for pair, rates in zip(due, answers, strict=True):
                _keep(self._listed, pair, (rates, until))
            return answered

    def _is_due(self, pair: Pair, now: float) -> bool:
        entry = self._listed.get(pair)
        return bool(self._references.get(pair[0])) and (entry is None or entry[1] < now)

    def _list_rates(self, provider: str, model: str) -> Rates | None:
        """The catalogue's rates of the model where it is paid for; None where nobody knows."""
        rates, until = self._listed.get((provider, _paid(model)), (None, 0.0))
        return rates if until >= monotonic() else None

    def _configured(self, provider: str, model: str, key: str | None) -> Rates | None:
        """The user's word; None if it is for the catalogue to say."""
        of_key = None if key is None else self._free.get((provider, key))
        if of_key:
            return _FREE
        pair = (provider, model)
        if pair not in self._own:
            name = _name(provider, model)
            rates = self._exact.get(name)
            if rates is None:
                rates = next((rates for glob, rates in self._globs if glob.match(name)), None)
            _keep(self._own, pair, rates)
        own = self._own[pair]
        if own is None and of_key is None and self._free.get((provider, None)):
            return _FREE
        return own


def _keep(known: dict[Pair, _Known], pair: Pair, value: _Known) -> None:
    """Remember it; of too many the oldest is forgotten."""
    if pair not in known and len(known) >= _CAPACITY:
        del known[next(iter(known))]
    known[pair] = value


def _paid(model: str) -> str:
    """The model of which a free variant is one: OpenRouter names them so."""
    return model.removesuffix(_FREE_MODEL)


def _name(provider: str, model: str) -> str:
    # Gemini lists its models as "models/gemini-..." and takes and answers them without.
    return f"{provider}/{model.removeprefix('models/')}"


def _table_rates(price: Price) -> Rates:
    rates = Rates(
        input=nano_dollars(price.input),
        output=nano_dollars(price.output),
        cache_read=nano_dollars(price.cached_input),
        cache_write=nano_dollars(price.cache_write),
        input_audio=nano_dollars(price.input_audio),
        output_audio=nano_dollars(price.output_audio),
        source="config",
    )
    digest = hashlib.sha256(msgspec.json.encode(rates)).hexdigest()[:8]
    return msgspec.structs.replace(rates, version=f"config {digest}")


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
