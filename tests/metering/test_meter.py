from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from proxy.content import Content
from proxy.errors import ErrorReason, GatewayError
from proxy.metering import attempt as attempts
from proxy.metering import meter as module
from proxy.metering.admission import INTERRUPTED
from proxy.metering.attempt import Asked, Attempt, Attribution
from proxy.metering.meter import MAX_METADATA, UNTOLD, Books, Meter
from proxy.metering.pricing import Quote
from proxy.metering.tap import BodyTap, StreamTap
from proxy.providers.usage import count
from proxy.types import CallRecord, Fault, Target, Usage
from tests.upstream import event, usage_event

TARGET = Target("lab", "json")
ASKED = Asked(model="fast", stream=True, message_count=1, prompt_length=40)


class Clock:
    """Seconds of the monotonic clock, and the wall clock that goes with it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def wall(self) -> int:
        return 1_700_000_000_000 + round((self.now - 100) * 1000)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "monotonic", clock)
    monkeypatch.setattr(module, "now_ms", clock.wall)
    monkeypatch.setattr(attempts, "now_ms", clock.wall)
    return clock


class Bench:
    """A meter whose clock stands still, and what it wrote."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.records: list[CallRecord] = []
        self.quoted: list[tuple[str, str, Usage | None]] = []
        self.quote_: Quote | None = Quote(985, "config", "v1")
        self.meter = Meter(
            Books(
                self.records.append,
                self.quote,
                lambda text: text.replace("sk-1", "***"),
                "metadata",
            ),
            "ID",
            "/v1/chat/completions",
            "master",
            Attribution(
                *("theirs", "agent", "tool", "session", "trace"), user_id="ann", tags=("a", "b")
            ),
            clock.now,
        )
        self.meter.asked = ASKED

    def quote(
        self, provider: str, model: str, usage: Usage | None, key: str | None
    ) -> Quote | None:
        self.quoted.append((provider, model, usage))
        return self.quote_

    def prepared(self, target: Target = TARGET) -> Attempt:
        attempt = self.meter.attempt(target, self.clock.now)
        attempt.key_id, attempt.account, attempt.normalise = "k1", "org", count
        return attempt

    def attempt(self, target: Target = TARGET) -> Attempt:
        attempt = self.prepared(target)
        self.meter.admit(attempt)
        return attempt

    def fail(self, reason: ErrorReason, message: str = "no") -> Attempt:
        attempt = self.attempt()
        attempt.fault = Fault(reason, message)
        return attempt

    def stream(self, *events: bytes | float, **options: Any) -> Attempt:
        """An attempt that has seen these events; a number is so many seconds."""
        attempt = self.attempt()
        attempt.tap = StreamTap(**options)
        for each in events:
            if isinstance(each, bytes):
                attempt.tap.feed(each, self.clock.now)
            else:
                self.clock.now += each
        attempt.ended = self.clock.now
        return attempt

    @property
    def row(self) -> CallRecord:
        (record,) = self.records
        return record


@pytest.fixture
def bench(clock: Clock) -> Bench:
    return Bench(clock)


def word(text: str = "a") -> bytes:
    return event({"content": text})


# When things happened.


