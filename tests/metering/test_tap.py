"""The taps on what providers really send: what is found out, and that not a byte is changed."""

from __future__ import annotations

import gzip
import json
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.metering import tap as tap_module
from proxy.metering.rewrite import model_rewriter
from proxy.metering.sse import EventSplitter
from proxy.metering.tap import BodyTap, StreamTap
from proxy.providers import DIALECTS
from tests.transcripts import body, stream, tortured

HIDDEN = {"T1", "T14", "T19"}
"""The streams with an event of usage and nothing else."""


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> bytes:
    """An event of a stream, as OpenAI sends it."""
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish}
    return event({"id": "c", "model": "up", "choices": [choice], **more})


def event(document: Any) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def watch(*reads: bytes, **options: Any) -> tuple[StreamTap, bytes]:
    """A tap that has seen a whole stream, read n at second n; and what the client got."""
    tap = StreamTap(**options)
    out = b"".join([tap.feed(read, float(at)) for at, read in enumerate(reads)])
    return tap, out + tap.finish()


def events(name: str) -> list[bytes]:
    return EventSplitter().feed(stream(name))


def facts(tap: StreamTap) -> dict[str, Any]:
    """All that a row is made of, but for times."""
    names = ("usage", "error", "finish_reason", "done", "model", "fingerprint", "details")
    more = ("response_length", "seen_tokens", "saw_reasoning", "chunk_count", "meaningful")
    return {name: getattr(tap, name) for name in names + more}


class Seen(NamedTuple):
    """What a transcript says: tokens (prompt, completion, total) and the event of the first one."""

    tokens: tuple[int, int, int] | None
    finish: str | None
    first: int | None
    error: bool = False
    done: bool = True
    reasoning: bool = False
    chunks: int = 1


TRANSCRIPTS = {
    "T1": Seen((45, 3, 48), "stop", 1, chunks=2),
    "T2": Seen(None, None, 1, error=True, done=False, reasoning=True),
    "T6": Seen((9, 6, 109), "stop", 0, chunks=2),
    "T7": Seen((60, 15, 131), "tool_calls", 0),
    "T10": Seen((67, 5, 72), "tool_calls", 2, chunks=2),
    "T11": Seen(None, "error", 0, error=True, done=False, reasoning=True),
    "T12": Seen((43, 10, 53), "length", 1, error=True, reasoning=True),
    "T14": Seen((26, 4, 30), "stop", 0, reasoning=True, chunks=2),
    "T15": Seen(None, None, 0, done=False),
    "T17": Seen((45, 2, 47), "stop", 0, chunks=2),
    "T19": Seen((16, 1, 17), "stop", 1),
    "T20": Seen((17, 9, 26), "stop", 1, reasoning=True),
    "T20.error": Seen(None, None, None, error=True, done=False, chunks=0),
}


@pytest.mark.parametrize("name", TRANSCRIPTS)
@pytest.mark.parametrize("hide", [False, True])
def test_what_providers_send(name: str, hide: bool) -> None:
    expected = TRANSCRIPTS[name]
    reads = events(name)
    tap, out = watch(*reads, hide_usage=hide)
    usage = tap.usage or {}
    tokens = [usage.get(f"{part}_tokens") for part in ("prompt", "completion", "total")]
    assert tokens == list(expected.tokens or (None, None, None))
    assert tap.finish_reason == expected.finish
    assert (tap.error is not None) is expected.error
    assert tap.done is expected.done
    assert tap.complete is (expected.done or expected.finish is not None)
    assert tap.first_token == expected.first
    assert tap.first_byte == 0
    assert tap.saw_reasoning is expected.reasoning
    assert tap.chunk_count == expected.chunks
    assert not tap.inside_event
    if hide and name in HIDDEN:
        usage_only = [read for read in reads if b'"choices":[],' in read]
        assert len(usage_only) == 1
        assert out == b"".join(read for read in reads if read not in usage_only)
    else:
        assert out == stream(name)


def test_every_stream_is_among_them() -> None:
    with_error = {name for name, seen in TRANSCRIPTS.items() if seen.error}
    assert with_error == {"T2", "T11", "T12", "T20.error"}
    assert len(TRANSCRIPTS) == 13


