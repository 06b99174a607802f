"""What happened, on the disk before anybody hears of it: the file that outlives its process.

Whatever is to be in the database is first appended here, each entry in one ``write(2)``. What has
been written survives the end of the process, however it comes; every half second it is made to
survive a power cut, too. A shipper takes it into the database from there.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import secrets
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from proxy.clock import monotonic, now_ms
from proxy.errors import ErrorReason, GatewayError
from proxy.metering.admission import Admission
from proxy.metering.segment import MAGIC, MAX_PAYLOAD, Name, framed, listed, payload
from proxy.types import CallRecord

if sys.platform != "win32":
    import fcntl

SEGMENT_BYTES = 8 * 1024 * 1024
"""After which the next one is begun."""
SYNC_SECONDS = 0.5
HELD = 10_000
"""Entries that wait in memory while they cannot be written."""
_TOLD_SECONDS = 60.0
_STALE_SECONDS = 60.0  # after which a file that somebody began to make will not be finished

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | getattr(os, "O_BINARY", 0)
_datasync = getattr(os, "fdatasync", os.fsync)
_log = logging.getLogger("tollkeeper.journal")


class Journal:
    """The segments of this process, in a folder that it shares with others.

    ``encode`` makes the payload of an entry, and raises ValueError or OverflowError where an item
    has none; ``appended`` is told of every entry. What cannot be written is held in memory and
    written as soon as it can be; ``strict``, no call is admitted until then. ``max_bytes`` is what
    the segments of all processes may take up together.

    All methods are for the thread of the loop.
    """

    def __init__(
        self,
        folder: Path,
        encode: Callable[[object], bytes],
        *,
        strict: bool,
        max_bytes: int,
        appended: Callable[[], None],
    ) -> None:
        self._folder = folder
        self._encode = encode
        self._strict = strict
        self._max_bytes = max_bytes
        self._appended = appended
        owner = f"{now_ms():013d}-{os.getpid()}-{secrets.token_hex(4)}"
        self._name = Name(owner, 0)
        self._file: int | None = None
        self._given_up: int | None = None  # stays locked, as its process lives, until the next
        self._size = 0
        self._dirty = False
        self._begun = False  # a segment that its folder may not know of yet, after a power cut
        self._retired: list[int] = []  # full segments, to be synced and closed
        # The last word of each request that is under way, and the attempt that it is about.
        self._open: dict[str, tuple[int, bytes]] = {}
        self._held: deque[bytes] = deque()
        self._dropped = 0
        self._bytes = self._segments = 0  # in the folder
        self._trouble: str | None = None
        self._told = 0.0
        self._closed = False

    @property
    def held(self) -> int:
        """Entries that wait to be journaled."""
        return len(self._held)

    def take(self) -> list[bytes]:
        """The payloads of the entries that wait, for somebody else to keep."""
        taken = [payload(entry) for entry in self._held]
        self._held.clear()
        return taken

    def put_back(self, payloads: Sequence[bytes]) -> None:
        """They could not be kept: they wait again, before all others."""
        self._held.extendleft(framed(each) for each in reversed(payloads))

    @property
    def dropped(self) -> int:
        """Entries that are lost, because too many were held, or because they have no form."""
        return self._dropped

    def status(self) -> dict[str, Any]:
        """``state``, ``bytes`` and ``segments`` in the folder, and how many entries are in memory
        alone: ``unjournaled``."""
        return {
            "state": "writable" if self._file is not None else "unwritable",
            "bytes": self._bytes,
            "segments": self._segments,
            "unjournaled": len(self._held),
        }

    def writes(self, name: Name) -> bool:
        """Whether this is the segment that is being written, or the last one that could be."""
        return name == self._name and not self._closed

    def open(self) -> None:
        """Begin. Where the folder cannot be written that is told, and tried again by ``run``."""
        self._recover()

    def check(self) -> None:
        """Raises GatewayError if no call may be admitted now."""
        if self._strict and self._file is None:
            raise _unwritable()

    def admit(self, call: CallRecord) -> None:
        """A call is about to be made; ``call`` is its row if it does not come to its end. Raises
        GatewayError if it must not be made, since that cannot be written down."""
        entry = framed(self._encode(Admission(call)))
        self._open[call.request_id] = call.attempt, entry
        if not self._write(entry) and self._strict:
            del self._open[call.request_id]
            raise _unwritable()

    def append(self, item: object) -> None:
        """Write down something that happened. Never raises: what cannot be is held, or counted."""
        if isinstance(item, CallRecord) and item.is_final:
            self._open.pop(item.request_id, None)
        try:
            encoded = self._encode(item)
            if len(encoded) > MAX_PAYLOAD:
                raise OverflowError(f"it has {len(encoded)} bytes")
        except (ValueError, OverflowError, TypeError) as error:
            self._dropped += 1
            _log.error("a %s cannot be kept: %s", type(item).__name__, error)
            return
        entry = framed(encoded)
        if isinstance(item, CallRecord) and not item.is_final:
            attempt, _ = self._open.get(item.request_id, (0, b""))
            if attempt <= item.attempt:  # else the next one has been admitted before
                self._open[item.request_id] = item.attempt, entry
        if not self._write(entry):
            self._hold(entry)
        self._appended()

    async def tend(self) -> None:
        """Sync what was written, begin a new segment, come back from trouble: every
        ``SYNC_SECONDS``."""
        if self._file is not None and not self._in_place(self._file):
            _log.error("the journal's file was taken away; it is put back")
            self._replace(self._name)
        retired, self._retired = self._retired, []
        current = os.dup(self._file) if self._file is not None and self._dirty else None
        begun, self._begun, self._dirty = self._begun, False, False
        try:
            await asyncio.to_thread(self._sync, current, retired, begun)
        except OSError as error:
            self._fail(error)  # what became of the pages nobody knows: the segment is given up
        if self._file is None:
            self._recover()
        elif self._bytes >= self._max_bytes:
            self._fail(_full(self._max_bytes))
        elif self._size >= SEGMENT_BYTES:
            self._replace(self._name.next())

    def close(self) -> None:
        """Seal the segment. What is still held is lost, counted and told."""
        if self._file is None and (self._held or self._displaced):
            self._recover()
        if self._held:
            _log.error("%d entries are lost: %s", len(self._held), self._trouble)
            self._dropped += len(self._held)
            self._held.clear()
        self._closed = True
        for last in (self._file, self._given_up):
            if last is not None:
                self._retire(last)
        self._file = self._given_up = None
        for file in self._retired:
            with suppress(OSError):
                _datasync(file)
            os.close(file)
        self._retired.clear()

    # Writing.

    def _write(self, entry: bytes) -> bool:
        if self._file is None:
            return False
        try:
            written = os.write(self._file, entry)
            if written < len(entry):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._file, self._size)  # whoever reads it copes with the rest, too
            self._fail(error)
            return False
        self._size += len(entry)
        self._dirty = True
        return True

    def _hold(self, entry: bytes) -> None:
        if len(self._held) < HELD and not self._closed:
            self._held.append(entry)
            return
        if not self._dropped:
            _log.error("entries of the journal are lost: %d wait already", len(self._held))
        self._dropped += 1

    def _fail(self, error: OSError) -> None:
        """Give the segment up, and say so: at once, and then once a minute."""
        if self._file is not None:
            self._file, self._given_up = None, self._file
        self._trouble = f"cannot write the journal in {self._folder}: {error.strerror or error}"
        now = monotonic()
        if not self._told or now - self._told >= _TOLD_SECONDS:
            self._told = now
            what = "calls are refused" if self._strict else "calls go on"
            _log.error("%s; %s, %d rows are in memory alone", self._trouble, what, len(self._held))

    def _recover(self) -> None:
        """Begin a segment with all that waits, if that is possible again."""
        if self._closed:
            return
        if self._bytes - self._size >= self._max_bytes:  # without the one that now may go
            self._fail(_full(self._max_bytes))
            return
        try:
            if self._displaced:  # what was written is nowhere else
                assert self._given_up is not None
                written = os.pread(self._given_up, self._size, 0)
                self._begin(self._name, written + b"".join(self._held))
            else:
                waiting = (*self._held, *self._under_way())
                self._begin(self._name.next(), MAGIC + b"".join(waiting))
        except OSError as error:
            self._fail(error)
            return
        self._held.clear()
        if self._given_up is not None:
            self._retire(self._given_up)
            self._given_up = None
        if self._trouble is not None:
            _log.warning("the journal can be written again")
            self._trouble, self._told = None, 0.0

    def _under_way(self) -> list[bytes]:
        return [entry for _, entry in self._open.values()]

    def _replace(self, name: Name) -> None:
        """Go on in another segment, which begins with the calls under way, or in a copy of this
        one. If that cannot be made, in this one."""
        assert self._file is not None
        before = self._file
        try:
            if name == self._name:
                content = os.pread(before, self._size, 0)
            else:
                content = MAGIC + b"".join(self._under_way())
            self._begin(name, content)
        except OSError as error:
            _log.error("cannot begin another segment of the journal: %s", error)
            return
        self._retire(before)

    def _begin(self, name: Name, content: bytes) -> None:
        """Make a segment, which appears locked and whole or not at all."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / str(name)
        unfinished = path.with_suffix(".new")
        file = os.open(unfinished, _FLAGS, 0o600)
        try:
            if os.write(file, content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if sys.platform == "win32":
                os.close(file)
                os.replace(unfinished, path)
                file = os.open(path, _FLAGS & ~os.O_TRUNC)
            else:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.replace(unfinished, path)
        except OSError:
            os.close(file)
            with suppress(OSError):
                unfinished.unlink()
            raise
        self._name, self._file, self._size = name, file, len(content)
        self._dirty = self._begun = True

    def _retire(self, file: int) -> None:
        """Seal a segment."""
        if sys.platform != "win32":
            fcntl.flock(file, fcntl.LOCK_UN)
        self._retired.append(file)

    @property
    def _displaced(self) -> bool:
        """Whether the segment that was given up is not there any more, with what was written."""
        return self._given_up is not None and not self._in_place(self._given_up)

    def _in_place(self, file: int) -> bool:
        """Whether it is still where others look for it."""
        try:
            return os.path.samestat(os.stat(self._folder / str(self._name)), os.fstat(file))
        except OSError:
            return False

    # In a thread.

    def _sync(self, current: int | None, retired: list[int], begun: bool) -> None:
        """Make what was written survive a power cut, and look how much there is in the folder."""
        files = [*retired] if current is None else [*retired, current]
        try:
            for file in files:
                _datasync(file)
        finally:
            for file in files:
                os.close(file)
        if begun and sys.platform != "win32":
            with suppress(FileNotFoundError):
                folder = os.open(self._folder, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
        sizes = []
        for name in listed(self._folder):
            with suppress(OSError):
                sizes.append((self._folder / str(name)).stat().st_size)
        self._bytes, self._segments = sum(sizes), len(sizes)


def _full(max_bytes: int) -> OSError:
    return OSError(errno.ENOSPC, f"it has reached its {max_bytes} bytes (telemetry.journal)")


def _unwritable() -> GatewayError:
    return GatewayError(
        503,
        "This call cannot be written down, so it is not made.",
        ErrorReason.INTERNAL,
        code="journal_unwritable",
        retry_after=1,
    )