def test_a_stream_is_timed_from_asking_for_the_key_to_its_last_byte(
    bench: Bench, clock: Clock
) -> None:
    clock.now += 0.010  # the body arrived
    bench.meter.admitted = clock.now
    clock.now += 0.002
    attempt = bench.meter.attempt(TARGET, clock.now)
    attempt.leased = clock.now + 0.003
    bench.meter.admit(attempt)
    attempt.sent = clock.now + 0.004
    attempt.first_byte = clock.now + 0.024
    clock.now = attempt.sent
    attempt.tap = tap = StreamTap()
    for pause, part in (
        (0.050, event({"role": "assistant"})),
        (0.150, word()),
        (0.100, word()),
        (0.300, word()),
        (0.200, word()),
        (0.020, event(finish="stop")),
        (0, usage_event(7, 4)),
    ):
        clock.now += pause
        tap.feed(part, clock.now)
    attempt.normalise = count
    attempt.ended = clock.now
    clock.now += 0.001
    bench.meter.close("success", 200)
    row = bench.row
    assert (row.timestamp, row.finished_at) == (1_700_000_000_012, 1_700_000_000_837)
    assert row.queue_time_ms == 3
    assert row.ttfb_ms == 20
    assert row.time_to_first_token_ms == 200
    assert row.processing_time_ms == 820
    assert row.response_time_ms == 824
    assert row.total_duration_ms == 837
    assert row.overhead_ms == 4  # 3 before sending, without the wait, and 1 after the last byte
    assert row.tokens_per_second == pytest.approx(3 / 0.6)
    assert (row.inter_token_avg_ms, row.inter_token_p50_ms) == (200, 200)
    assert row.inter_token_p95_ms == 290
    assert row.max_stall_ms == 300
    assert (row.chunk_count, row.response_length, row.finish_reason) == (4, 4, "stop")


def test_a_second_attempts_overhead_is_its_own(bench: Bench, clock: Clock) -> None:
    bench.fail(ErrorReason.CONNECT)
    clock.now += 5
    attempt = bench.attempt()
    attempt.sent = clock.now + 0.001
    attempt.ended = clock.now = clock.now + 1
    bench.meter.close("success", 200)
    assert (bench.records[1].overhead_ms, bench.records[1].total_duration_ms) == (1, 6000)


def test_a_body_has_no_first_token(bench: Bench, clock: Clock) -> None:
    attempt = bench.attempt()
    attempt.tap = tap = BodyTap()
    clock.now += 0.3
    attempt.first_byte = clock.now
    tap.feed(b'{"choices":[{"message":{"content":"abc"}}],"usage":{"prompt_tokens":1}}', clock.now)
    tap.finish()
    bench.meter.close("success", 200)
    row = bench.row
    assert row.ttfb_ms == 300
    assert row.response_length == 3
    assert [row.time_to_first_token_ms, row.tokens_per_second, row.chunk_count] == [None] * 3
    assert [row.inter_token_avg_ms, row.max_stall_ms] == [None] * 2


# Which rows are written.

ENDS: dict[str, tuple[Callable[[Meter], None], str, int | None, str | None]] = {
    "success": (lambda m: m.close("success", 200), "success", 200, None),
    "broken off": (lambda m: m.close(None, 200), "error", 200, "internal"),
    "error event": (
        lambda m: m.close("error", 200, reason=ErrorReason.STREAM_ERROR, message="x"),
        "error",
        200,
        "stream_error",
    ),
    "client left": (
        lambda m: m.close("cancelled", 499, reason=ErrorReason.CLIENT_CLOSED, message="x"),
        "cancelled",
        499,
        "client_closed",
    ),
    "stopped": (
        lambda m: m.close("error", None, reason=ErrorReason.INTERRUPTED, message="x"),
        "error",
        None,
        "interrupted",
    ),
    "our fault": (
        lambda m: m.close("error", 500, reason=ErrorReason.INTERNAL, message="KeyError"),
        "error",
        500,
        "internal",
    ),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("failed", [0, 1, 3])
def test_every_end_writes_one_final_row_and_the_failures_before_are_not(
    bench: Bench, end: str, failed: int
) -> None:
    close, status, client_status, reason = ENDS[end]
    for _ in range(failed):
        bench.fail(ErrorReason.SERVER_ERROR)
    attempt = bench.attempt()
    if end == "broken off":
        attempt.fault = Fault(ErrorReason.INTERNAL, "x")
    close(bench.meter)
    close(bench.meter)
    *before, last = bench.records
    assert [row.is_final for row in bench.records] == [False] * failed + [True]
    assert [row.attempt for row in bench.records] == list(range(1, failed + 2))
    assert {(row.status, row.error_reason) for row in before} <= {("error", "server_error")}
    assert {(row.client_status, row.total_duration_ms) for row in before} <= {(None, None)}
    assert (last.status, last.client_status, last.error_reason) == (status, client_status, reason)
    assert last.total_duration_ms is not None


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        (ErrorReason.TIMEOUT, "timeout"),
        (ErrorReason.TRUNCATED, "error"),
        (ErrorReason.RATE_LIMIT, "error"),
    ],
)
def test_a_refusal_after_failures_is_told_by_the_last_of_them(
    bench: Bench, reason: ErrorReason, status: str
) -> None:
    bench.fail(ErrorReason.SERVER_ERROR, "first")
    bench.fail(reason, "second")
    bench.meter.refuse(GatewayError(503, "all keys are busy", ErrorReason.NO_KEYS))
    first, last = bench.records
    assert (first.is_final, first.error_message) == (False, "first")
    assert (last.is_final, last.status, last.error_reason) == (True, status, str(reason))
    assert (last.error_message, last.client_status) == ("second", 503)


