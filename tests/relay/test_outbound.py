from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import httpx
import pytest

from proxy.errors import ErrorReason, GatewayError
from proxy.metering.attempt import Attempt
from proxy.metering.tap import BodyTap, StreamTap
from proxy.metering.transcript import Transcript
from proxy.relay import outbound as module
from proxy.relay.outbound import STOPPED, Outbound, fault_of, interrupt, send_error
from proxy.routing.counters import Counters
from proxy.routing.key import Key
from proxy.routing.keypool import KeyPool
from proxy.types import Headers, Target
from tests.upstream import event, usage_event
from tests.wire import DONE, JSON, SSE, Body, Client, Part


class Answer:
    """An outbound on an upstream's answer, with a lease on its only key."""

    def __init__(self, *parts: Part, fields: Headers | None = None, **options: Any) -> None:
        self.body = Body(*parts)
        self.key = Key("k1", "sk-1", "org")
        counters = Counters(None, lambda: 0.0)
        lease = KeyPool("lab", [self.key], counters, chance=lambda: 1.0).lease("m", 0)
        assert lease is not None
        self.attempt = options.pop("attempt", Attempt(1, Target("lab", "m"), 0, leased=0))
        fields = [JSON] if fields is None else fields
        self.outbound = Outbound(
            httpx.Response(200, headers=fields, stream=self.body),
            fields,
            self.attempt,
            lease,
            **{"hide_usage": False, "mend_tools": False, "alias": None, **options},
        )
        self.client = Client()

    async def deliver(self) -> bool:
        """Whether it was said to be whole: once, and before the client had the last of it."""
        told: list[bool] = []

        def known(whole: bool) -> None:
            assert not (self.client.messages and self.client.ended)
            told.append(whole)

        await self.outbound.deliver(self.client.send, [(b"x-request-id", b"ID")], known)
        (whole,) = told
        return whole


def stream(*parts: Part, **options: Any) -> Answer:
    return Answer(*parts, fields=[SSE], **options)


def said(answer: Answer) -> dict[str, Any]:
    """The error event at the end of what a client got."""
    last = answer.client.body.rstrip(b"\n").rpartition(b"\n")[2]
    error: dict[str, Any] = json.loads(last.removeprefix(b"data: "))["error"]
    return error


# Peeking.


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([b'{"choices": [{}]}'], None),
        ([b'{"choi', b'ces": [{}]}'], None),
        ([b'{"object": "list", "data": [{}]}'], None),
        ([b'{"usage": {"prompt_tokens": 1}}'], None),
        ([b'{"error": {"message": "no"}}'], None),  # for the dialect to read
        ([], ErrorReason.EMPTY_RESPONSE),
        ([b"  \n"], ErrorReason.EMPTY_RESPONSE),
        ([b"{}"], ErrorReason.EMPTY_RESPONSE),
        ([b'{"choices": []}'], ErrorReason.EMPTY_RESPONSE),
        ([b"<html>"], ErrorReason.BAD_RESPONSE),
        ([b'{"choices": ['], ErrorReason.BAD_RESPONSE),
    ],
)
async def test_a_body_is_held_until_it_is_whole(
    parts: list[bytes], reason: ErrorReason | None
) -> None:
    answer = Answer(*parts)
    fault = await answer.outbound.peek(5)
    assert (fault and fault.reason) == reason
    assert fault is None or (fault.executed and fault.status == 200)
    assert answer.attempt.ended is not None
    assert not answer.outbound.started


async def test_an_error_in_a_200_is_seen_before_anything_is_sent() -> None:
    for answer in (
        Answer(b'{"error": {"code": 429}}'),
        stream(b'data: {"error": {"code": 429}}\n\n'),
    ):
        assert await answer.outbound.peek(5) is None
        assert answer.outbound.tap.error == {"code": 429}


async def test_a_very_long_body_goes_out_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_HELD", 10)
    answer = Answer(b'{"choices":', b'[{"message":', b'{"content":"x"}}]}')
    assert await answer.outbound.peek(5) is None
    assert answer.attempt.ended is None
    assert await answer.deliver()
    assert answer.client.body == b'{"choices":[{"message":{"content":"x"}}]}'
    assert answer.client.ended
    assert answer.outbound.tap.response_length == 1


@pytest.mark.parametrize(
    "parts",
    [
        [event({"content": "a"})],
        [b": hello\n\n", event({"role": "assistant"}), event({"reasoning": "hm"})],
        [event(finish="stop")],
        [DONE],
    ],
)
async def test_a_stream_is_held_until_it_says_something(parts: list[bytes]) -> None:
    answer = stream(*parts, 3600.0)
    async with asyncio.timeout(20):
        assert await answer.outbound.peek(3600) is None
    assert answer.outbound.tap.meaningful


