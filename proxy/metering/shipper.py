"""From the journal into the database: one process of those that share a folder does it for all.

A batch and the positions that it moves are committed together, so every entry is taken in exactly
once. Nothing is kept in memory while the database cannot be written: it is read again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from proxy.clock import monotonic
from proxy.metering.admission import ADMISSION, Admission, Unfinished
from proxy.metering.segment import Damage, Name, count, entries, listed, sealed
from proxy.types import CallRecord

BATCH = 1_000
SHARE = 0.03
"""Of the time, what writing may take. What all entries of a transaction pay for once is so paid for
the more seldom the more there are; where little happens, rows are there at once."""
PAUSES = (0.2, 0.85)
"""Seconds that an entry waits for others: at least, and at most, as a row is promised to be there
after one."""
BACKOFF = (0.5, 1.0, 2.0, 5.0)
"""Seconds until the next try, by failures in a row."""
MOST_COUNTED = 10_000
"""Beyond that many, entries that wait are not counted one by one."""
_POLL = 0.2  # seconds until it is looked what others have written, and who is elected
_AGAIN = 0.1  # seconds until the next try, where the end waits for it

_log = logging.getLogger("tollkeeper.journal")
Moves = Mapping[str, tuple[int, int | None]]
"""For each segment: from which byte to which; to None: the segment is gone."""


class _Tail(NamedTuple):
    """How far a segment was read, who was under way there, and how much before could not be read:
    in bytes, None if all could."""

    unfinished: Unfinished
    position: int
    damage: int | None


class _Batch:
    """What was read and is to be committed together."""

    def __init__(self) -> None:
        self.items: list[object] = []
        self.moves: dict[str, tuple[int, int | None]] = {}
        self.taken: dict[str, int] = {}  # entries of segments, of which each could be read
        self.tails: dict[Name, _Tail] = {}
        self.done: list[Name] = []  # segments that nobody needs once this is committed
        self.torn: list[Name] = []
        self.damaged = 0  # places that cannot be read; an entry at least is lost in each
        self.unreadable: list[str] = []  # entries
        self.shut: dict[Name, str] = {}  # segments that cannot be read just now, and why
        self.interrupted = 0

    @property
    def full(self) -> bool:
        return len(self.items) >= BATCH


class Shipper:
    """Tails the segments in a folder and hands their entries to ``flush``, with the positions.

    A flush that raises has written nothing, or all of it: ``positions`` tells. ``elected`` says
    whether this process is the one that ships, ``writes`` whether it writes to a segment itself.
    """

    def __init__(
        self,
        folder: Path,
        decode: Callable[[bytes], object],
        flush: Callable[[Sequence[object], Moves], Awaitable[None]],
        positions: Callable[[], Awaitable[dict[str, int]]],
        *,
        elected: Callable[[], bool],
        writes: Callable[[Name], bool],
    ) -> None:
        self._folder = folder
        self._decode = decode
        self._flush = flush
        self._load = positions
        self._elected = elected
        self._writes = writes
        self._pauses = PAUSES
        self._pause = PAUSES[0]
        self._positions: dict[str, int] = {}  # as they are committed
        self._in_step = False  # whether that is so: after a failure only the database knows
        self._tails: dict[Name, _Tail] = {}
        self._waiting: dict[str, tuple[int, int]] = {}  # counted up to where, and found
        self._gone: dict[str, int] = {}  # segments that are deleted, and whose positions may go
        self._kept: set[Name] = set()  # segments that cannot be deleted
        self._shut: dict[Name, str] = {}  # nor read: they are left, and the others go on
        self._ships = False
        self._wake = asyncio.Event()
        self._shipping = asyncio.Lock()
        self._closing = False
        self._failures = 0
        self._recorded = 0
        self._unreadable = 0
        self._last_error: str | None = None

    def status(self) -> dict[str, Any]:
        """``recorded`` call rows, ``queued`` entries, ``dropped`` ones (which could not be read),
        and why those wait: the last error, None once all are written."""
        return {
            "recorded": self._recorded,
            "queued": self.queued(),
            "dropped": self._unreadable,
            "last_error": self._last_error,
        }

    def queued(self) -> int:
        """Entries that are not in the database yet, of all processes, up to ``MOST_COUNTED``; 0
        where another process ships. What cannot be read is not among them."""
        if not self._ships:
            return 0
        try:
            return self._count_queued()
        except OSError:  # nobody can tell, and the journal's state says why
            return min(sum(whole for _, whole in self._waiting.values()), MOST_COUNTED)

    def _count_queued(self) -> int:
        waiting: dict[str, tuple[int, int]] = {}
        whole = 0
        for name in listed(self._folder):
            segment = str(name)
            begin = self._positions.get(segment, 0), 0
            position, before = max(begin, self._waiting.get(segment, begin))
            with suppress(OSError), (self._folder / segment).open("rb") as file:
                most = MOST_COUNTED - whole - before
                found, position = count(file, position, most, but=ADMISSION)
                waiting[segment] = position, before + found
                whole += before + found
            if whole >= MOST_COUNTED:
                break
        self._waiting = waiting
        return min(whole, MOST_COUNTED)

    def wake(self) -> None:
        """Something was appended."""
        self._wake.set()

    async def run(self) -> None:
        """Ship until ``drain`` takes over. Never cancel it: that would break a transaction."""
        while not self._closing:
            with suppress(TimeoutError):
                async with asyncio.timeout(_POLL):
                    await self._wake.wait()
            await asyncio.sleep(self._pause)
            self._wake.clear()
            async with self._shipping:
                begin = monotonic()
                while not self._closing and await self._ship():
                    pass
                self._pause = pause(monotonic() - begin, *self._pauses)
            if self._failures and not self._closing:
                await asyncio.sleep(BACKOFF[min(self._failures, len(BACKOFF)) - 1])

    async def catch_up(self, seconds: float) -> None:
        """Ship what an earlier process left, for so long at most, at the end of a batch."""
        deadline = monotonic() + seconds
        async with self._shipping:
            while await self._ship() and monotonic() < deadline:
                pass

    async def drain(self, seconds: float) -> None:
        """End ``run`` and ship all that there is. After ``seconds`` the rest is left for the next
        start."""
        self._closing = True
        self._wake.set()
        deadline = monotonic() + seconds
        async with self._shipping:
            while await self._ship() or self._failures:
                if monotonic() > deadline:
                    break
                if self._failures:
                    await asyncio.sleep(_AGAIN)

    async def _ship(self) -> bool:
        """Ship a batch; whether there may be more."""
        try:
            self._ships = self._elected()
            if not self._ships:
                return False
            if not self._in_step:
                self._tails.clear()
                self._positions = await self._load()
                self._waiting.clear()
                self._in_step = True
            batch = await asyncio.to_thread(self._gather)
            if batch.moves:
                await self._flush(batch.items, batch.moves)
        except Exception as exc:
            self._in_step = False
            self._failures += 1
            self._last_error = str(exc) or type(exc).__name__
            if self._failures == 1:
                _log.warning("rows wait to be written: %s", self._last_error)
            return False
        if self._failures:
            _log.info("the database can be written again")
        self._failures = 0
        for name, why in batch.shut.items():
            if name not in self._shut:
                _log.error("%s cannot be read, and is left for later: %s", name, why)
        self._shut = batch.shut
        if not batch.full:  # nothing else waits any more
            self._last_error = next(iter(batch.shut.values()), None)
        self._settle(batch)
        return batch.full or bool(self._gone)

    def _settle(self, batch: _Batch) -> None:
        """A batch is committed: segments that were read to their end may go."""
        self._recorded += sum(1 for item in batch.items if isinstance(item, CallRecord))
        self._unreadable += batch.damaged + len(batch.unreadable)
        for what in batch.unreadable:
            _log.error("%s", what)
        for name in batch.torn:
            _log.info("%s ends within an entry, in which its process ended", name)
        if batch.interrupted:
            _log.warning("%d calls were interrupted when their process ended", batch.interrupted)
        self._tails.update(batch.tails)
        for segment, (_, end) in batch.moves.items():
            if end is None:
                self._gone.pop(segment, None)
                self._positions.pop(segment, None)
            else:
                self._positions[segment] = end
                self._waited(segment, end, batch.taken.get(segment))
        for name in batch.done:
            if self._delete(name, self._tails.pop(name).damage) and str(name) in self._positions:
                self._gone[str(name)] = self._positions[str(name)]

    def _waited(self, segment: str, end: int, taken: int | None) -> None:
        """So many entries of a segment, up to ``end``, wait no longer; None: nobody knows."""
        position, waiting = self._waiting.pop(segment, (0, 0))
        if taken is not None and position >= end:
            self._waiting[segment] = position, waiting - taken

    def _delete(self, name: Name, damage: int | None) -> bool:
        """Delete a segment, or put it aside if it is damaged. One whose predecessor is still there
        must stay: the next start would take that for the last word of its process."""
        path = self._folder / str(name)
        try:
            if any(left.owner == name.owner for left in (*self._kept, *self._shut)):
                raise OSError("an earlier one has to stay")
            if damage is not None:
                aside = path.with_suffix(".damaged")
                path.replace(aside)
                _log.error(
                    "%s is damaged: %d of its bytes cannot be read; the rest is in the database",
                    *(aside, damage),
                )
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            self._kept.add(name)
            _log.error("cannot delete %s: %s", path, error)
            return False
        return True

    # In a thread.

    def _gather(self) -> _Batch:
        """What has been appended since, as far as it goes into one batch."""
        batch = _Batch()
        for segment, position in self._gone.items():
            batch.moves[segment] = (position, None)
        for _, names in groupby(listed(self._folder), lambda name: name.owner):
            for name in names:
                if batch.full:
                    return batch
                found = len(batch.items)
                try:
                    if name not in self._kept and not self._read(name, batch):
                        break
                except OSError as error:  # others may be sound
                    del batch.items[found:]
                    batch.shut[name] = f"{error.strerror or error}: {name}"
        return batch

    def _read(self, name: Name, batch: _Batch) -> bool:
        """Read on in a segment; whether that was the rest of it."""
        committed = self._positions.get(str(name), 0)
        found = len(batch.items)
        unfinished, position, damage = self._tails.get(name) or _Tail(Unfinished(), 0, None)
        unfinished = unfinished.copy()
        with (self._folder / str(name)).open("rb") as file:
            over = not self._writes(name) and sealed(file)
            for entry in entries(file, position, over=over):
                position = entry.end
                if isinstance(entry, Damage):
                    if entry.torn:
                        batch.torn.append(name)
                    else:
                        damage = (damage or 0) + entry.size
                        batch.damaged += position > committed or not entry.size
                    continue
                try:
                    item = self._decode(entry.payload)
                except ValueError as error:
                    damage = (damage or 0) + len(entry.payload)
                    if position > committed:
                        batch.unreadable.append(f"an entry of {name} cannot be read: {error}")
                    continue
                unfinished.hear(item)
                if position > committed and not isinstance(item, Admission):
                    batch.items.append(item)
                    if batch.full:
                        break
            else:
                if over:
                    batch.done.append(name)
                    if not (self._folder / str(name.next())).exists():
                        batch.items.extend(unfinished.rows())
                        batch.interrupted += len(unfinished)
        batch.tails[name] = _Tail(unfinished, position, damage)
        if len(batch.items) > found:
            batch.moves[str(name)] = (committed, max(committed, position))
            if damage is None and not over:
                batch.taken[str(name)] = len(batch.items) - found
        return name in batch.done


def pause(took: float, least: float, most: float) -> float:
    """Seconds until entries are written again, when it ``took`` that many the last time."""
    return min(max(took / SHARE, least), most)
