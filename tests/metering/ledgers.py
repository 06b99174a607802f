"""A journal's folder with a process that writes and one that ships, and a database to ship to."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from proxy.entries import decode, encode
from proxy.metering.journal import Journal
from proxy.metering.segment import Name, listed
from proxy.metering.shipper import Moves, Shipper
from proxy.types import CallRecord
from tests.store.rows import call


class Database:
    """Takes a batch and its moves whole, or not at all. ``broken`` says why it takes none,
    ``mute`` that it takes the next one, and the answer is lost."""

    def __init__(self) -> None:
        self.items: list[object] = []
        self.batches: list[int] = []
        self.at: dict[str, int] = {}
        self.tries = 0
        self.broken: Exception | None = None
        self.mute: BaseException | None = None

    async def positions(self) -> dict[str, int]:
        await asyncio.sleep(0)
        if self.broken is not None:
            self.tries += 1
            raise self.broken
        return dict(self.at)

    async def flush(self, items: Sequence[object], moves: Moves) -> None:
        self.tries += 1
        await asyncio.sleep(0)
        if self.broken is not None:
            raise self.broken
        for segment, (start, end) in moves.items():
            if end is not None and self.at.get(segment, 0) != start:
                raise ValueError(f"{segment} was taken in already")
        for segment, (_, end) in moves.items():
            if end is None:
                self.at.pop(segment, None)
            else:
                self.at[segment] = end
        known = {(row.request_id, row.attempt) for row in self.rows}
        for item in items:
            if not isinstance(item, CallRecord) or (item.request_id, item.attempt) not in known:
                self.items.append(item)
        self.batches.append(len(items))
        if self.mute is not None:
            mute, self.mute = self.mute, None
            raise mute

    @property
    def rows(self) -> list[CallRecord]:
        return [item for item in self.items if isinstance(item, CallRecord)]

    def finals(self, request_id: str) -> list[CallRecord]:
        return [row for row in self.rows if row.request_id == request_id and row.is_final]


class Process:
    """One that writes a journal, and ships if it is ``elected``."""

    def __init__(self, folder: Path, database: Database, **options: Any) -> None:
        self.folder = folder
        self.database = database
        self.elected = options.pop("elected", True)
        self.shipper = Shipper(
            folder,
            decode,
            database.flush,
            database.positions,
            elected=lambda: self.elected,
            writes=lambda name: self.journal.writes(name),
        )
        options = {"strict": False, "max_bytes": 2**30, **options}
        self.journal = Journal(folder, encode, appended=self.shipper.wake, **options)
        self.journal.open()

    async def ship(self) -> None:
        await self.shipper.catch_up(5)

    def begin(self, request_id: str, **changes: Any) -> None:
        interrupted = {"status": "error", "error_reason": "interrupted", "output_tokens": None}
        self.journal.admit(call(request_id=request_id, **{**interrupted, **changes}))

    def end(self, request_id: str, **changes: Any) -> None:
        self.journal.append(call(request_id=request_id, **changes))

    def die(self) -> None:
        """End as a killed process does: the system closes its files, and nothing else happens."""
        journal = self.journal
        for file in (journal._file, journal._given_up, *journal._retired):
            if file is not None:
                os.close(file)
        journal._closed, journal._file, journal._given_up, journal._retired = True, None, None, []

    @property
    def segments(self) -> list[Name]:
        return listed(self.folder)

    def path(self, place: int = -1) -> Path:
        return self.folder / str(self.segments[place])
