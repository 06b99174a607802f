"""The schema's revision: looked at with plain SQL, changed by a child process.

Alembic stays out of the serving process, which would keep its memory for ever.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from sqlalchemy import URL, text
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncEngine

from proxy.store.address import SchemaError, StoreError

HEAD = "0015"
"""The newest revision in ``migrations/versions``."""

NEWER_SCHEMA = 3
"""The child's exit status if the database is of a revision that it does not know."""

_PACKAGES = Path(__file__).parents[2]


async def ensure(engine: AsyncEngine, address: URL) -> None:
    """Bring the database to ``HEAD``. SchemaError if it is newer, StoreError if it fails."""
    # A file that is still empty is left to the child, which has to touch it first.
    if _has_content(address) and await revision(engine) == HEAD:
        return
    await _migrate(address)


async def revision(engine: AsyncEngine) -> str | None:
    """The revision that the database is at; None if it has no schema yet."""
    try:
        async with engine.connect() as connection:
            found = await connection.execute(text("SELECT version_num FROM alembic_version"))
            return found.scalar_one_or_none()
    except (OperationalError, ProgrammingError) as error:
        if "alembic_version" in str(error.orig):
            return None
        raise


def _has_content(address: URL) -> bool:
    if address.get_backend_name() != "sqlite":
        return True
    path = Path(address.database or "")
    return path.exists() and path.stat().st_size > 0


async def _migrate(address: URL) -> None:
    # The address goes by standard input: a password has no business in the list of processes.
    # The folder that holds this package is the working directory, so that the child imports this
    # one, whatever else is called proxy where the command was typed.
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy.store.migrate"),
        cwd=_PACKAGES,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        url = address.render_as_string(hide_password=False)
        _, said = await child.communicate(url.encode())
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode == 0:
        return
    lines = said.decode(errors="replace").strip().splitlines() or ["no reason given"]
    failure = SchemaError if child.returncode == NEWER_SCHEMA else StoreError
    raise failure(lines[-1])