async def test_a_silent_stream_is_held_no_longer_than_told() -> None:
    answer = stream(event({"role": "assistant"}), 3600.0)
    assert await answer.outbound.peek(0.01) is None
    assert not answer.outbound.tap.meaningful


async def test_a_stream_goes_on_where_peeking_gave_up() -> None:
    """A timeout must not cut the reading of the upstream itself."""
    answer = stream(event({"role": "assistant"}), 0.05, event({"content": "a"}), DONE)
    assert await answer.outbound.peek(0.01) is None
    assert await answer.deliver()
    assert answer.client.body == event({"role": "assistant"}) + event({"content": "a"}) + DONE


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([], ErrorReason.EMPTY_RESPONSE),
        ([b": hello\n\n"], ErrorReason.TRUNCATED),
        ([event({"role": "assistant"})], ErrorReason.TRUNCATED),
    ],
)
async def test_a_stream_that_ends_before_it_said_anything_is_a_fault(
    parts: list[bytes], reason: ErrorReason
) -> None:
    fault = await stream(*parts).outbound.peek(5)
    assert fault is not None
    assert (fault.reason, fault.executed) == (reason, True)


async def test_peeking_raises_what_reading_raises() -> None:
    with pytest.raises(httpx.ReadError):
        await stream(httpx.ReadError("reset")).outbound.peek(5)


# Delivering.


async def test_only_listed_headers_pass() -> None:
    fields = [
        JSON,
        (b"openai-processing-ms", b"12"),
        (b"x-groq-region", b"eu"),
        (b"set-cookie", b"a=b"),
        (b"x-ratelimit-limit-requests", b"9"),
        (b"server", b"up"),
        (b"content-length", b"999"),
        (b"transfer-encoding", b"chunked"),
        (b"x-request-id", b"theirs"),
    ]
    answer = Answer(b'{"choices":[{}]}', fields=fields)
    await answer.outbound.peek(5)
    assert await answer.deliver()
    assert answer.client.headers == [
        (b"x-request-id", b"ID"),
        *fields[:3],
        (b"content-length", b"16"),
    ]


async def test_a_whole_body_has_its_length_and_one_message() -> None:
    answer = Answer(b'{"choices":', b" [{}]}\n")
    await answer.outbound.peek(5)
    assert await answer.deliver()
    assert len(answer.client.messages) == 2
    assert answer.client.body == b'{"choices": [{}]}\n'
    assert answer.client.ended


async def test_the_alias_is_written_where_the_provider_wrote_its_name() -> None:
    whole = Answer(b'{"model": "up", "choices":[{}]}', alias="fast")
    await whole.outbound.peek(5)
    await whole.deliver()
    assert whole.client.body == b'{"model": "fast", "choices":[{}]}'
    assert (b"content-length", b"%d" % len(whole.client.body)) in whole.client.headers
    streamed = stream(event({"content": "a"}), DONE, alias="fast")
    await streamed.outbound.peek(5)
    await streamed.deliver()
    assert streamed.client.body == event({"content": "a"}, model="fast") + DONE


async def test_tool_calls_are_told_apart_where_the_dialect_wants_it() -> None:
    def call(index: int, name: str) -> bytes:
        return event({"tool_calls": [{"index": index, "id": name, "function": {"name": "f"}}]})

    for wanted in (True, False):
        answer = stream(call(0, "a"), 0.01, call(0, "b"), DONE, mend_tools=wanted)
        await answer.outbound.peek(5)
        await answer.deliver()
        assert answer.client.body == call(0, "a") + call(int(wanted), "b") + DONE


async def test_what_was_held_goes_first_and_then_what_comes() -> None:
    parts = [b": hi\n\n", event({"role": "assistant"}), event({"content": "a"})]
    answer = stream(*parts, 0.01, event({"content": "b"}), event(finish="stop"), DONE)
    await answer.outbound.peek(5)
    assert await answer.deliver()
    assert answer.client.messages[1]["body"] == b"".join(parts)
    assert answer.client.body == b"".join(p for p in answer.body.parts if isinstance(p, bytes))
    assert answer.client.ended
    assert answer.attempt.fault is None