@pytest.mark.parametrize(
    ("end", "status", "client_status"),
    [
        (
            lambda m: m.refuse(GatewayError(404, "x", ErrorReason.NOT_FOUND)),
            "rejected",
            404,
        ),
        (
            lambda m: m.close(None, 499, reason=ErrorReason.CLIENT_CLOSED, message="x"),
            "cancelled",
            499,
        ),
        (
            lambda m: m.close("error", 500, reason=ErrorReason.INTERNAL, message="x"),
            "error",
            500,
        ),
    ],
)
def test_a_request_without_an_attempt_has_one_row_and_no_key(
    bench: Bench, clock: Clock, end: Callable[[Meter], None], status: str, client_status: int
) -> None:
    clock.now += 0.5
    end(bench.meter)
    end(bench.meter)
    row = bench.row
    assert (row.status, row.client_status, row.is_final) == (status, client_status, True)
    assert (row.attempt, row.provider, row.model, row.key_id) == (1, "", "", None)
    assert (row.timestamp, row.total_duration_ms) == (1_700_000_000_000, 500)
    assert [row.response_time_ms, row.processing_time_ms, row.overhead_ms] == [None] * 3
    assert (row.http_status, row.usage_source) == (None, "none")


def test_what_was_asked_and_who_asked_is_on_every_row(bench: Bench) -> None:
    bench.meter.asked = Asked("fast", True, 2, 30, 0.5, 0.9, 0.1, 0.2, 40, 100, 2, 3, 1, 7, "high")
    bench.fail(ErrorReason.CONNECT)
    bench.attempt(Target("other", "big"))
    bench.meter.close("success", 200)
    for row in bench.records:
        assert (row.request_id, row.endpoint, row.client_id) == (
            "ID",
            "/v1/chat/completions",
            "master",
        )
        assert (row.client_request_id, row.agent_name, row.tool_name) == ("theirs", "agent", "tool")
        assert (row.session_id, row.trace_id, row.key_id, row.account) == (
            "session",
            "trace",
            "k1",
            "org",
        )
        assert (row.user_id, row.tags) == ("ann", '["a","b"]')
        assert (row.requested_model, row.is_stream, row.privacy_level) == ("fast", True, "metadata")
        assert (row.message_count, row.prompt_length, row.temperature, row.top_p) == (
            2,
            30,
            0.5,
            0.9,
        )
        assert (row.frequency_penalty, row.presence_penalty, row.top_k) == (0.1, 0.2, 40)
        assert (row.max_tokens, row.stop_count, row.tool_count, row.n, row.seed) == (
            100,
            2,
            3,
            1,
            7,
        )
        assert row.reasoning_effort == "high"
    assert [(row.provider, row.model) for row in bench.records] == [
        ("lab", "json"),
        ("other", "big"),
    ]


