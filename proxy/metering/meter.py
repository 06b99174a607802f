"""The books of one request: every attempt becomes one frozen record, and nothing is invented later.

``Meter`` is opened when a request is admitted and closed once; closing is synchronous, so that it
also happens when the task is being cancelled. A failed attempt is kept back until it is known
whether another follows it: only the last one is final.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from proxy.clock import monotonic, now_ms
from proxy.errors import ErrorReason, GatewayError
from proxy.metering import estimate
from proxy.metering.departure import Departure
from proxy.metering.pricing import Quote
from proxy.metering.tap import StreamTap, Tap
from proxy.redact import shorten
from proxy.types import CallRecord, Fault, Target, Usage

MAX_METADATA = 4096
"""Bytes of JSON in ``metadata``."""
LEFT = "the client left"
_TIMEOUTS = {ErrorReason.TIMEOUT}


class Asked(msgspec.Struct, frozen=True, gc=False):
    """What the client asked for, as far as a row keeps it. Unknown or odd members are None."""

    model: str | None = None
    stream: bool = False
    message_count: int | None = None
    prompt_length: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    stop_count: int | None = None
    tool_count: int | None = None
    n: int | None = None
    seed: int | None = None
    reasoning_effort: str | None = None


class Attribution(msgspec.Struct, frozen=True, gc=False):
    """Who and what a call is counted for, from the request's headers."""

    client_request_id: str | None = None
    agent_name: str | None = None
    tool_name: str | None = None
    session_id: str | None = None
    trace_id: str | None = None


class Books(msgspec.Struct, frozen=True):
    """Where records go and how they are priced: the same for every meter of a process.

    ``quote`` gives None while a price is not known yet; the writer asks again.
    """

    emit: Callable[[CallRecord], None]
    quote: Callable[[str, str, Usage | None], Quote | None]
    redact: Callable[[str], str]
    privacy_level: str


