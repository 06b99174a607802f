"""Days of calls in files, for those who want to keep what the database lets go.

A day's rows are in ``api_calls-YYYY-MM-DD.jsonl.gz`` before one of them is deleted: written beside
it, synced, and renamed. A row that comes late, or again after a crash, is added if it is not there
yet: as another member of the gzip file, which readers take for one text.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import shutil
import sys
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

from proxy.store import costs, spans
from proxy.store.address import StoreError
from proxy.store.engine import Store
from proxy.store.formats import JsonLines
from proxy.store.pages import Row
from proxy.store.spans import Span
from proxy.store.tables import api_calls

if sys.platform != "win32":
    import fcntl

DAY_MS = 86_400_000

_PAGE = 500
_PATIENCE = 60.0  # seconds for another process that writes there
_GLANCE = 0.1
_Result = TypeVar("_Result")


class ArchiveError(StoreError):
    """A day cannot be written to its file, so that nothing of it may be deleted."""


class Archive:
    """The files in ``folder``, which is made when there is something to write.

    Gateways of one machine may share it; those of several need folders of their own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser()
        self.trouble: str | None = None
        """What was last said to be wrong with it."""

    async def keep(self, store: Store, day: int) -> array[int]:
        """Let the file have every call of the day that begins at ``day``, in UTC milliseconds.

        Returns the ids of the rows that are in it for certain. ArchiveError if it cannot be had:
        the file is then as it was.
        """
        ids, last = array("q"), None
        file = _DayFile(self.folder / f"api_calls-{costs.day(day)}.jsonl.gz")
        try:
            await self._alone(file)
            await _aside(file.open)
            async with store.reader() as connection:
                span = Span(api_calls, day, day + DAY_MS)
                while rows := await spans.page(connection, span, last, _PAGE):
                    await _aside(file.add, rows)
                    ids.extend(row["id"] for row in rows)
                    last = rows[-1]
            await _aside(file.finish)
        finally:
            file.close()
        return ids

    async def _alone(self, file: _DayFile) -> None:
        """Wait for another process that writes there."""
        for _ in range(round(_PATIENCE / _GLANCE)):
            if await _aside(file.lock):
                return
            await asyncio.sleep(_GLANCE)
        raise ArchiveError(f"cannot write to {self.folder}: another process does")


class _DayFile:
    """One file on its way to be complete. What goes wrong is an ArchiveError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(f".{path.name}.part")
        self._known: set[tuple[str, int]] = set()
        self._lines: JsonLines | None = None
        self._stream: BinaryIO | None = None
        self._open = ExitStack()

    def lock(self) -> bool:
        """Whether nobody else is at it in this folder; held until ``close``."""
        with self._told():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            guard = self._open.enter_context((self._path.parent / ".lock").open("ab"))
            if sys.platform != "win32":
                with suppress(BlockingIOError):
                    fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return True
                self._open.close()
                return False
            return True

    def open(self) -> None:
        """See which rows are there already."""
        with self._told(), suppress(FileNotFoundError), gzip.open(self._path) as lines:
            known = msgspec.json.Decoder(_Known)
            for line in lines:
                row = known.decode(line)
                self._known.add((row.request_id, row.attempt))

    def add(self, rows: Sequence[Row]) -> None:
        """Write those that are not there."""
        with self._told():
            new = [row for row in rows if (row["request_id"], row["attempt"]) not in self._known]
            if new:
                if self._lines is None:
                    self._begin()
                assert self._lines is not None
                self._lines.write(new)

    def finish(self) -> None:
        """Let the rows be there for good, also if the power fails now."""
        with self._told():
            if self._lines is None or self._stream is None:
                return
            self._lines.close()
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
            self._part.replace(self._path)
            if sys.platform != "win32":
                folder = os.open(self._path.parent, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)

    def close(self) -> None:
        """Forget what was not finished."""
        if self._lines is not None:
            self._part.unlink(missing_ok=True)
        with suppress(OSError):  # what could not be written still cannot
            self._open.close()

    def _begin(self) -> None:
        if self._known:
            shutil.copyfile(self._path, self._part)
        else:
            self._part.unlink(missing_ok=True)
        self._stream = self._open.enter_context(self._part.open("ab"))
        self._lines = JsonLines(api_calls, self._stream)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            said = error.strerror or str(error)
            raise ArchiveError(f"cannot write {self._path}: {said}") from error
        except (EOFError, zlib.error, msgspec.DecodeError) as error:
            raise ArchiveError(f"cannot add to {self._path}: it is damaged") from error


class _Known(msgspec.Struct):
    request_id: str
    attempt: int


async def _aside(work: Callable[..., _Result], *given: Any) -> _Result:
    """Run it in a thread, and to its end even where the caller is cancelled: files would
    otherwise be closed under its hands."""
    future = asyncio.get_running_loop().run_in_executor(None, work, *given)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise
