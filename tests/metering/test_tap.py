"""What the taps find out about what providers really send."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from proxy.metering import tap as tap_module
from proxy.metering.tap import BodyTap, StreamTap
from proxy.providers import DIALECTS
from tests import transcripts
from tests.metering.streams import chunk, event, events, watch, whole
from tests.transcripts import body, stream

HIDDEN = {"T1", "T14", "T19"}
"""The streams with an event of usage and nothing else."""


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
    folder = Path(transcripts.__file__).parent
    assert {path.stem for path in folder.glob("*.sse")} == set(TRANSCRIPTS)


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
    assert list(tap.long_gaps) == [2.25]
    assert tap.chunk_count == 5


def test_the_gaps_of_a_very_long_stream_are_thinned_and_the_longest_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tap_module, "MAX_GAPS", 16)
    tap = StreamTap()
    at = 0.0
    for number in range(1000):
        at += 7.0 if number in (3, 501, 900) else 1.0
        tap.feed(chunk({"content": "a"}), at)
        assert len(tap.gaps) < 16
    assert len(tap.gaps) >= 7
    assert tap.max_gap == 7.0
    assert list(tap.long_gaps) == [7.0, 7.0, 7.0]
    assert tap.chunk_count == 1000


@pytest.mark.parametrize(
    ("delta", "kind"),
    [
        ({"content": "a"}, "content"),
        ({"refusal": "no"}, "content"),
        ({"audio": {"data": "AA"}}, "content"),
        ({"reasoning": "hm"}, "reasoning"),
        ({"reasoning_content": "hm"}, "reasoning"),
        ({"reasoning_details": [{"type": "reasoning.encrypted"}]}, "reasoning"),
        ({"tool_calls": [{"index": 0, "function": {"name": "f"}}]}, "tool"),
    ],
)
@pytest.mark.parametrize("together", [False, True])
def test_the_first_of_each_kind_of_output_has_its_moment(
    delta: dict[str, Any], kind: str, together: bool
) -> None:
    tap = StreamTap()
    tap.feed(chunk({"role": "assistant", "content": ""}), 1.0)
    reads = [chunk(delta), chunk(delta)]
    for at, read in enumerate([b"".join(reads)] if together else reads, 2):
        tap.feed(read, float(at))
    found = {name: getattr(tap, f"first_{name}") for name in ("reasoning", "content", "tool")}
    assert found == {**dict.fromkeys(found), kind: 2.0}
    assert (tap.first_token, tap.saw_reasoning) == (2.0, kind == "reasoning")


def test_an_answer_after_thoughts_has_moments_of_its_own() -> None:
    call = {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}
    tap, _ = watch(*map(chunk, ({"reasoning": "hm"}, {"content": "a"}, call, {"content": "b"})))
    assert (tap.first_reasoning, tap.first_content, tap.first_tool) == (0.0, 1.0, 2.0)
    assert (tap.first_token, tap.last_token) == (0.0, 3.0)


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


# One document.


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
