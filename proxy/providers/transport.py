"""The upstream client: HTTP/1.1 on asyncio and httptools, behind httpx's transport interface.

Stock clients cost several times what the rest of a relayed request does, and this is the piece
that the program exists for. One connection carries one exchange at a time; what is idle waits in
a stack for each origin.

A request is sent again by itself only if no connection could be made, or if a connection that had
been used before closed without one byte of an answer (RFC 9112, section 9.3.1).
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Iterable
from typing import Any, cast

import certifi
import httptools
import httpx

Origin = tuple[bytes, str, int]

MAX_HEAD = 64 * 1024
MAX_FIELDS = 256
HIGH_WATER = 256 * 1024
"""Bytes held for a slow reader before the socket is no longer read."""
MAX_IDLE = 256
IDLE_SECONDS = 30.0
DEFAULT_TIMEOUT = {"connect": 5.0, "first_byte": 120.0, "read": 120.0}


def tls_context() -> ssl.SSLContext:
    """The platform's trust store (``SSL_CERT_FILE`` counts), certifi's where there is none."""
    context = ssl.create_default_context()
    if not context.cert_store_stats()["x509_ca"] and not ssl.get_default_verify_paths().capath:
        context.load_verify_locations(certifi.where())
    context.set_alpn_protocols(["http/1.1"])
    return context


class Transport(httpx.AsyncBaseTransport):
    """Sends requests, one after the other on kept connections.

    Timeouts are read from ``request.extensions["timeout"]``, in seconds: ``connect``,
    ``first_byte`` (from sending to the head of the answer) and ``read`` (between two chunks).
    Failures are httpx's: ConnectError, ConnectTimeout, ReadError, ReadTimeout and
    RemoteProtocolError.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._idle: dict[Origin, deque[_Connection]] = {}
        self._open: set[_Connection] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        origin = (url.raw_scheme, url.host, url.port or (443 if url.scheme == "https" else 80))
        timeout = request.extensions.get("timeout", DEFAULT_TIMEOUT)
        if isinstance(request.stream, httpx.ByteStream):
            content = b"".join(request.stream)
        else:
            content = await request.aread()
        payload = _serialise(request, content)
        connection = self._take_idle(origin)
        if connection is not None:
            try:
                return await connection.exchange(payload, timeout)
            except _Stale:
                pass
        connection = await self._connect(origin, timeout.get("connect"))
        return await connection.exchange(payload, timeout)

    async def aclose(self) -> None:
        for connection in list(self._open):
            connection.abort()

    def _take_idle(self, origin: Origin) -> _Connection | None:
        stack = self._idle.get(origin)
        while stack:
            connection = stack.pop()
            if connection.usable():
                return connection
            connection.abort()
        return None

    async def _connect(self, origin: Origin, seconds: float | None) -> _Connection:
        scheme, host, port = origin
        loop = asyncio.get_running_loop()
        if scheme == b"https" and self._tls is None:
            self._tls = tls_context()
        tls = self._tls if scheme == b"https" else None
        try:
            async with asyncio.timeout(seconds):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self, origin, loop), host, port, ssl=tls
                )
        except TimeoutError as exc:
            raise httpx.ConnectTimeout(f"no connection to {host}:{port} in {seconds:g} s") from exc
        except (OSError, ssl.SSLError) as exc:
            raise httpx.ConnectError(f"cannot connect to {host}:{port}: {_reason(exc)}") from exc
        return connection

    def opened(self, connection: _Connection) -> None:
        self._open.add(connection)

    def closed(self, connection: _Connection) -> None:
        self._open.discard(connection)
        stack = self._idle.get(connection.origin)
        if stack and connection in stack:
            stack.remove(connection)

    def idle(self, connection: _Connection) -> None:
        """Take a connection back whose exchange has ended; let the stalest go."""
        stack = self._idle.setdefault(connection.origin, deque())
        stack.append(connection)
        while len(stack) > MAX_IDLE or not stack[0].usable():
            stack.popleft().abort()


class _Stale(Exception):
    """A kept connection closed before a byte of the answer: nothing was executed."""


