"""Steps of a command that works beside a gateway: they wait until the database is free."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from typing import TypeVar

from sqlalchemy.exc import OperationalError

_TRIES = 15  # of a second each, while another process has the database locked
_T = TypeVar("_T")


async def when_free(step: Callable[[], Awaitable[_T]]) -> _T:
    """What the step returns, taken again while another process has a SQLite file locked: its lock
    has no queue, so that who writes all the time can get it several times in a row."""
    tries = _TRIES
    while True:
        try:
            return await step()
        except (OperationalError, sqlite3.OperationalError) as error:
            tries -= 1
            if not tries or not _busy(error):
                raise


def _busy(error: OperationalError | sqlite3.OperationalError) -> bool:
    driver = error.orig if isinstance(error, OperationalError) else error
    code = driver.sqlite_errorcode if isinstance(driver, sqlite3.Error) else 0
    return code & 0xFF == sqlite3.SQLITE_BUSY
