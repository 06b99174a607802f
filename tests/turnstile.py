"""A TCP connection through us to a server, which seems to go away and come back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Turnstile:
    """``shut`` cuts all connections, and lets none in until ``reopen``; each try is counted."""

    def __init__(self, host: str, port: int) -> None:
        self._behind = (host, port)
        self._open = True
        self._sides: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.tries = 0

    def shut(self) -> None:
        self._open, self.tries = False, 0
        for side in self._sides:
            side.transport.abort()

    def reopen(self) -> None:
        self._open = True

    async def admit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection."""
        self.tries += 1
        if not self._open:
            writer.transport.abort()
            return
        others, other = await asyncio.open_connection(*self._behind)
        self._sides |= {writer, other}
        await asyncio.gather(_pass(reader, other), _pass(others, writer))
        self._sides -= {writer, other}


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()


@asynccontextmanager
async def turnstile(host: str, port: int) -> AsyncIterator[Turnstile]:
    """One in front of that server, on a port of its own."""
    made = Turnstile(host, port)
    server = await asyncio.start_server(made.admit, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    async with server:
        yield made
        made.shut()