def test_what_the_providers_make_of_it() -> None:
    """Through the dialect: thoughts that were hidden, a cost that was reported, a cached share."""
    found = {name: watch(stream(name))[0].usage or {} for name in ("T6", "T10", "T20")}
    gemini = DIALECTS["gemini"].usage(found["T6"])
    assert (gemini.input_tokens, gemini.output_tokens, gemini.reasoning_tokens) == (9, 100, 94)
    assert DIALECTS["openrouter"].usage(found["T10"]).cost_nano_usd == 13_050
    llama = DIALECTS["openai"].usage(found["T20"])
    assert (llama.input_tokens, llama.cached_tokens, llama.output_tokens) == (17, 7, 9)


def test_what_else_is_kept() -> None:
    groq, _ = watch(stream("T1"))
    assert (groq.model, groq.fingerprint) == ("llama-3.3-70b-versatile", "fp_d42c28f9ce")
    assert groq.details == {"service_tier": "on_demand"}
    assert groq.response_length == len("Hello!")
    assert watch(stream("T10"))[0].details == {"provider": "OpenAI"}
    assert watch(stream("T20"))[0].details["timings"]["predicted_per_second"] > 65
    assert watch(stream("T15"))[0].model == "llama3.2:3b"


def test_errors_say_what_they_are() -> None:
    assert watch(stream("T2"))[0].error["code"] == "tool_use_failed"
    assert watch(stream("T11"))[0].error["message"] == "Provider disconnected unexpectedly"
    assert watch(stream("T12"))[0].error["code"] == 400
    assert watch(stream("T20.error"))[0].error["type"] == "server_error"


# Framing.


@pytest.mark.parametrize("name", tortured())
@pytest.mark.parametrize("hide", [False, True])
def test_framing_changes_nothing(name: str, hide: bool) -> None:
    reads = tortured()[name]
    tap, out = watch(*reads, hide_usage=hide)
    assert out == b"".join(reads)
    expected = facts(watch(stream("T10"))[0])
    if name == "cut":
        expected.update(usage=None, done=False)
        assert tap.inside_event
    if name == "long":
        expected.update(saw_reasoning=True, seen_tokens=expected["seen_tokens"] + 1)
    if name == "emoji":  # 21 characters of arguments, where there were 18
        expected.update(seen_tokens=tap.seen_tokens)
    assert facts(tap) == expected
    assert tap.complete


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("name", ["T19", "T12"])
def test_one_event_is_withheld_wherever_the_reads_end(name: str, end: bytes) -> None:
    text = b"\xef\xbb\xbf" + stream(name).replace(b"\n", end)
    whole, expected = watch(text, hide_usage=True)
    if name == "T19":
        start = text.index(b'"choices":[]')
        start, stop = text.rindex(b"data:", 0, start), text.index(b"data:", start)
        assert expected == text[:start] + text[stop:]
    else:
        assert expected == text
    for cut in range(len(text)):
        tap, out = watch(text[:cut], text[cut:], hide_usage=True)
        assert out == expected
        assert facts(tap) == facts(whole)
    assert watch(*(text[i : i + 1] for i in range(len(text))), hide_usage=True)[1] == expected


def test_a_long_line_in_many_reads() -> None:
    text = tortured()["long"][0]
    reads = [text[i : i + 16_384] for i in range(0, len(text), 16_384)]
    tap, out = watch(*reads, hide_usage=True)
    assert out == text
    assert tap.first_token == len(reads) - 1
    assert (tap.usage or {})["total_tokens"] == 72


def test_without_withholding_bytes_are_handed_on_at_once() -> None:
    tap = StreamTap()
    assert tap.feed(b"data: {", 0) == b"data: {"
    assert tap.finish() == b""


def test_with_withholding_they_wait_for_the_end_of_their_event() -> None:
    tap = StreamTap(hide_usage=True)
    assert tap.feed(b": comment\n\ndata: {", 0) == b": comment\n\n"
    assert tap.feed(b"}\n\n", 0) == b"data: {}\n\n"


@pytest.mark.parametrize(
    "document",
    [
        {"choices": []},
        {"choices": [], "usage": None},
        {"choices": [], "prompt_filter_results": []},
        {"choices": None, "usage": {"total_tokens": 1}},
        {"usage": {"total_tokens": 1}},
        {"choices": [{"delta": {}}], "usage": {"total_tokens": 1}},
        {"choices": [], "usage": {"total_tokens": 1}, "error": {"message": "no"}},
        {"error": {"message": "no"}},
        [],
    ],
)
def test_nothing_else_is_withheld(document: Any) -> None:
    assert watch(event(document), hide_usage=True)[1] == event(document)


def test_comments_blank_lines_and_done_pass() -> None:
    text = b": ping\n\n\n\n:\n\nevent: ping\ndata: {}\n\nid: 7\nretry: 5\n\ndata: [DONE]\n\n"
    assert watch(text, hide_usage=True)[1] == text