class Attempt:
    """One try of one target with one key, from asking for the key to the last byte.

    ``left`` is there from when its client has left while the upstream was at work on it.
    """

    def __init__(self, number: int, target: Target, began: float, *, leased: float) -> None:
        self.number = number
        self.target = target
        self.timestamp = now_ms() - round((leased - began) * 1000)
        self.began = began
        self.leased = leased
        self.sent: float = leased
        self.ended: float | None = None
        self.key_id: str | None = None
        self.account: str | None = None
        self.http_status: int | None = None
        self.upstream_request_id: str | None = None
        self.rate_headers: tuple[tuple[bytes, bytes], ...] = ()
        self.tap: Tap | None = None
        self.normalise: Callable[[Mapping[str, Any]], Usage] | None = None
        self.fault: Fault | None = None
        self.total_tokens: int | None = None  # known once its record is made
        self.left: Departure | None = None
        self.out = False
        self.called = True  # False: stands for a request that was refused before any attempt

    def went_out(self) -> None:
        """The request is on its way: from now on it may be executed, and billed."""
        self.out = True


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
        self.target: Target | None = None  # the only one that could serve it
        self.attempts = 0
        self._books = books
        self._endpoint = endpoint
        self._client_id = client_id
        self._attribution = attribution
        self._timestamp = now_ms()
        self.last: Attempt | None = None
        self._closed = False

    def attempt(self, target: Target, asked_at: float) -> Attempt:
        """Begin another attempt. The one before, which failed, is written as not final."""
        if self.last is not None:
            self._write(self.last, final=False, status=None, client_status=None, ended=asked_at)
        self.attempts += 1
        self.last = Attempt(self.attempts, target, asked_at, leased=monotonic())
        return self.last

    def leave(self) -> bool:
        """The client has left. True if an upstream is at work for it that has not told all: that
        may be read on, and whatever comes, the call was cancelled."""
        last = self.last
        if last is None or last.ended is not None or not last.out:
            return False
        last.left = Departure.of(last.tap)
        return last.left is not None

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
        attempt = self.last
        if attempt is None:
            self._reject(status, client_status, reason, message, now)
            return
        if attempt.left is not None:
            status, client_status = "cancelled", 499
            reason, message = ErrorReason.CLIENT_CLOSED, LEFT
        if reason is not None:
            attempt.fault = Fault(reason, message or "", status=attempt.http_status)
        self._write(attempt, final=True, status=status, client_status=client_status, ended=now)

    def refuse(self, error: GatewayError) -> None:
        """The request ends with an answer of our own: after failed attempts, or before any."""
        status = "rejected" if self.last is None else None
        self.close(
            status, error.status, reason=None if self.last else error.reason, message=error.message
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
        self._write(
            stand_in,
            final=True,
            status=status or ("cancelled" if gone else "rejected"),
            client_status=client_status,
            ended=now,
        )

    def _message(self, fault: Fault | None) -> str | None:
        """What went wrong, without secrets and at the length that a row keeps."""
        return shorten(self._books.redact(fault.message)) if fault is not None else None

    def _write(
        self,
        attempt: Attempt,
        *,
        final: bool,
        status: str | None,
        client_status: int | None,
        ended: float,
    ) -> None:
        called = attempt.called
        fault, tap, asked = attempt.fault, attempt.tap, self.asked
        last = attempt.ended if attempt.ended is not None else ended
        upstream = _ms(last - attempt.sent) if called else None
        if status is None:
            reason = fault.reason if fault is not None else ErrorReason.INTERNAL
            status = "timeout" if reason in _TIMEOUTS else "error"
        usage, source = _usage(attempt, status, asked)
        attempt.total_tokens = usage.total_tokens if usage is not None else None
        quote = self._books.quote(attempt.target.provider, attempt.target.model, usage)
        before = attempt.sent - (self.admitted if attempt.number == 1 else attempt.began)
        waited = attempt.leased - attempt.began  # in line for a key, which is not our own time
        stream = tap if isinstance(tap, StreamTap) else None
        gaps = sorted(stream.gaps) if stream is not None and stream.gaps else None
        first = tap.first_token if tap is not None else None
        who = self._attribution
        self._books.emit(
            CallRecord(
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
                is_stream=asked.stream or stream is not None,
                status=status,
                http_status=attempt.http_status,
                client_status=client_status,
                error_reason=str(fault.reason) if fault is not None else None,
                error_message=self._message(fault),
                finish_reason=_short(tap.finish_reason) if tap is not None else None,
                response_time_ms=_ms(last - attempt.began) if called else None,
                total_duration_ms=_ms(ended - self.started) if final else None,
                queue_time_ms=_ms(waited) if called else None,
                processing_time_ms=upstream,
                overhead_ms=_ms(before - waited + ended - last) if called else None,
                ttfb_ms=_since(attempt.sent, tap.first_byte if tap is not None else None),
                time_to_first_token_ms=_since(attempt.sent, first),
                tokens_per_second=_speed(stream, usage, source),
                inter_token_avg_ms=_ms(sum(gaps) / len(gaps)) if gaps else None,
                inter_token_p50_ms=_ms(percentile(gaps, 0.5)) if gaps else None,
                inter_token_p95_ms=_ms(percentile(gaps, 0.95)) if gaps else None,
                max_stall_ms=_ms(tap.max_gap) if tap is not None and tap.max_gap else None,
                chunk_count=tap.chunk_count if tap is not None else None,
                input_tokens=usage.input_tokens if usage is not None else None,
                output_tokens=usage.output_tokens if usage is not None else None,
                total_tokens=usage.total_tokens if usage is not None else None,
                cached_tokens=usage.cached_tokens if usage is not None else None,
                cache_write_tokens=usage.cache_write_tokens if usage is not None else None,
                reasoning_tokens=usage.reasoning_tokens if usage is not None else None,
                usage_source=source,
                cost_nano_usd=quote.cost_nano_usd if quote is not None else None,
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
                privacy_level=self._books.privacy_level,
                metadata=_metadata(tap, attempt.target.model),
                rate_headers=attempt.rate_headers,
            )
        )


def _usage(attempt: Attempt, status: str, asked: Asked) -> tuple[Usage | None, str]:
    """The tokens of an attempt and who says so.

    Without a word from the provider they are estimated, but only where output was seen: a refused
    call used nothing that is known.
    """
    tap = attempt.tap
    if tap is None:
        return None, "none"
    if tap.usage is not None and attempt.normalise is not None:
        usage = attempt.normalise(tap.usage)
        drained = attempt.left is not None and attempt.left.gained(tap)
        final = drained and tap.complete and usage.output_tokens
        if status == "cancelled" and not final and (usage.output_tokens or 0) < tap.seen_tokens:
            # Usage that grows with the stream (Gemini) or starts at zero stops where we stopped.
            given, seen = usage.input_tokens, tap.seen_tokens
            total = given + seen if given is not None else None
            usage = msgspec.structs.replace(usage, output_tokens=seen, total_tokens=total)
            return usage, "estimated"
        return usage, "drained" if drained else "provider"
    if not tap.seen_tokens:
        return None, "none"
    prompt = estimate.prompt_tokens(asked.prompt_length, asked.message_count)
    total = prompt + tap.seen_tokens if prompt is not None else None
    usage = Usage(input_tokens=prompt, output_tokens=tap.seen_tokens, total_tokens=total)
    return usage, "estimated"


def _speed(tap: StreamTap | None, usage: Usage | None, source: str) -> float | None:
    """Tokens a second between the first and the last streamed one; None where that says nothing.

    What the provider kept to itself (thoughts that were billed but not sent) does not count.
    """
    if tap is None or usage is None or usage.output_tokens is None:
        return None
    if tap.first_token is None or tap.last_token is None:
        return None
    streamed = usage.output_tokens - (usage.hidden_tokens or 0)
    if not tap.saw_reasoning and source != "estimated" and usage.hidden_tokens is None:
        streamed -= usage.reasoning_tokens or 0
    seconds = tap.last_token - tap.first_token
    if streamed < 2 or seconds <= 0:
        return None
    return (streamed - 1) / seconds


def percentile(ordered: list[float], share: float) -> float:
    """The percentile of a sorted list, by linear interpolation."""
    place = (len(ordered) - 1) * share
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _version(tap: Tap | None, model: str) -> str | None:
    """The upstream's fingerprint, else the model that answered where it is another."""
    if tap is None:
        return None
    return _short(tap.fingerprint or (tap.model if tap.model != model else None))


def _short(text: str | None) -> str | None:
    """A name that an upstream gave, at the length that a row keeps."""
    return text[:128] if text is not None else None


def _metadata(tap: Tap | None, model: str) -> str | None:
    """What else the provider reported (its own timings and speed), as a small JSON object."""
    if tap is None:
        return None
    details = dict(tap.details)
    if tap.fingerprint and tap.model and tap.model != model:
        details["response_model"] = tap.model
    for name, value in (tap.usage or {}).items():
        if name.endswith("_time") or name in ("is_byok", "cost_details"):
            details[name] = value
    if not details:
        return None
    text = msgspec.json.encode(details)
    return text.decode() if len(text) <= MAX_METADATA else None


def _since(start: float, moment: float | None) -> float | None:
    return _ms(moment - start) if moment is not None else None


def _ms(seconds: float) -> float:
    """Milliseconds, to the microsecond."""
    return round(seconds * 1000, 3)