def test_a_message_is_redacted_before_it_is_shortened(bench: Bench) -> None:
    bench.fail(ErrorReason.SERVER_ERROR, "x" * 497 + "sk-1" + "y" * 100)
    bench.meter.close(None, 502)
    assert bench.row.error_message == "x" * 497 + "**…"


# What it cost in tokens.


def test_the_provider_is_believed(bench: Bench) -> None:
    bench.stream(word(), usage_event(10, 20))
    bench.meter.close("success", 200)
    row = bench.row
    assert (row.input_tokens, row.output_tokens, row.total_tokens) == (10, 20, 30)
    assert row.usage_source == "provider"
    assert (row.cost_nano_usd, row.cost_source, row.price_version) == (985, "config", "v1")
    assert bench.quoted[0][:2] == ("lab", "json")


def test_without_a_word_from_the_provider_what_was_seen_is_estimated(bench: Bench) -> None:
    bench.stream(word("Hello"), word(" you"))
    bench.meter.close("cancelled", 499)
    row = bench.row
    assert row.usage_source == "estimated"
    assert (row.input_tokens, row.output_tokens, row.total_tokens) == (17, 2, 19)


def test_where_nothing_was_seen_nothing_is_invented(bench: Bench) -> None:
    bench.stream(event({"role": "assistant"}))
    bench.meter.close(None, 200)
    row = bench.row
    assert row.usage_source == "none"
    assert [row.input_tokens, row.output_tokens, row.total_tokens] == [None] * 3
    assert bench.quoted == [("lab", "json", None)]


@pytest.mark.parametrize(
    ("status", "said", "tokens", "source"),
    [
        ("cancelled", (9, 0), (9, 3, 12), "estimated"),  # usage that began with zeros
        ("cancelled", (9, 2), (9, 3, 12), "estimated"),  # usage that grows, one chunk behind
        ("cancelled", (9, 3), (9, 3, 12), "provider"),
        ("cancelled", (9, 50), (9, 50, 59), "provider"),  # hidden thoughts were counted
        ("error", (9, 0), (9, 3, 12), "estimated"),  # it broke off
        ("success", (9, 2), (9, 2, 11), "provider"),
    ],
)
def test_usage_of_a_call_that_was_left_is_what_was_seen_at_least(
    bench: Bench,
    status: str,
    said: tuple[int, int],
    tokens: tuple[int, int, int],
    source: str,
) -> None:
    bench.stream(usage_event(*said), word(), word(), word())
    bench.meter.close(status, 499)
    row = bench.row
    assert (row.input_tokens, row.output_tokens, row.total_tokens) == tokens
    assert row.usage_source == source


def test_a_price_that_is_not_known_yet_is_left_to_the_writer(bench: Bench) -> None:
    bench.quote_ = None
    bench.stream(word(), usage_event(1, 1))
    bench.meter.close("success", 200)
    assert (bench.row.cost_nano_usd, bench.row.cost_source) == (None, "none")


# How fast it was.


@pytest.mark.parametrize(
    ("usage", "seconds", "reasoned", "speed"),
    [
        (Usage(output_tokens=11), 2.0, False, 5),
        (Usage(output_tokens=2), 0.5, False, 2),
        (Usage(output_tokens=1), 1.0, False, None),
        (Usage(output_tokens=11), 0.0, False, None),
        (Usage(input_tokens=1, output_tokens=None), 1.0, False, None),
        (Usage(output_tokens=21, hidden_tokens=10), 2.0, False, 5),
        (Usage(output_tokens=21, reasoning_tokens=10), 2.0, False, 5),
        (Usage(output_tokens=21, reasoning_tokens=10), 2.0, True, 10),
        (Usage(output_tokens=21, reasoning_tokens=10, hidden_tokens=0), 2.0, False, 10),
        (Usage(output_tokens=10, reasoning_tokens=10), 2.0, False, None),
    ],
)
def test_speed_counts_the_tokens_that_were_sent_after_the_first(
    bench: Bench, usage: Usage, seconds: float, reasoned: bool, speed: float | None
) -> None:
    delta = {"reasoning_content": "a"} if reasoned else {"content": "a"}
    attempt = bench.stream(event(delta), seconds, event(delta), usage_event(1, 1))
    attempt.normalise = lambda raw: usage
    bench.meter.close("success", 200)
    found = bench.row.tokens_per_second
    assert found == (None if speed is None else pytest.approx(speed))


