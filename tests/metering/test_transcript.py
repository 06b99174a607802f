from __future__ import annotations

import gzip
import json
from typing import Any

from proxy.metering.tap import BodyTap, StreamTap
from proxy.metering.transcript import Transcript
from tests.metering.streams import chunk, event


def told(*reads: bytes, limit: int = 1000, **options: Any) -> Any:
    tap = StreamTap(**options)
    tap.transcript = transcript = Transcript(limit)
    for read in reads:
        tap.feed(read, 0.0)
    tap.finish()
    text, length = transcript.written()
    if text is None:
        return None
    assert length is not None
    assert length >= len(text)
    return json.loads(text)["choices"]


def calls(*deltas: dict[str, Any]) -> bytes:
    return b"".join(chunk({"tool_calls": [delta]}) for delta in deltas)


def call(index: int, id_: str | None, name: str = "", arguments: str = "") -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"index": index, "function": function, **({"id": id_} if id_ else {})}


STREAM = [
    chunk({"role": "assistant", "content": ""}),
    chunk({"reasoning": "hm, "}),
    chunk({"reasoning": "yes"}),
    chunk({"content": "Hel"}),
    chunk({"content": "lo"}),
    chunk({"refusal": "No."}),
    chunk({}, "stop"),
    b"data: [DONE]\n\n",
]
MESSAGE = {"role": "assistant", "content": "Hello", "reasoning": "hm, yes", "refusal": "No."}


def test_a_stream_is_told_as_an_answer_however_it_was_read() -> None:
    whole = [{"index": 0, "message": MESSAGE, "finish_reason": "stop"}]
    assert told(*STREAM) == whole
    assert told(b"".join(STREAM)) == whole
    assert told(*STREAM, hide_usage=True, mend_tools=True) == whole
    raw = b"".join(STREAM)
    assert told(*(raw[at : at + 7] for at in range(0, len(raw), 7))) == whole
    assert told(gzip.compress(raw), encoding="gzip") == whole


def test_an_event_that_is_odd_takes_nothing_along() -> None:
    odd = [
        b"data: no json\n\n",
        event([1]),
        event({"choices": [3, {"delta": 4}, {"index": "x", "delta": {"content": 5}}]}),
        event({"choices": [{"index": -1, "delta": {"tool_calls": [{"function": 6}, 7]}}]}),
        event({"error": {"message": "late"}}),
    ]
    (choice,) = told(*STREAM[:5], *odd)
    assert choice["message"]["content"] == "Hello"


def test_choices_are_told_apart_and_tool_calls_too_also_under_one_index() -> None:
    two = event({"choices": [{"index": 1, "delta": {"content": "b"}, "finish_reason": "length"}]})
    parts = calls(
        call(0, "c1", "find", '{"a'),
        call(0, None, "", '": 1}'),
        call(0, "c2", "open", "{}"),
        call(1, "c3", "shut"),
    )
    first, second = told(two, parts)
    assert [
        (made["id"], made["function"].get("name"), made["function"].get("arguments"))
        for made in first["message"]["tool_calls"]
    ] == [("c1", "find", '{"a": 1}'), ("c2", "open", "{}"), ("c3", "shut", None)]
    assert second == {
        "index": 1,
        "message": {"role": "assistant", "content": "b"},
        "finish_reason": "length",
    }


def test_a_completion_has_a_text_and_content_may_come_in_parts() -> None:
    text = event({"choices": [{"index": 0, "text": "Once "}]})
    more = event({"choices": [{"index": 0, "text": "upon", "finish_reason": "stop"}]})
    assert told(text, more) == [{"index": 0, "text": "Once upon", "finish_reason": "stop"}]
    (choice,) = told(chunk({"content": [{"type": "text", "text": "Hi"}, {"type": "x"}, 1]}))
    assert choice["message"]["content"] == "Hi"


def test_a_long_answer_stops_and_says_how_long_it_was() -> None:
    transcript = Transcript(50)
    for _ in range(100):
        transcript.read(b'{"choices": [{"delta": {"content": "0123456789"}}]}')
    text, length = transcript.written()
    assert text is not None
    assert length is not None
    assert len(json.loads(text)["choices"][0]["message"]["content"]) == 100
    assert length == len(text) + 900


def test_a_body_stays_as_it_came() -> None:
    body = b'{"choices": [ ], "x":1.0}'
    for encoding, sent in ((None, body), ("gzip", gzip.compress(body))):
        tap = BodyTap(encoding=encoding)
        tap.transcript = Transcript(10)
        tap.feed(sent, 0.0)
        tap.finish()
        assert tap.transcript.written() == (body, len(body))


def test_nothing_came() -> None:
    assert told() is None
    tap = BodyTap()
    tap.transcript = Transcript(10)
    tap.finish()
    assert tap.transcript.written() == (None, None)