async def test_usage_that_was_not_asked_for_is_withheld() -> None:
    answer = stream(
        event({"content": "a"}), event(finish="stop"), usage_event(3, 1), DONE, hide_usage=True
    )
    await answer.outbound.peek(5)
    assert await answer.deliver()
    assert answer.client.body == event({"content": "a"}) + event(finish="stop") + DONE
    assert answer.outbound.tap.usage is not None


@pytest.mark.parametrize("hide_usage", [False, True])
@pytest.mark.parametrize(
    ("last", "reason", "code"),
    [
        ([], ErrorReason.TRUNCATED, "stream_truncated"),
        ([httpx.RemoteProtocolError("cut")], ErrorReason.TRUNCATED, "stream_truncated"),
        ([httpx.ReadError("reset")], ErrorReason.TRUNCATED, "stream_truncated"),
        ([httpx.ReadTimeout("idle")], ErrorReason.TIMEOUT, "stream_timeout"),
    ],
)
@pytest.mark.parametrize("half", [b"", b'data: {"choices"'])
async def test_a_broken_stream_ends_in_an_error_and_without_an_end(
    half: bytes, last: list[Part], reason: ErrorReason, code: str, hide_usage: bool
) -> None:
    whole = event({"content": "a"})
    answer = stream(whole, *([half] if half else []), *last, hide_usage=hide_usage)
    await answer.outbound.peek(5)
    assert not await answer.deliver()
    assert answer.client.body.startswith(whole + half + (b"\n\n" if half else b"") + b"data: ")
    assert (said(answer)["code"], said(answer)["type"]) == (code, "api_error")
    assert b"[DONE]" not in answer.client.body
    assert not answer.client.ended
    fault = answer.attempt.fault
    assert fault is not None
    assert fault.reason is reason


async def test_a_provider_that_told_its_error_is_not_told_twice() -> None:
    error = b'data: {"error": {"message": "overloaded"}}\n\n'
    answer = stream(event({"content": "a"}), error)
    await answer.outbound.peek(5)
    assert await answer.deliver()
    assert answer.client.body == event({"content": "a"}) + error


async def test_a_body_that_breaks_off_is_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_HELD", 1)
    answer = Answer(b'{"choices"', httpx.ReadError("reset"))
    await answer.outbound.peek(5)
    assert not await answer.deliver()
    assert (answer.client.body, answer.client.ended) == (b'{"choices"', False)


async def test_what_is_compressed_is_watched_and_passes_as_it_is() -> None:
    """The provider was asked not to; one that does it all the same is read, and left alone."""
    packed = gzip.compress(b'{"model":"up","choices":[{"message":{"content":"abc"}}]}')
    fields = [JSON, (b"content-encoding", b"gzip")]
    answer = Answer(packed[:20], packed[20:], fields=fields, alias="fast")
    assert await answer.outbound.peek(5) is None
    assert await answer.deliver()
    assert answer.client.body == packed
    assert (b"content-encoding", b"gzip") in answer.client.headers
    assert answer.outbound.tap.response_length == 3


async def test_identity_is_no_compression() -> None:
    fields = [(b"content-encoding", b"identity"), JSON]
    answer = Answer(b'{"model":"up","choices":[{}]}', fields=fields, alias="fast")
    await answer.outbound.peek(5)
    await answer.deliver()
    assert answer.client.body == b'{"model":"fast","choices":[{}]}'


# Stopping in the middle.


@pytest.mark.parametrize("hide_usage", [False, True])
@pytest.mark.parametrize("half", [b"", b'data: {"choices"'])
async def test_a_stream_that_is_stopped_says_so_and_has_no_end(
    half: bytes, hide_usage: bool
) -> None:
    whole = event({"content": "a"})
    answer = stream(whole + half, 3600.0, hide_usage=hide_usage)
    await answer.outbound.peek(5)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await answer.deliver()
    await interrupt(answer.client.send, answer.outbound, [])
    assert answer.client.body.startswith(whole + half + (b"\n\n" if half else b"") + b"data: ")
    assert said(answer)["message"] == STOPPED
    assert not answer.client.ended
    fault = answer.attempt.fault
    assert fault is not None
    assert fault.reason is ErrorReason.INTERRUPTED


async def test_a_client_that_has_seen_the_end_is_told_nothing_more() -> None:
    answer = stream(event({"content": "a"}), DONE, 3600.0)
    await answer.outbound.peek(5)
    assert not answer.outbound.told_all
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await answer.deliver()
    assert answer.outbound.told_all
    await interrupt(answer.client.send, answer.outbound, [])
    assert answer.client.body == event({"content": "a"}) + DONE