# The end.


def test_an_event_without_its_blank_line_is_read_and_passed_once() -> None:
    tap = StreamTap(hide_usage=True)
    out = tap.feed(chunk({"content": "a"}), 1.0) + tap.feed(chunk(finish="stop")[:-1], 2.0)
    assert not tap.complete
    assert out + tap.finish() == chunk({"content": "a"}) + chunk(finish="stop")[:-1]
    assert tap.complete
    assert tap.finish() == b""
    assert tap.chunk_count == 1


def test_an_unfinished_event_is_late_by_what_it_took() -> None:
    tap, _ = watch(chunk({"content": "a"}), b": wait\n\n", chunk({"content": "b"})[:-2])
    assert (tap.first_token, tap.last_token) == (0.0, 2.0)
    assert list(tap.gaps) == [2.0]


def test_an_error_that_is_all_there_is_needs_no_blank_line() -> None:
    tap, out = watch(stream("T20.error").rstrip(), hide_usage=True)
    assert tap.error["code"] == 500
    assert out == stream("T20.error").rstrip()


def test_usage_that_was_not_asked_for_is_withheld_without_its_blank_line_too() -> None:
    usage = event({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}})
    for end in (usage[:-1], usage[:-2]):
        tap, out = watch(chunk({"content": "a"}), end, hide_usage=True)
        assert out == chunk({"content": "a"})
        assert tap.usage is not None
        assert not tap.inside_event


def test_an_event_that_was_cut_is_known_to_be_open() -> None:
    tap, out = watch(chunk({"content": "a"}) + b'data: {"cho', hide_usage=True)
    assert out.endswith(b'data: {"cho')
    assert tap.inside_event
    assert not tap.complete


@pytest.mark.parametrize("reads", [(), (b"",), (b"\n\n",), (b": ping\n\n",)])
def test_a_stream_of_nothing(reads: tuple[bytes, ...]) -> None:
    tap, _ = watch(*reads)
    assert not tap.complete
    assert not tap.meaningful
    assert not tap.inside_event
    assert (tap.first_token, tap.usage, tap.error, tap.max_gap) == (None, None, None, None)


# Tokens and times.


@pytest.mark.parametrize(
    "delta",
    [
        {},
        {"role": "assistant"},
        {"role": "assistant", "content": ""},
        {"content": None, "refusal": None, "audio": None, "tool_calls": None},
        {"reasoning": "", "reasoning_content": "", "thinking": "", "reasoning_details": []},
        {"tool_calls": []},
        {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "", "arguments": ""}}]},
        {"tool_calls": [{"index": 0}]},
        {"extra_content": {"google": {"thought_signature": "x"}}},
        {"content": []},
    ],
)
def test_what_is_no_token(delta: dict[str, Any]) -> None:
    tap, _ = watch(b": ping\n\n", chunk(delta), event({"choices": [], "usage": {}}))
    assert tap.first_token is None
    assert not tap.meaningful
    assert (tap.chunk_count, tap.seen_tokens, tap.response_length) == (0, 0, 0)