# What else the provider said.


@pytest.mark.parametrize(
    ("fingerprint", "model", "version", "metadata"),
    [
        (None, "json", None, None),
        (None, "json-0613", "json-0613", None),
        ("fp_1", "json", "fp_1", None),
        ("fp_1", "json-0613", "fp_1", {"response_model": "json-0613"}),
    ],
)
def test_the_version_is_the_fingerprint_or_the_model_that_answered(
    bench: Bench,
    fingerprint: str | None,
    model: str,
    version: str | None,
    metadata: dict[str, str] | None,
) -> None:
    bench.stream(event({"content": "a"}, system_fingerprint=fingerprint, model=model))
    bench.meter.close("success", 200)
    assert bench.row.model_version == version
    assert bench.row.metadata == (metadata and json.dumps(metadata, separators=(",", ":")))


def test_the_providers_own_timings_are_metadata_within_bounds(bench: Bench) -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "queue_time": 0.5, "is_byok": False}
    bench.stream(event({"content": "a"}, usage=usage, service_tier="flex", model="json"))
    bench.meter.close("success", 200)
    assert json.loads(bench.row.metadata or "") == {
        "service_tier": "flex",
        "queue_time": 0.5,
        "is_byok": False,
    }


def test_metadata_that_is_too_long_is_none(bench: Bench) -> None:
    timings = {f"n{number}": number for number in range(MAX_METADATA // 8)}
    bench.stream(event({"content": "a"}, timings=timings, model="json"))
    bench.meter.close("success", 200)
    assert bench.row.metadata is None


def test_the_heads_limits_travel_with_the_row(bench: Bench) -> None:
    attempt = bench.attempt()
    attempt.rate_headers = ((b"x-ratelimit-limit-requests", b"9"),)
    attempt.http_status, attempt.upstream_request_id = 200, "up-1"
    bench.meter.close("success", 200)
    assert bench.row.rate_headers == attempt.rate_headers
    assert (bench.row.http_status, bench.row.upstream_request_id) == (200, "up-1")


# Clients that leave.


def leave(bench: Bench, *events: bytes, then: tuple[bytes, ...] = ()) -> CallRecord:
    """The row of a client that left after some events, and was read on for others."""
    attempt = bench.stream(*events)
    attempt.ended = None
    attempt.went_out()
    assert bench.meter.leave()
    for each in then:
        assert attempt.tap is not None
        attempt.tap.feed(each, bench.clock.now)
    bench.meter.close("success", 200)
    return bench.row


@pytest.mark.parametrize(
    ("before", "then", "tokens", "source"),
    [
        ((), (word(), event(finish="stop"), usage_event(9, 50)), 50, "drained"),
        ((word(),), (event(finish="stop"), usage_event(9, 50)), 50, "drained"),
        # The provider's word beats an estimate of what was seen, if it is the last one.
        ((word(), word(), word()), (event(finish="stop"), usage_event(9, 2)), 2, "drained"),
        ((word(), usage_event(9, 50)), (word(),), 50, "provider"),
        ((word(),), (usage_event(9, 1), word(), word()), 3, "estimated"),  # it was growing
        ((usage_event(9, 0),), (word(), event(finish="stop")), 1, "estimated"),
        ((), (usage_event(9, 0), word(), event(finish="stop")), 1, "estimated"),
        ((word(),), (word(),), 2, "estimated"),
        ((), (), None, "none"),
    ],
)
def test_what_was_read_after_the_client_left_is_drained(
    bench: Bench, before: tuple[bytes, ...], then: tuple[bytes, ...], tokens: int, source: str
) -> None:
    row = leave(bench, *before, then=then)
    assert (row.output_tokens, row.usage_source) == (tokens, source)


@pytest.mark.parametrize("end", [*ENDS.values()], ids=[*ENDS])
def test_however_a_drain_ends_its_call_was_cancelled(bench: Bench, end: Any) -> None:
    bench.attempt().went_out()
    assert bench.meter.leave()
    end[0](bench.meter)
    row = bench.row
    assert (row.status, row.client_status, row.is_final) == ("cancelled", 499, True)
    assert (row.error_reason, row.error_message) == ("client_closed", "the client left")


def test_an_attempt_is_admitted_with_what_its_row_would_have(bench: Bench, clock: Clock) -> None:
    admitted: list[CallRecord] = []
    journal: Any = SimpleNamespace(admit=admitted.append)
    bench.meter._books = msgspec.structs.replace(bench.meter._books, journal=journal)
    attempt = bench.prepared()
    assert not attempt.admitted
    bench.meter.admit(attempt)
    assert attempt.admitted
    clock.now += 1
    attempt.fault = Fault(ErrorReason.INTERRUPTED, INTERRUPTED)
    bench.meter.close(None, None)
    (row,) = admitted
    known = [name for name in CallRecord.__struct_fields__ if getattr(row, name) is not None]
    later = {"finished_at", "cost_source"}  # known once it has ended
    assert {name: getattr(row, name) for name in known if name not in later} == {
        name: getattr(bench.row, name) for name in known if name not in later
    }


def test_what_an_interrupted_call_says_of_privacy_is_what_its_client_asked_for(
    bench: Bench, clock: Clock
) -> None:
    admitted: list[CallRecord] = []
    journal: Any = SimpleNamespace(admit=admitted.append)
    books = Books(bench.records.append, bench.quote, str, "full", journal, content=lambda _: None)
    for private in (True, False):
        bench.meter = Meter(books, "ID", "/v1", None, Attribution(private=private), clock.now)
        bench.meter.admit(bench.prepared())
    assert [row.privacy_level for row in admitted] == ["metadata", "full"]


def test_a_call_that_may_not_be_made_says_why_in_its_row(bench: Bench) -> None:
    bench.prepared()
    bench.meter.refuse(GatewayError(503, "not written down", ErrorReason.INTERNAL))
    assert (bench.row.status, bench.row.error_reason) == ("rejected", "internal")
    assert (bench.row.attempt, bench.row.key_id) == (1, None)
    assert bench.row.error_message == "not written down"


def test_what_was_never_sent_is_no_attempt(bench: Bench, clock: Clock) -> None:
    bench.fail(ErrorReason.CONNECT, "first")
    bench.prepared(Target("other", "big"))
    assert bench.records == []
    clock.now += 1
    bench.fail(ErrorReason.CONNECT, "second")
    bench.prepared(Target("other", "big"))
    bench.meter.refuse(GatewayError(502, "no", ErrorReason.CONNECT))
    first, last = bench.records
    assert (first.attempt, first.is_final, first.error_message) == (1, False, "first")
    assert (last.attempt, last.is_final, last.error_message) == (2, True, "second")


def test_there_is_nothing_to_read_on_where_no_upstream_is_at_work(bench: Bench) -> None:
    assert not bench.meter.leave()  # no attempt was made
    bench.attempt()
    assert not bench.meter.leave()  # it waits for a connection
    bench.stream(word(), event(finish="stop")).went_out()
    assert not bench.meter.leave()  # it has ended
    attempt = bench.stream(word(), b"data: [DONE]\n\n")
    attempt.went_out()
    attempt.ended = None
    assert not bench.meter.leave()  # it has told all
    bench.meter.close("success", 200)
    assert bench.records[-1].status == "success"


def test_a_drained_stream_s_speed_leaves_thoughts_out(bench: Bench, clock: Clock) -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 13, "total_tokens": 14}
    usage["completion_tokens_details"] = {"reasoning_tokens": 10}  # type: ignore[assignment]
    attempt = bench.stream(word(), 2.0, word())
    attempt.ended = None
    attempt.went_out()
    assert bench.meter.leave()
    assert attempt.tap is not None
    attempt.tap.feed(event(finish="stop", usage=usage), clock.now)
    bench.meter.close("success", 200)
    assert (bench.row.usage_source, bench.row.tokens_per_second) == ("drained", 1.0)


# What was said.


def test_a_providers_words_are_not_kept(bench: Bench) -> None:
    attempt = bench.attempt()
    told = {"status": 400, "type": "invalid_request_error", "param": "messages"}
    attempt.fault = Fault(ErrorReason.INVALID_REQUEST, "gold!", quoted=True, **told)  # type: ignore[arg-type]
    bench.meter.close(None, 400)
    known = "status 400, type invalid_request_error, param messages"
    assert bench.row.error_message == f"the provider's error: {known}"


def test_what_we_say_ourselves_stays_without_the_keys(bench: Bench) -> None:
    bench.meter.request = b"{}"
    bench.meter.forget()
    assert bench.meter.request is None
    assert bench.meter.hide("a message of an exception") == UNTOLD
    bench.fail(ErrorReason.TRUNCATED, "sk-1 broke off")
    bench.meter.close(None, 200)
    assert bench.row.error_message == "*** broke off"


def test_what_is_no_name_is_not_kept(bench: Bench) -> None:
    attempt = bench.stream(
        event(
            {"content": "a"},
            system_fingerprint="what it said",
            model="what it said",
            service_tier="what it said",
            provider="what it said of gold",
            usage={"prompt_tokens": 1, "gold_time": "what it said", "what it said_time": 1},
        ),
        event(finish="what it said", model="what it said"),
    )
    attempt.tap.details["timings"] = {"said": "gold", "n": 1}  # type: ignore[union-attr]
    bench.meter.close("success", 200)
    assert (bench.row.finish_reason, bench.row.model_version) == (None, None)
    assert json.loads(bench.row.metadata or "") == {"timings": {"n": 1}}


@pytest.mark.parametrize("private", [False, True])
def test_a_content_goes_beside_its_final_record_where_it_is_kept(
    bench: Bench, clock: Clock, private: bool
) -> None:
    told: list[Content] = []
    books = Books(bench.records.append, bench.quote, str, "full", content=told.append, most=100)
    bench.meter = meter = Meter(books, "ID", "/v1", None, Attribution(private=private), clock.now)
    meter.request = b"what was asked"
    bench.fail(ErrorReason.SERVER_ERROR, "on what was asked")
    second = bench.attempt()
    if second.transcript is not None:
        second.transcript.whole(b"{}")
    meter.forget()
    meter.close("success", 200)
    meter.close("success", 200)
    levels = [record.privacy_level for record in bench.records]
    assert levels == ["metadata" if private else "full"] * 2
    if private:
        assert (told, second.transcript) == ([], None)
        return
    [content] = told
    assert (content.request_id, content.attempt) == ("ID", 2)
    assert content.timestamp == bench.records[1].timestamp
    assert (content.request, content.request_length) == (b"what was asked", 14)
    assert (content.answer, content.answer_length) == (b"{}", 2)


def test_a_request_that_never_arrived_has_no_content(bench: Bench, clock: Clock) -> None:
    told: list[Content] = []
    books = Books(bench.records.append, bench.quote, str, "full", content=told.append, most=100)
    meter = Meter(books, "ID", "/v1", None, Attribution(), clock.now)
    meter.refuse(GatewayError(413, "too long", ErrorReason.TOO_LARGE))
    assert (len(bench.records), told) == (1, [])
