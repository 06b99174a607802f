"""Where the database is, and the error that says it cannot be had."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

File = tuple[int, int]
"""Device and inode: which file it is, whatever its name."""


class StoreError(Exception):
    """The database cannot be read or written just now; one line, without parts of a row."""


class SchemaError(StoreError):
    """The database was made by a newer version; trying again does not help."""


def parse(url: str) -> URL:
    """The address with ``~`` expanded and a file's path absolute; StoreError if it is none."""
    try:
        address = make_url(url)
    except ArgumentError:
        raise StoreError("the database address is not a URL") from None
    if address.drivername not in ("sqlite+aiosqlite", "postgresql+asyncpg"):
        raise StoreError(
            f"cannot use a {address.drivername} database:"
            " the address starts with sqlite+aiosqlite:/// or postgresql+asyncpg://"
        )
    if address.get_backend_name() != "sqlite":
        return address
    if not address.database or address.database == ":memory:":
        raise StoreError("the database address names no file")
    path = Path(address.database).expanduser().absolute()
    return address.set(database=str(path))


def shown(address: URL) -> str:
    """The address for people: a file's path, or the URL without its password."""
    if address.get_backend_name() == "sqlite":
        return address.database or ""
    return address.render_as_string(hide_password=True)


def make_folder(address: URL) -> None:
    """Create the folders above a database file; StoreError where that is not allowed."""
    if address.get_backend_name() != "sqlite" or not address.database:
        return
    folder = Path(address.database).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot create the folder {folder}: {error.strerror}") from error


BESIDE = ("-wal", "-shm")
"""What SQLite has beside a database file that is open."""


def file(address: URL, suffix: str = "") -> File | None:
    """The file at the path of the database; None if none is there, or the database is no file.
    StoreError if that cannot be seen."""
    if address.get_backend_name() != "sqlite":
        return None
    try:
        found = os.stat(f"{address.database}{suffix}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StoreError(f"cannot see {address.database}{suffix}: {error.strerror}") from error
    return found.st_dev, found.st_ino


def clear(address: URL, remains: Mapping[str, File | None]) -> None:
    """Delete what is still there beside a database file that is gone. Who still has that one open
    would share it with whoever makes the next."""
    if file(address) is not None:
        return
    for suffix, was in remains.items():
        if was is not None and file(address, suffix) == was:
            with suppress(OSError):
                os.unlink(f"{address.database}{suffix}")


def reason(error: BaseException) -> str:
    """What went wrong, in one line; only the driver's first line, as later ones quote the row."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        error = error.orig
    elif isinstance(error, SQLAlchemyError):
        return type(error).__name__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
