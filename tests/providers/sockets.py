"""A server that sends exactly the bytes a test tells it to, and a client to send to it with.

async with listening(script) as server:     ``script`` gets a Peer for every connection
    server.requests                         every whole request that was read, in order
    server.peers                            the server's ends of its connections, in order
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx

from proxy.providers.body import Body
from proxy.providers.transport import Transport, _Connection

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


class Peer:
    """The server's end of one connection."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        requests: list[bytes],
    ) -> None:
        self.reader = reader
        self.writer = writer
        self._requests = requests
        self.left = False  # the client has hung up

    async def request(self) -> bytes:
        """The next whole request; IncompleteReadError when there is none."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        request = head + await self.reader.readexactly(int(length or 0))
        self._requests.append(request)
        return request

    async def send(self, *parts: bytes) -> None:
        for part in parts:
            if self.writer.is_closing():  # uvloop's would complain in its own way
                raise ConnectionResetError
            self.writer.write(part)
            await self.writer.drain()

    async def gone(self) -> None:
        """Wait until the client has hung up."""
        await self.reader.read()
        self.left = True

    def close(self) -> None:
        self.writer.close()

    def half_close(self) -> None:
        self.writer.write_eof()

    def reset(self) -> None:
        """Close with RST, not with FIN."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()


Script = Callable[[Peer], Awaitable[None]]


class Server:
    def __init__(self) -> None:
        self.url = ""
        self.port = 0
        self.peers: list[Peer] = []
        self.requests: list[bytes] = []


@asynccontextmanager
async def listening(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    """A server on loopback, for as long as the block lasts."""
    server = Server()
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        peer = Peer(reader, writer, server.requests)
        server.peers.append(peer)
        try:
            await script(peer)
        except (ConnectionError, asyncio.IncompleteReadError):
            peer.left = True
        except asyncio.CancelledError:
            pass
        finally:
            writer.transport.abort()
            tasks.discard(task)

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    server.port = listener.sockets[0].getsockname()[1]
    server.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.port}/v1"
    try:
        yield server
    finally:
        listener.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)


def always(*answer: bytes) -> Script:
    """Gives every request the same answer, in these writes."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(*answer)

    return script


def once(*answer: bytes) -> Script:
    """Answers one request and closes."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(*answer)
        peer.close()
        await peer.writer.wait_closed()

    return script


@contextmanager
def deaf() -> Iterator[int]:
    """The port of a listener that accepts nobody: whoever connects waits."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    address = listener.getsockname()
    fillers = [socket.socket() for _ in range(3)]
    try:
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        yield address[1]
    finally:
        for each in (*fillers, listener):
            each.close()


def post(url: str, body: bytes = b"{}", **waits: float) -> httpx.Request:
    """A request; ``connect``, ``first_byte`` and ``read`` are seconds, 5 if not given."""
    return httpx.Request(
        "POST",
        url,
        headers=[(b"host", b"up"), (b"authorization", b"Bearer sk-1")],
        stream=httpx.ByteStream(body),
        extensions={"timeout": {"connect": 5.0, "first_byte": 5.0, "read": 5.0, **waits}},
    )


async def fetch(transport: httpx.AsyncBaseTransport, request: httpx.Request) -> bytes:
    """The whole body of an answer."""
    response = await transport.handle_async_request(request)
    return b"".join(await rest(response))


async def rest(response: httpx.Response) -> list[bytes]:
    """What has not been read of an answer, as it came."""
    return [chunk async for chunk in body_of(response)]


def body_of(response: httpx.Response) -> Body:
    assert isinstance(response.stream, Body)
    return response.stream


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that takes a few turns of the loop."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - any state, not only what has an event
            await asyncio.sleep(0.001)


def idle(transport: Transport) -> int:
    """How many connections wait for a request."""
    return sum(len(stack) for stack in transport._idle.values())


class Line(asyncio.Transport):
    """A connection in memory: the test feeds it, read by read, and sees what was written."""

    def __init__(self, transport: Transport) -> None:
        super().__init__()
        self.origin = (b"http", "memory", 80)
        self._owner = transport
        self.connection = _Connection(transport, self.origin, asyncio.get_running_loop())
        self.written = b""
        self.closed = False
        self.connection.connection_made(self)
        transport._open.add(self.connection)

    def write(self, data: Any) -> None:
        self.written += data

    def feed(self, data: bytes) -> None:
        if not self.closed:
            self.connection.data_received(data)

    def abort(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self.connection.connection_lost, None)

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    async def ask(self, *reads: bytes) -> tuple[int, bytes]:
        """Send a request and feed an answer; its status and its body."""
        assert self._owner._take_idle(self.origin) in (None, self.connection)
        asking = asyncio.ensure_future(self.connection.exchange(b"GET", {}))
        await asyncio.sleep(0)
        for read in reads:
            self.feed(read)
        response = await asking
        return response.status_code, b"".join(await rest(response))
