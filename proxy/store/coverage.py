"""Where the answer about a window lies: in rollups, and at its edges in the rows of the calls.

A window is cut into days, the hours before and behind them, the minutes around these, and what is
left: calls. Its last edge is counted whole, in the shortest rollup that there is, if the calls of
that are deleted already; the one before its first whole rollup is then not counted at all, so that
two windows that meet count every call once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Table, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.clock import now_ms
from proxy.store.buckets import bucket
from proxy.store.filters import Filters
from proxy.store.rollups import DAY, DIMENSIONS, GRAINS, HOUR, TOTALS, Grain
from proxy.store.tables import api_calls

FEW = 5000
"""So many attempts are looked at one by one: their percentiles are exact, and it takes no time."""

_MOST_STARTS = 1000


class Piece(NamedTuple):
    """A part of a window, from ``start`` to before ``end``: rows of ``api_calls`` or rollups."""

    table: Table
    start: int
    end: int

    @property
    def is_rolled(self) -> bool:
        """Whether its rows are sums of many calls."""
        return self.table is not api_calls


async def cover(
    connection: AsyncConnection, filters: Filters, longest: int = DAY, by: Sequence[str] = ()
) -> list[Piece]:
    """The pieces of the filters' window, in order, with rollups of at most ``longest``
    milliseconds.

    It is one piece of calls where the filters, or the dimensions to group by, ask for what rollups
    do not know, and where the calls are few and all there.
    """
    whole = Piece(api_calls, filters.start, filters.end)
    if filters.of_rows or not set(by) <= set(DIMENSIONS):
        return [whole]
    now = now_ms()
    end = filters.end
    if end > now - HOUR and not await _any(connection, end, None):
        # Nothing has happened since, and nothing of that is deleted: the last day is whole.
        end += -end % DAY
    grains = [grain for grain in reversed(GRAINS) if grain.length <= longest]
    pieces = list(_cut(filters.start, end, grains, now))
    rolled = [piece for piece in pieces if piece.is_rolled]
    if rolled:
        attempts = await _attempts(connection, rolled)
        if attempts <= FEW and attempts == await _rows(connection, rolled[0].start, rolled[-1].end):
            return [whole]
    if pieces and not pieces[-1].is_rolled:
        pieces[-1] = await _remembered(connection, pieces[-1], grains, now)
    return pieces


async def forgotten(connection: AsyncConnection, pieces: Sequence[Piece], length: int) -> set[int]:
    """Which spans of ``length`` milliseconds nobody can tell about any more, by their starts:
    calls are deleted in the hour or day around them, which has rollups of its own only."""
    found: set[int] = set()
    for piece in pieces:
        if not piece.is_rolled and piece.start < piece.end:
            grain = next(g for g in GRAINS[1:] if length <= g.length and _reaches(g, piece))
            for start in await _gaps(connection, piece, grain):
                found.update(range(start, start + grain.length, length))
    return found


def starts(piece: Piece) -> ColumnElement[bool]:
    """Which rollups of all calls are in a piece: told one by one, each is found by its key."""
    length = next(grain.length for grain in GRAINS if grain.table is piece.table)
    if piece.end - piece.start > length * _MOST_STARTS:
        return window(piece)
    return piece.table.c.start.in_(range(piece.start, piece.end, length))


def window(piece: Piece) -> ColumnElement[bool]:
    """Which rows are in a piece."""
    at = piece.table.c.start if piece.is_rolled else api_calls.c.timestamp
    return (at >= piece.start) & (at < piece.end)


def _cut(start: int, end: int, grains: Sequence[Grain], now: int) -> Iterator[Piece]:
    """``grains``: the longest first."""
    if start >= end:
        return
    if not grains:
        yield Piece(api_calls, start, end)
        return
    (table, length, _), shorter = grains[0], grains[1:]
    first, last = max(start, _since(grains[0], now)), end - end % length
    first += -first % length
    if first >= last:
        yield from _cut(start, end, shorter, now)
        return
    yield from _cut(start, first, shorter, now)
    yield Piece(table, first, last)
    yield from _cut(last, end, shorter, now)


def _since(grain: Grain, now: int) -> int:
    """From when on rollups are there for certain, whatever the clocks of those who delete say."""
    return now - grain.kept + HOUR


async def _remembered(
    connection: AsyncConnection, edge: Piece, grains: Sequence[Grain], now: int
) -> Piece:
    """The last piece, of calls; or the rollup that it begins, if the calls of that are gone."""
    if edge.end > now - HOUR and await _any(connection, edge.start, edge.end):
        return edge  # nothing is deleted as soon as that
    for grain in reversed(grains):
        if edge.start % grain.length == 0 and edge.start >= _since(grain, now):
            rollup = Piece(grain.table, edge.start, edge.start + grain.length)
            counted = await _attempts(connection, [rollup])
            return rollup if counted > await _rows(connection, *rollup[1:]) else edge
    return edge


def _reaches(grain: Grain, piece: Piece) -> bool:
    return piece.start >= _since(grain, now_ms())


async def _gaps(connection: AsyncConnection, piece: Piece, grain: Grain) -> list[int]:
    """The rollups of one length, by their starts, that count more calls than there are."""
    length = grain.length
    around = piece.start - piece.start % length, piece.end + -piece.end % length
    rollups = Piece(grain.table, *around)
    of_all = (grain.table.c.start, func.sum(grain.table.c.attempts))
    counted = select(*of_all).where(starts(rollups), grain.table.c.series_id.in_(TOTALS))
    at = bucket(api_calls.c.timestamp, length)
    there = select(at, func.count()).where(window(Piece(api_calls, *around)))
    kept = {int(start): n for start, n in await connection.execute(there.group_by(at))}
    rows = await connection.execute(counted.group_by(grain.table.c.start))
    return [start for start, attempts in rows if attempts > kept.get(start, 0)]


async def _attempts(connection: AsyncConnection, pieces: Sequence[Piece]) -> int:
    """How many the rollups count."""
    attempts = 0
    for piece in pieces:
        of_all = piece.table.c.series_id.in_(TOTALS)
        query = select(func.sum(piece.table.c.attempts)).where(starts(piece), of_all)
        attempts += int(await connection.scalar(query) or 0)
    return attempts


async def _rows(connection: AsyncConnection, start: int, end: int) -> int:
    query = select(func.count()).select_from(api_calls)
    return await connection.scalar(query.where(window(Piece(api_calls, start, end)))) or 0


async def _any(connection: AsyncConnection, start: int, end: int | None) -> bool:
    """Whether there is a row that began in the window; without an end, or later."""
    at: Any = api_calls.c.timestamp
    query = select(at).where(at >= start).limit(1)
    return await connection.scalar(query if end is None else query.where(at < end)) is not None
