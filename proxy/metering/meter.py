"""The books of one request: every attempt becomes one frozen record, and nothing is invented later.

``Meter`` is opened when a request is admitted and closed once; closing is synchronous, so that it
also happens when the task is being cancelled. A failed attempt is kept back until it is known
whether another follows it: only the last one is final.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from proxy import tags
from proxy.clock import monotonic, now_ms
from proxy.content import Content
from proxy.errors import ErrorReason, GatewayError
from proxy.metering.admission import admission
from proxy.metering.attempt import Asked, Attempt, Attribution
from proxy.metering.departure import Departure
from proxy.metering.figures import TOLD, figures
from proxy.metering.journal import Journal
from proxy.metering.names import identifier, numbers, title, word
from proxy.metering.pricing import Quote
from proxy.metering.retold import retold
from proxy.metering.spent import spent
from proxy.metering.tap import StreamTap, Tap
from proxy.metering.timing import ms, speed, timing
from proxy.metering.tokenizer import Sample
from proxy.metering.transcript import Transcript
from proxy.redact import shorten
from proxy.types import CallRecord, Fault, Headers, Target, Usage

MAX_METADATA = 4096
"""Bytes of JSON in ``metadata``."""
LEFT = "the client left"
UNTOLD = "[not kept: it may quote the call]"
_TIMEOUTS = {ErrorReason.TIMEOUT}
_ASIDE = ("is_byok", "cost_details", "total_duration")
"""Members of usage that are kept and have no column."""


class Books(msgspec.Struct, frozen=True):
    """Where records go and how they are priced: the same for every meter of a process.

    ``quote`` takes provider, model, usage and key. It gives None while a price is not known yet;
    the shipper asks again. Without a ``journal`` nothing is kept. ``gpu_memory_mb`` is what is in
    use on this host's GPUs, None without one. ``content`` takes what calls at the level ``full``
    said, ``most`` bytes of it.
    """

    emit: Callable[[CallRecord], None]
    quote: Callable[[str, str, Usage | None, str | None], Quote | None]
    redact: Callable[[str], str]
    privacy_level: str
    journal: Journal | None = None
    gpu_memory_mb: Callable[[], float | None] = lambda: None
    content: Callable[[Content], None] | None = None
    most: int = 0


class Meter:
    """Counts for one request. ``last`` is its newest attempt; ``close`` writes the final row."""

    def __init__(
        self,
        books: Books,
        request_id: str,
        endpoint: str,
        client_id: str | None,
        attribution: Attribution,
        started: float,
    ) -> None:
        self.request_id = request_id
        self.started = started
        self.admitted = started  # when the request had arrived whole
        self.asked = Asked()
        self.request: bytes | None = None  # its body, for as long as somebody needs it
        self.prompt: Sample | None = None  # its text, where that could be counted
        self.target: Target | None = None  # the only one that could serve it
        self.told: Headers = []  # what else the answer is to tell
        self.attempts = 0
        self._books = books
        self._endpoint = endpoint
        self._client_id = client_id
        self.who = attribution
        self._full = books.content is not None and not attribution.private
        lowered = books.content is not None and attribution.private
        self._level = "metadata" if lowered else books.privacy_level
        self._timestamp = now_ms()
        self.last: Attempt | None = None
        self._closed = False
        self.sent = False  # an upstream was asked, or was about to be
        self.tokens: int | None = None  # of all attempts that are written; None: none is known
        self.over: Callable[[Meter], None] | None = None  # told once the final row is written

    def attempt(self, target: Target, asked_at: float) -> Attempt:
        """Prepare another attempt, which counts once it is admitted."""
        attempt = Attempt(self.attempts + 1, target, asked_at, leased=monotonic())
        if self._full:
            attempt.transcript = Transcript(self._books.most)
        return attempt

    def admit(self, attempt: Attempt) -> None:
        """The attempt is about to be sent: from now on it has a row, whatever happens, and the one
        before, which failed, is written as not final. GatewayError if that cannot be written down
        and it must not be sent therefore."""
        if self._books.journal is not None:
            self._books.journal.admit(
                admission(
                    self.request_id,
                    attempt,
                    self.asked,
                    self.who,
                    endpoint=self._endpoint,
                    client_id=self._client_id,
                    privacy_level=self._level,
                )
            )
        if self.last is not None:
            ended = attempt.began
            self._write(self.last, final=False, status=None, client_status=None, ended=ended)
        self.attempts, self.last = attempt.number, attempt
        attempt.admitted = self.sent = True

    def leave(self) -> bool:
        """The client has left. True if an upstream is at work for it that has not told all: that
        may be read on, and whatever comes, the call was cancelled."""
        last = self.last
        if last is None or last.ended is not None or not last.out:
            return False
        last.left = Departure.of(last.tap)
        return last.left is not None

    def forget(self) -> None:
        """The request is answered, and its text, which may be long, no longer needed."""
        if not self._full:
            self.request = None

    def hide(self, text: str) -> str:
        """A text that may quote the call, or what stands for it where no quotation is kept."""
        return text if self._full else UNTOLD

    def close(
        self,
        status: str | None,
        client_status: int | None,
        *,
        reason: ErrorReason | None = None,
        message: str | None = None,
    ) -> None:
        """The request is over: write its final row. ``status`` None: as the last fault says."""
        if self._closed:
            return
        self._closed = True
        now = monotonic()
        if self.last is None:
            self._reject(status, client_status, reason, message, now)
        else:
            self._finish(self.last, status, client_status, reason, message, now)
        if self.over is not None:
            self.over(self)

    def _finish(
        self,
        attempt: Attempt,
        status: str | None,
        client_status: int | None,
        reason: ErrorReason | None,
        message: str | None,
        now: float,
    ) -> None:
        if attempt.left is not None:
            status, client_status = "cancelled", 499
            reason, message = ErrorReason.CLIENT_CLOSED, LEFT
        if reason is not None:
            attempt.fault = Fault(reason, message or "", status=attempt.http_status)
        self._write(attempt, final=True, status=status, client_status=client_status, ended=now)

    def refuse(self, error: GatewayError) -> None:
        """The request ends with an answer of our own: after failed attempts, or before any."""
        last = self.last
        told = last is not None and last.fault is not None
        self.close(
            "rejected" if last is None else None,
            error.status,
            reason=None if told else error.reason,
            message=error.message,
        )

    def _reject(
        self,
        status: str | None,
        client_status: int | None,
        reason: ErrorReason | None,
        message: str | None,
        now: float,
    ) -> None:
        gone = reason is ErrorReason.CLIENT_CLOSED
        stand_in = Attempt(1, self.target or Target("", ""), self.started, leased=now)
        stand_in.called = False
        stand_in.timestamp = self._timestamp
        stand_in.fault = Fault(reason or ErrorReason.INTERNAL, message or "")
        if self.asked.model is not None:  # who mistakes the settings may have sent a key for it
            shown = self._books.redact(self.asked.model)
            self.asked = msgspec.structs.replace(self.asked, model=shown)
        self._write(
            stand_in,
            final=True,
            status=status or ("cancelled" if gone else "rejected"),
            client_status=client_status,
            ended=now,
        )

    def _message(self, attempt: Attempt, fault: Fault | None) -> str | None:
        """What went wrong: no secrets, and nothing of the call unless that is kept whole."""
        if fault is None:
            return None
        told = fault.message
        if fault.quoted and not self._full:
            answered = attempt.tap is not None and attempt.tap.seen_tokens > 0
            told = retold(fault, self.request, answered)
        return shorten(self._books.redact(told))

    def _content(self, attempt: Attempt, request: bytes) -> Content:
        """What was asked and answered."""
        kept = attempt.transcript
        answer, length = kept.written() if kept is not None else (None, None)
        return Content(
            request_id=self.request_id,
            attempt=attempt.number,
            timestamp=attempt.timestamp,
            request=request,
            request_length=len(request),
            answer=answer,
            answer_length=length,
        )

    def _write(
        self,
        attempt: Attempt,
        *,
        final: bool,
        status: str | None,
        client_status: int | None,
        ended: float,
    ) -> None:
        fault, tap, asked = attempt.fault, attempt.tap, self.asked
        if status is None:
            reason = fault.reason if fault is not None else ErrorReason.INTERNAL
            status = "timeout" if reason in _TIMEOUTS else "error"
        usage, source = spent(attempt, status, asked, self.prompt)
        attempt.total_tokens = usage.total_tokens if usage is not None else None
        if attempt.total_tokens is not None:
            self.tokens = (self.tokens or 0) + attempt.total_tokens
        target = attempt.target
        quote = self._books.quote(target.provider, target.model, usage, attempt.key_id)
        stream = tap if isinstance(tap, StreamTap) else None
        who = self.who
        self._books.emit(
            CallRecord(
                **timing(attempt, self.admitted, ended),
                **figures(attempt),
                request_id=self.request_id,
                attempt=attempt.number,
                is_final=final,
                timestamp=attempt.timestamp,
                finished_at=attempt.timestamp + round((ended - attempt.began) * 1000),
                endpoint=self._endpoint,
                provider=attempt.target.provider,
                model=attempt.target.model,
                requested_model=asked.model,
                model_version=_version(tap, attempt.target.model),
                key_id=attempt.key_id,
                account=attempt.account,
                client_id=self._client_id,
                client_request_id=who.client_request_id,
                upstream_request_id=attempt.upstream_request_id,
                agent_name=who.agent_name,
                tool_name=who.tool_name,
                session_id=who.session_id,
                trace_id=who.trace_id,
                user_id=who.user_id,
                tags=tags.written(who.tags),
                is_stream=asked.stream or stream is not None,
                status=status,
                http_status=attempt.http_status,
                client_status=client_status,
                error_reason=str(fault.reason) if fault is not None else None,
                error_message=self._message(attempt, fault),
                finish_reason=word(tap.finish_reason) if tap is not None else None,
                total_duration_ms=ms(ended - self.started) if final else None,
                tokens_per_second=speed(stream, usage, source),
                chunk_count=tap.chunk_count if tap is not None else None,
                input_tokens=usage.input_tokens if usage is not None else None,
                output_tokens=usage.output_tokens if usage is not None else None,
                total_tokens=usage.total_tokens if usage is not None else None,
                cached_tokens=usage.cached_tokens if usage is not None else None,
                cache_write_tokens=usage.cache_write_tokens if usage is not None else None,
                reasoning_tokens=usage.reasoning_tokens if usage is not None else None,
                input_audio_tokens=usage.input_audio_tokens if usage is not None else None,
                output_audio_tokens=usage.output_audio_tokens if usage is not None else None,
                input_image_tokens=usage.input_image_tokens if usage is not None else None,
                output_image_tokens=usage.output_image_tokens if usage is not None else None,
                usage_source=source,
                cost_nano_usd=quote.cost_nano_usd if quote is not None else None,
                list_cost_nano_usd=quote.list_cost_nano_usd if quote is not None else None,
                cost_source=quote.cost_source if quote is not None else "none",
                price_version=quote.price_version if quote is not None else None,
                message_count=asked.message_count,
                prompt_length=asked.prompt_length,
                response_length=tap.response_length if tap is not None else None,
                temperature=asked.temperature,
                top_p=asked.top_p,
                frequency_penalty=asked.frequency_penalty,
                presence_penalty=asked.presence_penalty,
                top_k=asked.top_k,
                max_tokens=asked.max_tokens,
                stop_count=asked.stop_count,
                tool_count=asked.tool_count,
                n=asked.n,
                seed=asked.seed,
                reasoning_effort=asked.reasoning_effort,
                privacy_level=self._level,
                metadata=_metadata(tap, attempt.target.model),
                rate_headers=attempt.rate_headers,
            )
        )
        if final and self._full and self._books.content is not None and self.request is not None:
            self._books.content(self._content(attempt, self.request))


def _version(tap: Tap | None, model: str) -> str | None:
    """The upstream's fingerprint, else the model that answered where it is another."""
    if tap is None:
        return None
    return identifier(tap.fingerprint or (tap.model if tap.model != model else None))


def _metadata(tap: Tap | None, model: str) -> str | None:
    """What else the provider reported (its own timings and speed), as a small JSON object. What has
    a column of its own is not said twice."""
    if tap is None:
        return None
    told = tap.details
    names = {
        "service_tier": word(told.get("service_tier")),
        "provider": title(told.get("provider")),
        "estimate": told.get("estimate"),
    }
    if tap.fingerprint and tap.model != model:
        names["response_model"] = identifier(tap.model)
    details: dict[str, Any] = {name: value for name, value in names.items() if value}
    aside = {
        name: value
        for name, value in (tap.usage or {}).items()
        if (name.endswith("_time") and name not in TOLD) or name in _ASIDE
    }
    details |= numbers({"timings": told.get("timings"), **aside})
    if not details:
        return None
    text = msgspec.json.encode(details)
    return text.decode() if len(text) <= MAX_METADATA else None
