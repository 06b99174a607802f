"""What a call cost, in integer nano-dollars.

    provider    the provider itself said so (OpenRouter's ``usage.cost``)
    config      a key on a free tier, the user's own table, or a provider whose calls are free
    catalog     the public catalogue of list prices (``proxy.metering.catalog``)
    none        not known

Beside the cost stands the list cost: what the catalogue says that the call costs whoever pays for
it. The catalogue takes some 40 MB, so it is never loaded here: a child process is asked for the
rates of a model once, and every call after that is a multiplication.
"""

from __future__ import annotations

import asyncio
import fnmatch
import hashlib
import logging
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import msgspec

from proxy.clock import monotonic
from proxy.metering.rates import Rates, at_most, cost, nano_dollars
from proxy.types import Target, Usage

CostSource = Literal["provider", "config", "catalog", "none"]
Pair = tuple[str, str]
_Known = TypeVar("_Known")

_CHILD_LIMIT = 20.0  # seconds; it needs about 0.3
_FRESH = 3600.0  # seconds: list prices change by the day, some by the hour
_RETRY = 60.0  # seconds until a catalogue that could not be asked is asked again
_CAPACITY = 8192  # models remembered; names come from clients, so there must be an end
_ROOT = Path(__file__).parents[2]

_log = logging.getLogger("tollkeeper.prices")


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
_NO_KEYS: Mapping[str, str] = {}
_FREE = Rates(input=0, output=0, source="config", version="config")
_UNPRICED = Quote(None, "none", None)
_FREE_MODEL = ":free"


class Prices:
    """Prices of all models in use, one event loop's own.

    ``table`` is the user's (keys "provider/model", or with ``*``, ``?`` and ``[``, where ``*``
    matches slashes too); ``references`` names each provider in the catalogue (its id there, or an
    https address; None: not listed); ``free`` says whose calls cost nothing. A key that is said to
    be free beats the table, a provider does not. ``dearest`` names a key with which calls cost
    most, for each provider where its keys differ from itself.
    """

    def __init__(
        self,
        table: Mapping[str, Price],
        references: Mapping[str, str | None],
        free: Free = _NOBODY,
        dearest: Mapping[str, str] = _NO_KEYS,
    ) -> None:
        self._lock = asyncio.Lock()
        self._wanted: dict[Pair, None] = {}  # by those who wait for the catalogue
        self.configure(table, references, free, dearest)

    def configure(
        self,
        table: Mapping[str, Price],
        references: Mapping[str, str | None],
        free: Free = _NOBODY,
        dearest: Mapping[str, str] = _NO_KEYS,
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
        self._dearest = dearest
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
        """Nano-dollars of a prompt and an answer with the provider's dearest key; None where nobody
        knows, or not yet. What is beyond all that a call can cost counts as that."""
        key = self._dearest.get(target.provider)
        rates = self._configured(target.provider, target.model, key)
        if rates is None and self._references.get(target.provider):
            rates, until = self._listed.get((target.provider, target.model), (None, 0.0))
            if until < monotonic():
                return None
        if rates is None:
            return None
        return at_most(given, made, rates)

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
