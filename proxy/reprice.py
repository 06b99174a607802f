"""``tollkeeper reprice``: what calls cost by today's prices, while gateways go on writing."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable
from functools import partial

import msgspec

from proxy import tariffs
from proxy.metering.pricing import Prices
from proxy.money import dollars
from proxy.progress import Progress
from proxy.routes import provider
from proxy.schema import Settings
from proxy.store import repricing
from proxy.store.engine import Store
from proxy.store.look import look
from proxy.store.patience import when_free
from proxy.store.repricing import Change, Row
from proxy.types import Usage

_PAUSE = 0.02  # seconds between two chunks, for whoever else wants to write
_SHOWN = 20  # models in the table


class RepriceError(Exception):
    """Calls cannot be priced now; the message says why."""


class Drift(msgspec.Struct):
    """What has become of the calls of one model, or of all. Money in nano-dollars, of those calls
    that changed; what had no price before counts as 0 there."""

    looked_at: int = 0
    changed: int = 0
    newly: int = 0
    before: int = 0
    now: int = 0

    @property
    def difference(self) -> int:
        return self.now - self.before

    def add(self, change: Change) -> None:
        """Count a call that has changed."""
        before, after = change
        self.changed += 1
        self.newly += before.cost_nano_usd is None and after.cost_nano_usd is not None
        self.before += before.cost_nano_usd or 0
        self.now += after.cost_nano_usd or 0


async def reprice(settings: Settings, since: int, until: int, dry_run: bool) -> str:
    """Price the calls from ``since`` to before ``until`` (UTC milliseconds) anew; say what changed.

    What a provider said itself stays, and so does a price that nobody knows any more. Raises
    StoreError if the database cannot be used, RepriceError if the catalogue cannot be asked.
    """
    url = settings.telemetry.database_url
    prices = _prices(settings)
    drifts: dict[str, Drift] = {}
    store = Store(url)
    try:
        async with look(url) as connection:
            shows = sys.stderr.isatty()
            total = await repricing.count(connection, since, until) if shows else 0
            progress = Progress(total, sys.stderr)
            last: Row | None = None
            while rows := await repricing.page(connection, since, until, last):
                last = rows[-1]
                changes = await _changes(prices, rows)
                if changes and not dry_run:
                    write = partial(repricing.apply, await store.writer(), changes)
                    changes = await when_free(write)
                    await asyncio.sleep(_PAUSE)
                _count(drifts, rows, changes)
                progress.add(len(rows))
            progress.close()
    finally:
        await store.close()
    return "\n".join(_lines(drifts, "would change" if dry_run else "changed"))


def _prices(settings: Settings) -> Prices:
    prices = Prices({}, {})
    serving = {
        name: provider(name, each)
        for name, each in settings.providers.items()
        if each.type != "demo"  # its address is made when it starts, and it has no prices
    }
    tariffs.configure(prices, settings, serving)
    return prices


async def _changes(prices: Prices, rows: Iterable[Row]) -> list[Change]:
    """Those of the rows that cost something else today."""
    if not await prices.resolve({(row.provider, row.model) for row in rows}):
        raise RepriceError("the price catalogue cannot be asked now; nothing more is changed")
    priced = ((row, _today(prices, row)) for row in rows)
    return [(before, after) for before, after in priced if _money(before) != _money(after)]


def _today(prices: Prices, row: Row) -> Row:
    """The row by today's prices. A price that was configured gives way to another such alone."""
    quote = prices.quote(row.provider, row.model, _usage(row), row.key_id)
    if quote is None:
        return row
    if quote.list_cost_nano_usd is not None:
        row = msgspec.structs.replace(row, list_cost_nano_usd=quote.list_cost_nano_usd)
    stays = row.cost_source == "config" and quote.cost_source != "config"
    same = (row.cost_nano_usd, row.cost_source) == (quote.cost_nano_usd, quote.cost_source)
    if stays or same or quote.cost_nano_usd is None:
        return row
    return msgspec.structs.replace(
        row,
        cost_nano_usd=quote.cost_nano_usd,
        cost_source=quote.cost_source,
        price_version=quote.price_version,
    )


def _money(row: Row) -> tuple[int | None, int | None, str]:
    return row.cost_nano_usd, row.list_cost_nano_usd, row.cost_source


def _usage(row: Row) -> Usage:
    return Usage(
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        total_tokens=row.total_tokens,
        cached_tokens=row.cached_tokens,
        cache_write_tokens=row.cache_write_tokens,
        reasoning_tokens=row.reasoning_tokens,
        input_audio_tokens=row.input_audio_tokens,
        output_audio_tokens=row.output_audio_tokens,
        input_image_tokens=row.input_image_tokens,
        output_image_tokens=row.output_image_tokens,
    )


def _count(drifts: dict[str, Drift], rows: Iterable[Row], changes: Iterable[Change]) -> None:
    for row in rows:
        drifts.setdefault(f"{row.provider}/{row.model}", Drift()).looked_at += 1
    for before, after in changes:
        drifts[f"{before.provider}/{before.model}"].add((before, after))


def _lines(drifts: dict[str, Drift], changed: str) -> list[str]:
    """The sums, and the models whose cost has changed most."""
    total = {name: sum(getattr(each, name) for each in drifts.values()) for name in _SUMS}
    counts = f"{changed}: {total['changed']:,}, newly priced: {total['newly']:,}"
    head = f"rows looked at: {total['looked_at']:,}, {counts}"
    moved = sorted(
        (item for item in drifts.items() if item[1].changed),
        key=lambda item: (-abs(item[1].difference), item[0]),
    )
    if not moved:
        return [head]
    width = max(len(name) for name, _ in moved[:_SHOWN])
    lines = [head, f"{'US dollars':{width}} {'rows':>9} {'before':>15} {'now':>15} {'drift':>16}"]
    for name, each in [*moved[:_SHOWN], ("all", Drift(**total))]:
        sums = f"{_usd(each.before):>15} {_usd(each.now):>15} {_usd(each.difference, '+'):>16}"
        lines.append(f"{name:{width}} {each.changed:>9,} {sums}")
    if len(moved) > _SHOWN:
        lines.insert(-1, f"and {len(moved) - _SHOWN} more models")
    return lines


_SUMS = ("looked_at", "changed", "newly", "before", "now")


def _usd(nano: int, sign: str = "") -> str:
    return f"{dollars(nano):{sign},.9f}"
