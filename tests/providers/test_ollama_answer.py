from __future__ import annotations

import base64
import json
import struct
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.providers import ollama_answer
from proxy.providers.ollama_answer import (
    AnswerBody,
    AnswerStream,
    completion,
    embeddings,
    text_completion,
)
from tests.transcripts import body

TRANSCRIPTS = ["T23.text", "T23.thinking", "T23.tools", "T23.cut", "T23.error", "T16.native"]
NAMES = (
    *("message", "content", "tool_calls", "function", "arguments", "name", "done", "error"),
    *("model", "eval_count", "logprobs", "embeddings", "response", "id", "thinking"),
)
COUNTS = {"prompt_tokens": 11, "completion_tokens": 4, "total_tokens": 15}
DURATIONS = {
    "total_duration": 1874560334,
    "load_duration": 1401397084,
    "prompt_eval_duration": 130074791,
    "eval_duration": 252479709,
}


def events(*reads: bytes, chat: bool = True) -> list[Any]:
    """The documents of a translated stream, ``[DONE]`` as a text."""
    answer = AnswerStream(chat)
    out = b"".join([answer.feed(read) for read in reads]) + answer.finish()
    assert not out or out.endswith(b"\n\n")
    found = [event.removeprefix(b"data: ") for event in out.split(b"\n\n")[:-1]]
    return [json.loads(each) if each.startswith(b"{") else each.decode() for each in found]


def said(found: list[Any]) -> list[dict[str, Any]]:
    return [each["choices"][0]["delta"] for each in found if each != "[DONE]" and each["choices"]]


def line(**members: Any) -> bytes:
    return json.dumps(members).encode() + b"\n"


def test_words_are_chunks_with_an_end_and_usage() -> None:
    found = events(body("T23.text"))
    first, *others = said(found)
    assert first == {"role": "assistant", "content": "Hel"}
    assert others == [{"content": "lo,\n"}, {"content": "wörld 🗼"}, {"content": "!"}, {}]
    *_, end, usage, done = found
    assert end["choices"] == [{"index": 0, "delta": {}, "finish_reason": "stop"}]
    assert (usage["choices"], usage["usage"]) == ([], {**COUNTS, **DURATIONS})
    assert done == "[DONE]"
    heads = {(each["id"], each["object"], each["created"], each["model"]) for each in found[:-1]}
    [(name, kind, _, model)] = heads
    assert name.startswith("chatcmpl-")
    assert (kind, model) == ("chat.completion.chunk", "qwen3:4b")


def test_thoughts_are_reasoning() -> None:
    first, *others = said(events(body("T23.thinking")))
    assert first == {"role": "assistant", "content": "", "reasoning": "The user"}
    assert others == [{"reasoning": " greets."}, {"content": "Hi"}, {"content": "!"}, {}]


def test_calls_are_counted_and_have_texts_as_arguments() -> None:
    found = events(body("T23.tools"))
    [one], [other] = [delta["tool_calls"] for delta in said(found) if "tool_calls" in delta]
    assert one["function"] == {"name": "weather", "arguments": '{"city":"Oslo"}'}
    assert other["function"] == {"name": "time", "arguments": "{}"}
    assert [one["index"], other["index"]] == [0, 1]
    assert (one["type"], other["id"]) == ("function", "call_x1")
    assert one["id"].startswith("call_")
    assert found[-3]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("reason", "told"), [("stop", "stop"), ("length", "length"), ("load", "stop"), (None, "stop")]
)
def test_why_it_ended(reason: str | None, told: str) -> None:
    found = events(line(message={"content": "a"}, done=True, done_reason=reason))
    assert said(found)[0] == {"role": "assistant", "content": "a"}
    assert found[1]["choices"][0]["finish_reason"] == told


def test_an_error_is_an_event_and_the_last_one() -> None:
    first, last = events(body("T23.error") + line(message={"content": "b"}, done=True))
    assert first["choices"][0]["delta"]["content"] == "Hel"
    message = "an error was encountered while running the model: CUDA error"
    assert last["error"] == {
        "message": message,
        "type": "stream_error",
        "param": None,
        "code": None,
    }
    told = {"message": "no", "type": "x"}
    assert events(line(error=told)) == [{"error": told}]


def test_a_stream_that_is_cut_has_no_end() -> None:
    assert said(events(body("T23.cut"))) == [
        {"role": "assistant", "content": "Hel"},
        {"content": "lo"},
    ]
    assert events() == []


def test_after_the_end_nothing_counts() -> None:
    assert events(body("T23.text"), body("T23.text"))[:-1] != []
    assert len(events(body("T23.text"), body("T23.text"))) == len(events(body("T23.text")))