@pytest.mark.parametrize(
    "delta",
    [
        {"content": "a"},
        {"content": " "},
        {"reasoning": "a"},
        {"reasoning_content": "a"},
        {"reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}]},
        {"thinking": "a"},
        {"refusal": "a"},
        {"audio": {"data": "AA"}},
        {"tool_calls": [{"function": {"name": "f", "arguments": ""}}]},
        {"tool_calls": [{"function": {"arguments": "{"}}]},
        {"tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
        {"content": [{"type": "text", "text": "a"}]},
        {"content": "half a character \ud83d"},
    ],
)
def test_what_is_a_token(delta: dict[str, Any]) -> None:
    tap, _ = watch(chunk({"role": "assistant", "content": ""}), chunk(delta))
    assert (tap.first_token, tap.last_token, tap.chunk_count) == (1.0, 1.0, 1)
    assert tap.meaningful


def test_legacy_completions() -> None:
    reads = [event({"choices": [{"index": 0, "text": text}]}) for text in ("", "Hi", " you")]
    tap, _ = watch(*reads, event({"choices": [{"text": "", "finish_reason": "length"}]}))
    assert (tap.first_token, tap.chunk_count, tap.response_length) == (1.0, 2, 6)
    assert tap.finish_reason == "length"


def test_a_call_and_its_arguments_in_one_chunk_are_both_counted() -> None:
    call = {"function": {"name": "get_weather_now", "arguments": '{"city":"Oslo"}'}}
    assert watch(chunk({"tool_calls": [call]}))[0].seen_tokens == 8


def test_gaps_lie_between_tokens() -> None:
    tap = StreamTap()
    tap.feed(chunk({"role": "assistant"}), 0.5)
    for at in (1.0, 1.5, 1.75):
        tap.feed(chunk({"content": "a"}), at)
    tap.feed(b": ping\n\n", 3.0)
    tap.feed(chunk({"content": "a"}) + chunk({"content": "b"}), 4.0)
    tap.feed(chunk(finish="stop"), 9.0)
    assert (tap.first_byte, tap.first_token, tap.last_token) == (0.5, 1.0, 4.0)
    assert list(tap.gaps) == [0.5, 0.25, 2.25, 0.0]
    assert tap.max_gap == 2.25
    assert tap.chunk_count == 5


def test_the_gaps_of_a_very_long_stream_are_thinned_and_the_longest_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tap_module, "MAX_GAPS", 16)
    tap = StreamTap()
    at = 0.0
    for number in range(1000):
        at += 7.0 if number == 501 else 1.0
        tap.feed(chunk({"content": "a"}), at)
        assert len(tap.gaps) < 16
    assert len(tap.gaps) >= 7
    assert tap.max_gap == 7.0
    assert tap.chunk_count == 1000


# Meaning and errors.


def test_the_first_meaningful_event() -> None:
    for read in (chunk(finish="stop"), b"data: [DONE]\n\n", stream("T20.error")):
        assert watch(read)[0].meaningful
    assert watch(event({"choices": [{"delta": {}, "error": {"code": 502}}]}))[0].meaningful
    assert watch(event({"x_groq": {"error": "over capacity"}}))[0].meaningful


@pytest.mark.parametrize("nothing", [None, "", {}, False, []])
def test_an_error_that_says_nothing_is_none(nothing: Any) -> None:
    tap, _ = watch(chunk({"content": "a"}, error=nothing), b"data: [DONE]\n\n")
    assert tap.error is None


def test_the_first_error_counts() -> None:
    tap, _ = watch(event({"error": "first"}), event({"error": "second"}))
    assert tap.error == "first"


def test_an_error_of_one_choice() -> None:
    assert watch(chunk(finish="error"))[0].error == {"message": "the provider ended with an error"}
    tap, _ = watch(event({"x_groq": {"error": "over capacity"}}))
    assert tap.error == {"message": "over capacity"}


def test_what_is_not_json_is_passed_and_not_minded() -> None:
    text = b"data: {oops\n\ndata: 5\n\ndata: \xff\n\n" + chunk({"content": "a"})
    tap, out = watch(text, hide_usage=True)
    assert out == text
    assert tap.chunk_count == 1


# Rewriting.


def test_the_alias_stands_in_every_event() -> None:
    model = b'"model":"llama-3.3-70b-versatile"'
    for options in ({}, {"hide_usage": True}):
        for reads in ([stream("T1")], [bytes([byte]) for byte in stream("T1")]):
            tap, out = watch(*reads, rewrite=model_rewriter("fast"), **options)
            expected = watch(stream("T1"), **options)[1].replace(model, b'"model":"fast"')
            assert out == expected
            assert tap.model == "llama-3.3-70b-versatile"


# Compressed.


@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
def test_a_compressed_stream_is_read_and_passed_as_it_came(size: int) -> None:
    packed = gzip.compress(stream("T19"))
    reads = [packed[i : i + size] for i in range(0, len(packed), size)]
    tap, out = watch(*reads, encoding="gzip", hide_usage=True)
    assert out == packed
    assert facts(tap) == facts(watch(stream("T19"))[0])


@pytest.mark.parametrize("encoding", ["br", "gzip"])
def test_a_stream_that_cannot_be_unpacked_passes(encoding: str) -> None:
    tap, out = watch(b"\x8b\x03", stream("T19"), encoding=encoding)
    assert out == b"\x8b\x03" + stream("T19")
    assert tap.usage is None
    assert tap.first_byte == 0


# One document.


def whole(document: Any, **options: Any) -> BodyTap:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    tap = BodyTap(**options)
    middle = len(data) // 2
    assert tap.feed(data[:middle], 1.0) + tap.feed(data[middle:], 2.0) == data
    tap.finish()
    tap.finish()
    return tap


def test_a_completion() -> None:
    message = {"role": "assistant", "content": "Hello", "reasoning": "Hm"}
    tap = whole(
        {
            "model": "up-1",
            "system_fingerprint": "fp",
            "choices": [{"message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
        }
    )
    assert (tap.valid, tap.empty, tap.error) == (True, False, None)
    assert (tap.model, tap.fingerprint, tap.finish_reason) == ("up-1", "fp", "stop")
    assert tap.usage == {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    assert tap.response_length == 5
    assert tap.saw_reasoning
    assert tap.first_byte == 1.0
    assert (tap.first_token, tap.chunk_count) == (None, None)


def test_a_legacy_completion_and_several_choices() -> None:
    assert whole({"choices": [{"text": "ab"}, {"text": "c"}]}).response_length == 3


def test_a_call_has_no_text() -> None:
    message = {"content": None, "tool_calls": [{"function": {"name": "f"}}]}
    tap = whole({"choices": [{"message": message, "finish_reason": "tool_calls"}]})
    assert tap.response_length is None
    assert not tap.empty


def test_embeddings() -> None:
    usage = {"prompt_tokens": 8, "total_tokens": 8}
    tap = whole({"object": "list", "data": [{"embedding": [0.1]}], "usage": usage, "model": 7})
    assert (tap.valid, tap.empty, tap.usage) == (True, False, usage)


def test_an_error_inside_a_success() -> None:
    tap = whole(body("T13.inside"))
    assert tap.error == {
        "code": 502,
        "message": "Provider disconnected mid-stream",
        "metadata": {"error_type": "provider_unavailable"},
    }
    assert (tap.usage or {})["total_tokens"] == 15
    assert whole(body("T5.key")).error["code"] == "invalid_api_key"
    assert whole(body("T21.vllm_key")).error == "Unauthorized"


def test_the_timings_of_a_body() -> None:
    tap = whole({"choices": [{"text": "a"}], "timings": {"prompt_n": 3, "predicted_n": 2}})
    assert (tap.usage or {})["total_tokens"] == 5


def test_groqs_own_count_of_cached_tokens_is_no_usage() -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    tap = whole({"usage": usage, "x_groq": {"usage": {"dram_cached_tokens": 256}}})
    assert tap.usage == usage


@pytest.mark.parametrize(
    ("document", "valid", "empty"),
    [
        (b"", False, True),
        (b" \r\n", False, True),
        (b"{}", True, True),
        (b'{"choices":[]}', True, True),
        (b'{"choices":[],"usage":{"total_tokens":0}}', True, False),
        (b"<html>", False, False),
        (b"[]", False, False),
        (b'{"choices":[{', False, False),
        (b'\xef\xbb\xbf{"choices":[{"text":"a"}]}', True, False),
    ],
)
def test_what_is_no_answer(document: bytes, valid: bool, empty: bool) -> None:
    tap = whole(document)
    assert (tap.valid, tap.empty) == (valid, empty)


def test_a_compressed_body_is_read() -> None:
    tap = whole(gzip.compress(body("T13.inside")), encoding="gzip")
    assert (tap.usage or {})["total_tokens"] == 15
    assert not whole(gzip.compress(b"{}"), encoding="br").valid


def test_a_body_beyond_the_limit_passes_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tap_module, "MAX_BODY", 100)
    tap = BodyTap()
    for _ in range(5):
        assert tap.feed(b"x" * 50, 1.0) == b"x" * 50
    assert sum(map(len, tap._parts)) <= 100
    tap.finish()
    assert (tap.valid, tap.empty) == (False, False)


# Whatever comes.

READS = st.lists(st.binary(max_size=40) | st.sampled_from(events("T12")), max_size=8)


@settings(deadline=None)
@given(READS, st.booleans(), st.sampled_from([None, "gzip"]))
def test_no_bytes_are_changed_and_none_are_a_surprise(
    reads: list[bytes], hide: bool, encoding: str | None
) -> None:
    tap, out = watch(*reads, hide_usage=hide, encoding=encoding)
    assert out == b"".join(reads)
    assert tap.finish() == b""
    whole(b"".join(reads), encoding=encoding)


@settings(deadline=None)
@given(st.lists(st.sampled_from(events("T19") + events("T10")), max_size=6), st.data())
def test_where_reads_end_makes_no_difference(parts: list[bytes], data: st.DataObject) -> None:
    text = b"".join(parts)
    cut = data.draw(st.integers(0, len(text)))
    (one, first), (two, second) = (
        watch(*reads, hide_usage=True) for reads in ([text], [text[:cut], text[cut:]])
    )
    assert first == second
    assert facts(one) == facts(two)