class _Connection(asyncio.Protocol):
    """One connection. The parser calls the ``on_`` methods while data is fed to it."""

    def __init__(self, owner: Transport, origin: Origin, loop: asyncio.AbstractEventLoop) -> None:
        self.origin = origin
        self._owner = owner
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._body: _Body | None = None
        self._head: asyncio.Future[httpx.Response] | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._received = False
        self._used = False
        self._idle_since = loop.time()
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._read_timeout: float | None = None
        self._until_close = False

    # The exchange.

    async def exchange(self, payload: bytes, timeout: dict[str, float]) -> httpx.Response:
        """Send a request and wait for the head of the answer; its body is read later."""
        assert self._transport is not None
        self._parser = httptools.HttpResponseParser(self)
        self._headers = []
        self._head_bytes = 0
        self._received = self._until_close = False
        self._body = None
        self._head = self._loop.create_future()
        self._read_timeout = timeout.get("read")
        self._transport.write(payload)
        self.expect(timeout.get("first_byte", self._read_timeout))
        try:
            return await self._head
        except BaseException:
            self.abort()
            raise

    def usable(self) -> bool:
        transport = self._transport
        return (
            transport is not None
            and not transport.is_closing()
            and self._loop.time() - self._idle_since < IDLE_SECONDS
        )

    def abort(self) -> None:
        """Close at once; the upstream stops working for us where it notices."""
        self.expect(None)
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    # Deadlines: one timer that moves itself on, so that a chunk costs no timer of its own.

    def expect(self, seconds: float | None) -> None:
        """Within ``seconds`` something must come; None: nothing is awaited."""
        if seconds is None:
            self._deadline = None
            return
        self._deadline = self._loop.time() + seconds
        if self._timer is None:
            self._timer = self._loop.call_at(self._deadline, self._check_deadline)
        elif self._timer.when() > self._deadline:
            self._timer.cancel()
            self._timer = self._loop.call_at(self._deadline, self._check_deadline)

    def expect_chunk(self) -> None:
        self.expect(self._read_timeout)

    def _check_deadline(self) -> None:
        self._timer = None
        if self._deadline is None:
            return
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._check_deadline)
            return
        what = "an answer" if self._body is None else "the next chunk"
        self._fail(httpx.ReadTimeout(f"the upstream did not send {what} in time"))

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._owner.opened(self)

    def data_received(self, data: bytes) -> None:
        if self._parser is None:  # nobody asked: an idle connection must stay silent
            self.abort()
            return
        self._received = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail(httpx.RemoteProtocolError("the upstream wants another protocol"))
        except httptools.HttpParserError as exc:
            self._fail(httpx.RemoteProtocolError(f"the upstream's answer is not HTTP: {exc}"))
        else:
            if self._body is not None:
                self._body.wake()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.closed(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._parser is None:
            return
        if self._until_close and exc is None and self._body is not None:
            self._finish(keep=False)
        elif not self._received and self._used:
            self._fail(_Stale())
        elif not self._received:
            self._fail(httpx.ReadError(f"the upstream closed without an answer{_why(exc)}"))
        else:
            self._fail(httpx.RemoteProtocolError(f"the upstream cut its answer off{_why(exc)}"))

    # httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD or len(self._headers) >= MAX_FIELDS:
            self._fail(httpx.RemoteProtocolError("the head of the upstream's answer is too large"))
            return
        if self._body is None:  # trailers are dropped
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            self._headers = []
            return
        if self._head is None or self._head.done():
            return
        names = [name for name, _ in self._headers]
        sized, chunked = b"content-length" in names, b"transfer-encoding" in names
        if sized and chunked:
            self._fail(httpx.RemoteProtocolError("the upstream's answer has two lengths"))
            return
        self._until_close = not sized and not chunked and status not in (204, 304)
        self._body = _Body(self)
        self.expect_chunk()
        self._head.set_result(
            httpx.Response(status, headers=self._headers, stream=self._body, extensions={})
        )

    def on_body(self, body: bytes) -> None:
        if self._body is not None:
            self._body.push(body)

    def on_message_complete(self) -> None:
        if self._parser is None or self._parser.get_status_code() < 200 or self._body is None:
            return
        self._finish(keep=self._parser.should_keep_alive() and not self._until_close)

    def _finish(self, keep: bool) -> None:
        body, self._body, self._parser = self._body, None, None
        assert body is not None
        self.expect(None)
        body.complete()
        if keep and self._transport is not None and not self._transport.is_closing():
            self.resume()
            self._used = True
            self._idle_since = self._loop.time()
            self._owner.idle(self)
        elif self._transport is not None:
            self._transport.close()

    def _fail(self, error: Exception) -> None:
        """End the exchange with an error, at whichever of its two waits it stands."""
        self._parser = None
        if self._head is not None and not self._head.done():
            self._head.set_exception(error)
        elif self._body is not None:
            self._body.complete(error)
        self._body = None
        self.abort()


class _Body(httpx.AsyncByteStream):
    """The body of one answer. What arrived together is handed on together."""

    def __init__(self, connection: _Connection) -> None:
        self._connection: _Connection | None = connection
        self._chunks: list[bytes] = []
        self._size = 0
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._done = False
        self._error: Exception | None = None

    def __aiter__(self) -> _Body:
        return self

    async def __anext__(self) -> bytes:
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self._done or self._connection is None:
                raise StopAsyncIteration
            self._connection.expect_chunk()
            self._waiter = self._connection._loop.create_future()
            await self._waiter
        chunks = self._chunks
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        self._chunks = []
        self._size = 0
        if self._connection is not None:
            self._connection.expect(None)  # while the reader is busy, nobody is late
            if self._paused:
                self._paused = False
                self._connection.resume()
        return data

    async def aclose(self) -> None:
        """Give up the rest. Idempotent, and never waits."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()

    def push(self, data: bytes) -> None:
        self._chunks.append(data)
        self._size += len(data)
        if self._size > HIGH_WATER and not self._paused and self._connection is not None:
            self._paused = True
            self._connection.pause()

    def wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and self._chunks:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def complete(self, error: Exception | None = None) -> None:
        self._done = True
        self._error = error
        self._connection = None
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


def _serialise(request: httpx.Request, content: bytes) -> bytes:
    lines: list[bytes] = [b"%s %s HTTP/1.1" % (request.method.encode(), request.url.raw_path)]
    lines += _fields(request.headers.raw)
    if content or request.method == "POST":
        lines.append(b"content-length: %d" % len(content))
    lines.append(b"\r\n")
    return b"\r\n".join(lines) + content


def _fields(headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """Header lines. A value that would end its line is refused: it could smuggle another."""
    lines = []
    for name, value in headers:
        if b"\n" in value or b"\r" in value or b"\0" in value:
            raise httpx.LocalProtocolError(f"a control character in header {name.decode()!r}")
        if name.lower() not in (b"content-length", b"transfer-encoding"):
            lines.append(b"%s: %s" % (name, value))
    return lines


def _reason(exc: Exception) -> str:
    text = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
    return text or type(exc).__name__


def _why(exc: Exception | None) -> str:
    return f": {_reason(exc)}" if exc is not None else ""
