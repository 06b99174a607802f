"""The upstream client: HTTP/1.1 on asyncio and httptools, behind httpx's transport interface.

Stock clients cost several times what the rest of a relayed request does, and this is the piece
that the program exists for. One connection carries one exchange at a time; what is idle waits in
a stack for each origin.

A request is sent again by itself only if a connection that had been used before closed at once and
without one byte of an answer: its server had given it up already (RFC 9112, section 9.3.1).
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections import deque
from typing import Any, cast

import certifi
import httptools
import httpx

from proxy.clock import monotonic
from proxy.providers.body import Body
from proxy.providers.head import (
    MAX_HEAD,
    TOO_LARGE,
    Malformed,
    check_size,
    ends_with_the_connection,
    serialise,
)

Origin = tuple[bytes, str, int]

MAX_IDLE = 256
IDLE_SECONDS = 30.0
RESTED_SECONDS = 0.5
"""Servers close what has been idle; a connection that was in use just now is not one of those."""
STALE_SECONDS = 0.25
"""A close that comes later than this after sending may come from a server that was at work."""
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
    ``request.extensions["sent"]``, if there, is called when there is a connection to send on;
    ``response.extensions["first_byte"]`` is when the head began to come, on ``clock.monotonic``.
    Failures are httpx's: ConnectError, ConnectTimeout, ReadError, ReadTimeout and
    RemoteProtocolError; LocalProtocolError for a request that could smuggle another.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._idle: dict[Origin, deque[_Connection]] = {}
        self._open: set[_Connection] = set()
        self._sweep: asyncio.TimerHandle | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        origin = (url.raw_scheme, url.host, url.port or (443 if url.scheme == "https" else 80))
        waits = request.extensions.get("timeout", DEFAULT_TIMEOUT)
        if isinstance(request.stream, httpx.ByteStream):
            content = b"".join(request.stream)
        else:
            content = await request.aread()
        payload = serialise(request, content)
        connection = self._take_idle(origin)
        sent = request.extensions.get("sent", _nobody)
        if connection is not None:
            try:
                sent()
                return await connection.exchange(payload, waits)
            except _Stale:
                pass
        connection = await self._connect(origin, waits.get("connect"))
        sent()
        return await connection.exchange(payload, waits)

    async def aclose(self) -> None:
        """Close every connection; what was under way on them fails."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for connection in list(self._open):
            connection.fail(httpx.ReadError("the upstream client was closed"))

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
                transport, connection = await loop.create_connection(
                    lambda: _Connection(self, origin, loop), host, port, ssl=tls
                )
        except TimeoutError as exc:  # ours, or the kernel's
            raise httpx.ConnectTimeout(f"no connection to {host}:{port} in time") from exc
        except (OSError, ValueError) as exc:  # ValueError: what is no host name
            raise httpx.ConnectError(f"cannot connect to {host}:{port}: {_reason(exc)}") from exc
        if not transport.is_closing():
            # Not before: uvloop tells a connection that was cancelled of its making, and not
            # of its end.
            self._open.add(connection)
        return connection

    def closed(self, connection: _Connection) -> None:
        self._open.discard(connection)
        stack = self._idle.get(connection.origin)
        if stack and connection in stack:
            stack.remove(connection)

    def idle(self, connection: _Connection) -> None:
        """Take a connection back whose exchange has ended; let the stalest go."""
        stack = self._idle.setdefault(connection.origin, deque())
        stack.append(connection)
        if len(stack) > MAX_IDLE:
            stack.popleft().abort()
        if self._sweep is None:
            self._sweep = connection.loop.call_later(IDLE_SECONDS, self._close_stale)

    def _close_stale(self) -> None:
        """Close what nobody wanted for a while, and come again when the next one is due."""
        due = []
        for stack in self._idle.values():
            while stack and not stack[0].usable():
                stack.popleft().abort()
            if stack:
                due.append(stack[0])
        self._sweep = None
        if due:
            when = min(connection.idle_since for connection in due) + IDLE_SECONDS
            self._sweep = due[0].loop.call_at(when, self._close_stale)


class _Stale(Exception):
    """A kept connection closed before a byte of the answer: nothing was executed."""