async def test_a_call_without_an_answer_gets_a_503() -> None:
    client = Client()
    await interrupt(client.send, None, [(b"x-request-id", b"ID")])
    assert (client.status, client.ended) == (503, True)
    assert json.loads(client.body)["error"]["code"] == "interrupted"


async def test_a_client_that_does_not_read_is_not_waited_for() -> None:
    async def stuck(_: object) -> None:
        await asyncio.sleep(3600)

    async with asyncio.timeout(20):
        await interrupt(stuck, None, [])


# Letting go.


async def test_releasing_gives_the_key_back_and_closes_the_upstream_at_once() -> None:
    answer = stream(event({"content": "a"}), 3600.0)
    await answer.outbound.peek(5)
    answer.outbound.release()
    assert (answer.key.in_flight, answer.body.closed) == (0, 1)
    answer.outbound.release()
    assert answer.key.in_flight == 0


@pytest.mark.parametrize("peeks", [False, True])
async def test_a_reader_that_is_cancelled_can_be_released(peeks: bool) -> None:
    answer = stream(event({"content": "a"}), 3600.0)

    async def serve() -> None:
        if peeks:
            answer.outbound.tap.meaningful = False
            await answer.outbound.peek(3600)
        await answer.deliver()

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(serve())
        await asyncio.sleep(0.01)
        task.cancel()
    answer.outbound.release()
    assert (answer.key.in_flight, answer.body.closed) == (0, 1)


@pytest.mark.parametrize(
    ("kind", "tap"),
    [
        (b"text/event-stream", StreamTap),
        (b"text/event-stream;charset=utf-8", StreamTap),
        (b"application/json", BodyTap),
        (b"text/plain", BodyTap),
        (None, BodyTap),
    ],
)
async def test_the_content_type_says_how_to_watch(kind: bytes | None, tap: type) -> None:
    answer = Answer(fields=[] if kind is None else [(b"content-type", kind)])
    assert isinstance(answer.outbound.tap, tap)
    assert answer.attempt.tap is answer.outbound.tap


# Failures of the transport.


@pytest.mark.parametrize(
    ("exc", "sent", "reason", "executed"),
    [
        (httpx.ConnectError("x"), False, ErrorReason.CONNECT, False),
        (httpx.ConnectTimeout("x"), False, ErrorReason.CONNECT, False),
        (httpx.ReadTimeout("x"), False, ErrorReason.TIMEOUT, True),
        (httpx.ReadTimeout("x"), True, ErrorReason.TIMEOUT, True),
        (httpx.WriteError("x"), False, ErrorReason.STREAM_ERROR, True),
        (httpx.ReadError("x"), False, ErrorReason.STREAM_ERROR, True),
        (httpx.ReadError("x"), True, ErrorReason.TRUNCATED, True),
        (httpx.RemoteProtocolError("x"), False, ErrorReason.BAD_RESPONSE, True),
        (httpx.RemoteProtocolError("x"), True, ErrorReason.TRUNCATED, True),
        (httpx.LocalProtocolError("x"), False, ErrorReason.INTERNAL, False),
    ],
)
def test_what_a_failure_of_the_transport_means(
    exc: httpx.HTTPError, sent: bool, reason: ErrorReason, executed: bool
) -> None:
    fault = fault_of(exc, sent=sent)
    assert (fault.reason, fault.executed, fault.message) == (reason, executed, "x")


def test_a_failure_without_words_is_told_by_its_name() -> None:
    assert fault_of(httpx.ReadError("")).message == "ReadError"


async def test_an_error_is_sent_whole() -> None:
    client = Client()
    error = GatewayError(429, "later", ErrorReason.NO_KEYS, retry_after=7)
    await send_error(client.send, error, [(b"x-request-id", b"ID")])
    assert (client.status, client.ended) == (429, True)
    assert client.headers == [
        (b"x-request-id", b"ID"),
        (b"retry-after", b"7"),
        JSON,
        (b"content-length", b"%d" % len(client.body)),
    ]
    assert json.loads(client.body)["error"]["message"] == "later"


async def test_the_words_of_an_answer_are_told_to_its_transcript() -> None:
    for answer in (stream(event({"content": "Ho"}), DONE), Answer(b'{"choices": [1]}')):
        assert answer.outbound.tap.transcript is None
    attempt = Attempt(1, Target("lab", "m"), 0, leased=0)
    attempt.transcript = Transcript(100)
    answer = stream(event({"content": "Ho"}), DONE, attempt=attempt)
    assert await answer.deliver()
    text, _ = attempt.transcript.written()
    assert b'"content":"Ho"' in (text or b"")
