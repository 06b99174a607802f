"""The form of the journal's files, as they are written and as they are read back.

A segment is eight bytes that say what it is, then entries: the payload's length and its CRC-32
(four bytes each, little-endian), then the payload. Its name is its owner's, which says when that
process began, and a number that counts from 1: by name, segments sort as they were written.

A process has its newest segment locked (``flock``) for as long as it lives. What is not locked is
sealed: nobody will ever write to it again.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Iterator
from os import SEEK_END
from pathlib import Path
from typing import BinaryIO, NamedTuple
from zlib import crc32

if sys.platform != "win32":
    import fcntl

MAGIC = b"tlkjrnl\x01"
"""The last byte is the version of the form."""
MAX_PAYLOAD = 2**24 - 1
"""Bytes; the last byte of a length is always 0, which is looked for behind a damaged place."""

_FRAME = struct.Struct("<II")
_NAME = re.compile(r"(\d{13}-\d+-[0-9a-f]{8})\.(\d{6,})\.segment")


class Name(NamedTuple):
    """Whose a segment is, and which of theirs."""

    owner: str
    number: int

    @classmethod
    def of(cls, file: str) -> Name | None:
        """The name in that of a file; None if it is no segment's."""
        found = _NAME.fullmatch(file)
        return None if found is None else cls(found[1], int(found[2]))

    def __str__(self) -> str:
        return f"{self.owner}.{self.number:06d}.segment"

    def next(self) -> Name:
        return Name(self.owner, self.number + 1)


class Entry(NamedTuple):
    """A payload, and the position behind it."""

    payload: bytes
    end: int


class Damage(NamedTuple):
    """So many bytes that are no entry, and the position behind them. ``torn``: they are what there
    is of the last entry, whose process ended as it wrote it."""

    size: int
    end: int
    torn: bool


class OtherVersion(OSError):
    """A segment is in a form that this program does not know."""


def framed(payload: bytes) -> bytes:
    """The payload as an entry."""
    return _FRAME.pack(len(payload), crc32(payload)) + payload


def payload(entry: bytes) -> bytes:
    """What was framed."""
    return entry[_FRAME.size :]


def listed(folder: Path) -> list[Name]:
    """The segments in a folder, in order; none if there is no such folder. OSError where that
    cannot be told."""
    try:
        found = [Name.of(path.name) for path in folder.iterdir()]
    except FileNotFoundError:
        return []
    return sorted(name for name in found if name is not None)


def sealed(file: BinaryIO) -> bool:
    """Whether nobody will write to a segment any more. On Windows there is only one process, which
    knows itself which one it writes to."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(file, fcntl.LOCK_UN)
    return True


def entries(file: BinaryIO, position: int, *, over: bool) -> Iterator[Entry | Damage]:
    """The whole entries from ``position`` on.

    They end at the first that is not whole, as the newest may be that is written just now. Where
    it is ``over`` with a segment that one is damaged, or was torn by the end of its process: that
    comes as such, and whatever is whole behind it comes, too. Raises OtherVersion.
    """
    size = file.seek(0, SEEK_END)
    if position == 0:
        file.seek(0)
        magic = file.read(len(MAGIC))
        if magic == MAGIC:
            position = len(MAGIC)
        elif len(magic) == len(MAGIC) and magic[:-1] == MAGIC[:-1]:
            raise OtherVersion(f"it is of version {magic[-1]}")
        elif not over:
            return
        elif size == 0:  # it began with its magic once
            yield Damage(0, 0, torn=False)
    file.seek(position)
    while True:
        payload = _next(file)
        if payload is not None:
            position += _FRAME.size + len(payload)
            yield Entry(payload, position)
            continue
        if not over or position == size:
            return
        end = _resume(file, position)
        yield Damage(end - position, end, torn=end == size and _torn(file, position, size))
        position = end
        file.seek(position)


def count(file: BinaryIO, position: int, most: int, *, but: int) -> tuple[int, int]:
    """How many entries there are from ``position`` on, up to ``most``, without those whose payload
    begins with the byte ``but``; and the position behind them. They are not looked into, as this
    is asked often."""
    at = 0 if position else len(MAGIC)
    file.seek(position)
    data = file.read()
    found = 0
    while found < most and at + _FRAME.size < len(data):
        end = at + _FRAME.size + _FRAME.unpack_from(data, at)[0]
        if end > len(data):  # it is being written just now
            break
        found += data[at + _FRAME.size] != but
        at = end
    return found, position + at


def _resume(file: BinaryIO, position: int) -> int:
    """Where the first whole entry behind a damaged place begins; the end if there is none."""
    file.seek(position)
    rest = memoryview(data := file.read())
    zero = 3  # the place of the length's last byte
    while (zero := data.find(0, zero + 1)) != -1:
        at, begin = zero - 3, zero - 3 + _FRAME.size
        if begin > len(data):
            break
        length, checksum = _FRAME.unpack_from(data, at)
        if 0 < length <= len(data) - begin and crc32(rest[begin : begin + length]) == checksum:
            return position + at
    return position + len(data)


def _torn(file: BinaryIO, position: int, size: int) -> bool:
    """Whether the bytes up to the end may be the beginning of an entry that is longer than that."""
    if position == 0:  # a segment appears with its magic, or not at all
        return False
    file.seek(position)
    head = file.read(_FRAME.size)
    if len(head) < _FRAME.size:
        return True
    length: int = _FRAME.unpack(head)[0]
    return size - position - _FRAME.size < length <= MAX_PAYLOAD


def _next(file: BinaryIO) -> bytes | None:
    head = file.read(_FRAME.size)
    if len(head) < _FRAME.size:
        return None
    length, checksum = _FRAME.unpack(head)
    if not 0 < length <= MAX_PAYLOAD:  # 0: a page that never reached the disk
        return None
    payload = file.read(length)
    return payload if len(payload) == length and crc32(payload) == checksum else None