class _Connection(asyncio.Protocol):
    """One connection. The parser calls the ``on_`` methods while data is fed to it."""

    def __init__(self, owner: Transport, origin: Origin, loop: asyncio.AbstractEventLoop) -> None:
        self.origin = origin
        self.loop = loop
        self.idle_since = loop.time()
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._body: Body | None = None
        self._head: asyncio.Future[httpx.Response] | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._received = False
        self._first_byte = 0.0
        self._beside = 0  # bytes since the last that belonged to a body
        self._used = False
        self._rested = False
        self._sent = 0.0
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._read_timeout: float | None = None
        self._until_close = False

    # The exchange.

    async def exchange(self, payload: bytes, waits: dict[str, float | None]) -> httpx.Response:
        """Send a request and wait for the head of the answer; its body is read later."""
        transport = self._transport
        assert transport is not None
        if transport.is_closing():  # accepted, and closed before anything could be sent
            raise httpx.ConnectError("the upstream closed the new connection at once")
        self._parser = httptools.HttpResponseParser(self)
        self._headers = []
        self._beside = 0
        self._received = self._until_close = False
        self._read_timeout = waits.get("read")
        self._sent = self.loop.time()
        self._rested = self._used and self._sent - self.idle_since >= RESTED_SECONDS
        head: asyncio.Future[httpx.Response] = self.loop.create_future()
        self._head = head
        transport.write(payload)
        self.expect(waits.get("first_byte", self._read_timeout))
        try:
            return await head
        except BaseException:
            if self._head is head:  # else the answer is whole, and another may have this by now
                self.abort()
            if head.done() and not head.cancelled():
                head.exception()  # seen, even if it came together with a cancellation
            raise

    def usable(self) -> bool:
        transport = self._transport
        return (
            transport is not None
            and not transport.is_closing()
            and self.loop.time() - self.idle_since < IDLE_SECONDS
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
        self._deadline = self.loop.time() + seconds
        if self._timer is None:
            self._timer = self.loop.call_at(self._deadline, self._check_deadline)
        elif self._timer.when() > self._deadline:
            self._timer.cancel()
            self._timer = self.loop.call_at(self._deadline, self._check_deadline)

    def _check_deadline(self) -> None:
        self._timer = None
        if self._deadline is None:
            return
        if self.loop.time() < self._deadline:
            self._timer = self.loop.call_at(self._deadline, self._check_deadline)
            return
        what = "an answer" if self._body is None else "the next chunk"
        self.fail(httpx.ReadTimeout(f"the upstream did not send {what} in time"))

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        parser = self._parser
        if parser is None:  # nobody asked: an idle connection must stay silent
            self.abort()
            return
        self._received = True
        self._beside += len(data)
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.fail(httpx.RemoteProtocolError("the upstream wants another protocol"))
        except httptools.HttpParserError as exc:
            what = exc.__context__ if isinstance(exc.__context__, Malformed) else exc
            self.fail(httpx.RemoteProtocolError(f"the upstream's answer is not HTTP: {what}"))
        else:
            if self._body is not None:
                self._body.wake()
            if self._beside > MAX_HEAD and self._parser is not None:
                self.fail(httpx.RemoteProtocolError(f"the upstream's answer: {TOO_LARGE}"))

    def eof_received(self) -> bool:
        """A server that has said its last is hung up on: it has nothing more to tell us."""
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
        elif self._received:
            self.fail(httpx.RemoteProtocolError(f"the upstream cut its answer off{_why(exc)}"))
        elif self._rested and self.loop.time() - self._sent < STALE_SECONDS:
            self.fail(_Stale())
        else:
            self.fail(httpx.ReadError(f"the upstream closed without an answer{_why(exc)}"))

    # httptools

    def on_message_begin(self) -> None:
        if self._parser is None:
            raise Malformed("more came than the answer")
        self._first_byte = monotonic()  # of an interim answer, until the one that counts begins

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))  # after the head: trailers, which are dropped

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        headers, self._headers = self._headers, []
        if status < 200:
            if status < 100:
                raise Malformed(f"status {status}")
            return
        if self._head is None or self._head.done():
            return
        check_size(headers, self._beside)
        self._until_close = ends_with_the_connection(status, headers)
        self._body = Body(self, self.loop, self._read_timeout)
        self.expect(None)
        began = {"first_byte": self._first_byte}
        self._head.set_result(
            httpx.Response(status, headers=headers, stream=self._body, extensions=began)
        )

    def on_body(self, body: bytes) -> None:
        self._beside = 0
        if self._body is not None:
            self._body.push(body)

    def on_message_complete(self) -> None:
        if self._body is not None:  # None: only an interim answer is complete
            self._finish(keep=self._parser.should_keep_alive())

    def _finish(self, keep: bool) -> None:
        body, self._body, self._parser, self._head = self._body, None, None, None
        assert body is not None
        assert self._transport is not None
        self.expect(None)
        body.complete()
        if not keep or self._transport.is_closing() or self._transport.get_write_buffer_size():
            self.abort()  # the answer is whole; if the request is not, the rest is not wanted
            return
        self.resume()
        self._used = True
        self.idle_since = self.loop.time()
        self._owner.idle(self)

    def fail(self, error: Exception) -> None:
        """End the exchange with an error, at whichever of its two waits it stands."""
        body, self._body, self._parser = self._body, None, None
        if self._head is not None and not self._head.done():
            self._head.set_exception(error)
        elif body is not None:
            body.complete(error)
        self.abort()


def _nobody() -> None:
    """Who wants to know that a request was sent, if nobody does."""


def _reason(exc: Exception) -> str:
    if isinstance(exc, ssl.SSLCertVerificationError):
        return exc.verify_message
    if isinstance(exc, ssl.SSLError):
        return exc.reason or str(exc)
    if isinstance(exc, OSError) and exc.errno is not None:
        return os.strerror(exc.errno) if exc.errno > 0 else exc.strerror or str(exc)
    return str(exc) or type(exc).__name__


def _why(exc: Exception | None) -> str:
    return f": {_reason(exc)}" if exc is not None else ""