def test_a_last_line_may_lack_its_line_end() -> None:
    assert events(body("T23.text").rstrip(b"\n"))[-1] == "[DONE]"


def test_probabilities_are_told_where_they_were_asked_for() -> None:
    told = [{"token": "a", "logprob": -0.1}]
    [chunk] = events(line(message={"content": "a"}, logprobs=told))
    assert chunk["choices"][0]["logprobs"] == {"content": told}


def test_texts_are_text_completions() -> None:
    reads = line(model="m", response="a"), line(model="m", response="", done=True, eval_count=1)
    text, end, usage, done = events(*reads, chat=False)
    assert text["choices"] == [{"index": 0, "text": "a", "finish_reason": None}]
    assert end["choices"] == [{"index": 0, "text": "", "finish_reason": "stop"}]
    assert (usage["usage"]["completion_tokens"], done) == (1, "[DONE]")
    assert text["object"] == "text_completion"
    assert text["id"].startswith("cmpl-")


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_a_stream_reads_alike_wherever_it_is_split(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ollama_answer, "token_hex", lambda _: "x")
    monkeypatch.setattr(ollama_answer, "now_ms", lambda: 1_000)
    whole = body(name)
    expected = events(whole)
    assert expected == events(*[whole[n : n + 1] for n in range(len(whole))])
    for place in range(1, len(whole)):
        assert events(whole[:place], whole[place:]) == expected


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(NAMES),
                inner,
                max_size=4,
            )
        ),
    )
)
def test_whatever_comes_is_read(document: Any) -> None:
    data = json.dumps(document).encode()
    for chat in (True, False):
        events(data + b"\n", data, chat=chat)
    for make in (completion, text_completion, lambda found: embeddings(found, packed=True)):
        answer = AnswerBody(make)
        answer.feed(data)
        assert answer.finish()


def test_what_is_no_json_is_left_out_of_a_stream() -> None:
    assert said(events(b"<html>\n\n[]\n" + body("T23.cut"))) == said(events(body("T23.cut")))


def whole(make: Any, document: Any) -> Any:
    answer = AnswerBody(make)
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    assert answer.feed(data[:5]) + answer.feed(data[5:]) == b""
    return json.loads(answer.finish())


def test_a_completion() -> None:
    last = json.loads(body("T23.text").splitlines()[-1])
    last["message"] = {"role": "assistant", "content": "Hello", "thinking": "hm"}
    found = whole(completion, last)
    message = {"role": "assistant", "content": "Hello", "reasoning": "hm"}
    assert found["choices"] == [{"index": 0, "message": message, "finish_reason": "stop"}]
    assert found["usage"] == {**COUNTS, **DURATIONS}
    assert (found["object"], found["model"]) == ("chat.completion", "qwen3:4b")


def test_a_completion_with_calls() -> None:
    function = {"name": "weather", "arguments": {"city": "Oslo"}}
    found = whole(completion, {"message": {"tool_calls": [{"function": function}]}})
    [choice] = found["choices"]
    assert choice["finish_reason"] == "tool_calls"
    [call] = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"city":"Oslo"}'}


def test_a_text_completion() -> None:
    found = whole(text_completion, {"model": "m", "response": "a", "done_reason": "length"})
    assert found["choices"] == [{"index": 0, "text": "a", "finish_reason": "length"}]
    assert found["object"] == "text_completion"


def test_embeddings_plain_and_packed() -> None:
    told = {"model": "e", "embeddings": [[0.5, -1.0], [2, 3]], "prompt_eval_count": 8}
    found = whole(lambda each: embeddings(each, packed=False), told)
    assert [(each["index"], each["embedding"]) for each in found["data"]] == [
        (0, [0.5, -1.0]),
        (1, [2, 3]),
    ]
    assert found["usage"] == {"prompt_tokens": 8, "total_tokens": 8}
    packed = whole(lambda each: embeddings(each, packed=True), told)["data"][0]["embedding"]
    assert struct.unpack("<2f", base64.b64decode(packed)) == (0.5, -1.0)


def test_an_error_and_what_is_no_answer() -> None:
    assert whole(completion, {"error": "no"})["error"]["message"] == "no"
    answer = AnswerBody(completion)
    answer.feed(b"<html>")
    assert answer.finish() == b"<html>"


@pytest.mark.parametrize("answer", [AnswerStream(True), AnswerBody(completion)])
def test_a_line_without_an_end_is_given_up(
    answer: AnswerStream | AnswerBody, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ollama_answer, "MAX_HELD", 100)
    answer.feed(b"x" * 60)
    with pytest.raises(httpx.RemoteProtocolError):
        answer.feed(b"x" * 60)
