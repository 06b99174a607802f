"""One upstream's answer on its way to the client, and everything that is held for it.

The object owns the upstream response and the key lease: ``release`` lets both go, never waits and
may be called twice. A generator's ``finally`` would not run if the client left before the first
chunk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

import httpx
import msgspec

from proxy.clock import monotonic
from proxy.errors import ErrorReason, GatewayError
from proxy.metering.attempt import Attempt
from proxy.metering.rewrite import model_rewriter
from proxy.metering.tap import BodyTap, StreamTap
from proxy.relay.inbound import ClientGone
from proxy.routing.keypool import KeyLease
from proxy.types import Fault, Headers

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

STOPPED = "the gateway was stopped"
MAX_HELD = 8 * 1024 * 1024
"""Bytes of a JSON answer that are held to see it whole; a longer one goes out as it comes."""

MAX_DRAINED = 8 * 1024 * 1024
"""Bytes that are read on for a client that has left."""

PASSED = frozenset(
    (
        b"content-type",
        b"content-encoding",
        b"content-language",
        b"cache-control",
        b"openai-model",
        b"openai-processing-ms",
        b"openai-version",
        b"x-generation-id",
        b"x-groq-region",
    )
)
"""The header fields of an upstream's answer that the client gets."""


class Outbound:
    """An answer that began well. ``peek`` looks whether it stays so, ``deliver`` sends it on."""

    def __init__(
        self,
        response: httpx.Response,
        fields: Headers,
        attempt: Attempt,
        lease: KeyLease,
        *,
        hide_usage: bool,
        mend_tools: bool,
        alias: str | None,
    ) -> None:
        self.attempt = attempt
        self.lease = lease
        self.status = response.status_code
        self.started = False  # a byte has gone to the client
        self._response = response
        self._chunks = aiter(response.stream)  # type: ignore[arg-type]
        self._held: list[bytes] = []
        self._size = 0
        self._drained = 0  # bytes read since the client left
        self._ended = False
        self._known: Callable[[bool], None] | None = None
        self._passed: Headers = []
        kind = b""
        encoding: str | None = None
        for field in fields:
            if field[0] in PASSED:
                self._passed.append(field)
                if field[0] == b"content-type":
                    kind = field[1]
                elif field[0] == b"content-encoding" and field[1] != b"identity":
                    encoding = field[1].decode("latin-1")
        self._rewrite = model_rewriter(alias) if alias is not None and not encoding else None
        self.tap: StreamTap | BodyTap
        if kind.startswith(b"text/event-stream"):
            self.tap = StreamTap(
                hide_usage=hide_usage,
                rewrite=self._rewrite,
                mend_tools=mend_tools,
                encoding=encoding,
            )
        else:
            self.tap = BodyTap(encoding=encoding)
        self.tap.transcript = attempt.transcript
        attempt.tap = self.tap

    @property
    def told_all(self) -> bool:
        """``[DONE]`` has gone to the client, which needs no more: many leave there and then."""
        return self.started and isinstance(self.tap, StreamTap) and self.tap.done

    async def peek(self, seconds: float) -> Fault | None:
        """Hold what comes until it is known to be an answer; the fault if it is none.

        A stream is held until its first meaningful event, for ``seconds`` at most; a JSON body
        until it is whole. Raises what reading raises, and ClientGone as ``deliver``.
        """
        tap = self.tap
        if isinstance(tap, BodyTap):
            while self._size < MAX_HELD and await self._hold():
                pass
            return self._judge_body(tap) if self._ended else None
        try:
            async with asyncio.timeout(seconds):
                while not tap.meaningful and await self._hold():
                    pass
        except TimeoutError:
            return None
        if tap.meaningful or not self._ended:
            return None
        empty = tap.first_byte is None
        return Fault(
            ErrorReason.EMPTY_RESPONSE if empty else ErrorReason.TRUNCATED,
            "the upstream's stream ended before it had said anything",
            status=self.status,
            executed=True,
        )

    async def deliver(self, send: Send, headers: Headers, known: Callable[[bool], None]) -> None:
        """Send head, what was held, and the rest as it comes.

        ``known`` is told whether the answer is whole (False: the stream broke off) before the last
        of it goes to the client, ``[DONE]`` being the last of a stream. The body's end is sent only
        for an answer that is whole. What went wrong is told to the client by an error event, and
        left in ``attempt.fault``. ClientGone: the client has left, and more than ``MAX_DRAINED``
        came since.
        """
        self.started = True
        self._known = known
        headers += self._passed
        if self._ended and isinstance(self.tap, BodyTap):
            await self._deliver_whole(send, headers)
            return
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        held = b"".join(self._held)
        self._held.clear()
        tap = self.tap
        if held:
            self._note_end(tap)
            await send({"type": "http.response.body", "body": held, "more_body": True})
        try:
            async for chunk in self._chunks:
                data = tap.feed(chunk, monotonic())
                self._note_end(tap)
                if data:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                if self.attempt.left is not None:
                    self._drain(chunk)
            cut = None
        except httpx.HTTPError as exc:
            cut = fault_of(exc, sent=True)
        self.attempt.ended = self.attempt.ended or monotonic()
        await self._end(send, cut)

    def release(self) -> None:
        """Give the key back and let go of the upstream: at once, whatever state it is in."""
        self.lease.release()
        self.close()

    def close(self) -> None:
        """Let go of the upstream alone."""
        closing = self._response.stream.aclose()  # type: ignore[union-attr]
        try:
            closing.send(None)  # our transport's never waits, so one step is all of it
        except StopIteration:
            pass
        finally:
            closing.close()

    async def interrupt(self, send: Send) -> None:
        """Break the answer off, because the gateway is being stopped."""
        if not self.told_all:
            rest = self.tap.finish() if isinstance(self.tap, StreamTap) else b""
            fault = self.attempt.fault = Fault(ErrorReason.INTERRUPTED, STOPPED)
            await self._break_off(send, fault, rest)

    async def _hold(self) -> bool:
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            self._ended = True
            self.attempt.ended = monotonic()
            return False
        data = self.tap.feed(chunk, monotonic())
        self._held.append(data)
        self._size += len(data)
        if self.attempt.left is not None:
            self._drain(chunk)
        return True

    def _drain(self, chunk: bytes) -> None:
        """Count what is read for the books alone."""
        self._drained += len(chunk)
        if self._drained > MAX_DRAINED:
            raise ClientGone

    def _judge_body(self, tap: BodyTap) -> Fault | None:
        tap.finish()
        if tap.error is not None or tap.usage is not None:
            return None
        if tap.valid and not tap.empty:
            return None
        reason = ErrorReason.EMPTY_RESPONSE if tap.empty else ErrorReason.BAD_RESPONSE
        what = "an empty answer" if tap.empty else "an answer that is no JSON object"
        return Fault(
            reason,
            f"the upstream sent {what}",
            status=self.status,
            executed=True,
        )

    def _note_end(self, tap: StreamTap | BodyTap) -> None:
        """With ``[DONE]`` all is known, though the stream may go on."""
        if isinstance(tap, StreamTap) and tap.done:
            self.attempt.ended = self.attempt.ended or monotonic()
            self._tell(True)

    def _tell(self, whole: bool) -> None:
        """Say, once, what became of the answer."""
        if self._known is not None:
            known, self._known = self._known, None
            known(whole)

    async def _deliver_whole(self, send: Send, headers: Headers) -> None:
        body = b"".join(self._held)
        self._held.clear()
        if self._rewrite is not None:
            body = self._rewrite(body)
        headers.append((b"content-length", b"%d" % len(body)))
        self._tell(True)
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _end(self, send: Send, cut: Fault | None) -> None:
        tap, rest = self.tap, b""
        if isinstance(tap, BodyTap):
            tap.finish()
        else:
            rest = tap.finish()
            if tap.done:
                cut = None  # nothing that matters is missing
            elif cut is None and tap.error is None and not tap.complete:
                cut = Fault(
                    ErrorReason.TRUNCATED,
                    "the upstream's stream ended before the answer was complete",
                    status=self.status,
                )
        if cut is not None:
            self.attempt.fault = cut
            self._tell(False)
            await self._break_off(send, cut, rest)
            return
        self._tell(True)
        if rest:
            await send({"type": "http.response.body", "body": rest, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _break_off(self, send: Send, fault: Fault, rest: bytes) -> None:
        """Tell the client that its stream is broken, and leave it without an end."""
        tap = self.tap
        if isinstance(tap, StreamTap) and tap.error is None:
            gap = b"\n\n" if tap.inside_event else b""
            code = "stream_timeout" if fault.reason is ErrorReason.TIMEOUT else "stream_truncated"
            error = {"message": fault.message, "type": "api_error", "param": None, "code": code}
            event = rest + gap + b"data: " + msgspec.json.encode({"error": error}) + b"\n\n"
            await send({"type": "http.response.body", "body": event, "more_body": True})


def fault_of(exc: httpx.HTTPError, *, sent: bool = False) -> Fault:
    """What a failure of the transport means. ``sent``: the answer had already begun."""
    message = str(exc) or type(exc).__name__
    if isinstance(exc, (httpx.ConnectError, httpx.ConnectTimeout)):
        return Fault(ErrorReason.CONNECT, message)
    if isinstance(exc, httpx.TimeoutException):
        return Fault(ErrorReason.TIMEOUT, message, executed=True)
    if isinstance(exc, httpx.LocalProtocolError):
        return Fault(ErrorReason.INTERNAL, message)
    if sent:
        return Fault(ErrorReason.TRUNCATED, message, executed=True)
    if isinstance(exc, httpx.RemoteProtocolError):
        return Fault(ErrorReason.BAD_RESPONSE, message, executed=True)
    return Fault(ErrorReason.STREAM_ERROR, message, executed=True)


async def interrupt(send: Send, outbound: Outbound | None, headers: Headers) -> None:
    """Tell the client that the gateway is being stopped, in whatever state its call is."""
    with suppress(TimeoutError):
        async with asyncio.timeout(0):  # for a client that does not read nobody waits any more
            if outbound is not None:
                await outbound.interrupt(send)
                return
            error = GatewayError(503, STOPPED, ErrorReason.INTERRUPTED, code="interrupted")
            await send_error(send, error, headers)


async def send_error(send: Send, error: GatewayError, headers: Headers) -> None:
    """Answer with OpenAI's error envelope."""
    body = error.body()
    headers = [
        *headers,
        *error.headers(),
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
    ]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
