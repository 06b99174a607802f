from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.metering import sse
from proxy.metering.sse import EventSplitter, payload
from tests.transcripts import stream, tortured

ENDS = {"lf": b"\n", "crlf": b"\r\n", "cr": b"\r"}


def split(*reads: bytes) -> tuple[list[bytes], bytes]:
    splitter = EventSplitter()
    events = [event for read in reads for event in splitter.feed(read)]
    return events, splitter.rest


@pytest.mark.parametrize("end", ENDS)
def test_an_event_ends_with_a_blank_line(end: str) -> None:
    text = b"data: a\n\n: comment\n\nevent: x\ndata: b\n\ndata: c".replace(b"\n", ENDS[end])
    blank = ENDS[end] * 2
    events, rest = split(text)
    assert events == [
        b"data: a" + blank,
        b": comment" + blank,
        b"event: x" + ENDS[end] + b"data: b" + blank,
    ]
    assert rest == b"data: c"


@pytest.mark.parametrize("end", ENDS)
def test_events_are_the_same_wherever_the_reads_end(end: str) -> None:
    text = stream("T10").replace(b"\n", ENDS[end]) + b"data: begun"
    whole = split(text)
    assert whole == split(*(text[i : i + 1] for i in range(len(text))))
    for cut in range(len(text)):
        assert split(text[:cut], text[cut:]) == whole


@pytest.mark.parametrize("name", tortured())
def test_every_framing_gives_the_same_data(name: str) -> None:
    reads = tortured()[name]
    events, rest = split(*reads)
    assert b"".join([*events, rest]) == b"".join(reads)
    found = [data for event in [*events, rest] if (data := payload(event)) is not None]
    if name != "cut":
        assert len(found) == 5
        assert found[-1] == b"[DONE]"


def test_no_line_end_is_lost() -> None:
    """A third one belongs to what comes next."""
    assert split(b"data: a\n\n\n") == ([b"data: a\n\n"], b"\n")
    assert split(b"data: a\n\n\n", b"data: b\n\n") == ([b"data: a\n\n", b"\ndata: b\n\n"], b"")
    assert split(b"data: a\n\n\n\n") == ([b"data: a\n\n", b"\n\n"], b"")


def test_a_line_feed_that_is_still_to_come_belongs_to_its_event() -> None:
    assert split(b"data: a\r\n\r") == ([], b"data: a\r\n\r")
    assert split(b"data: a\r\n\r", b"\n") == ([b"data: a\r\n\r\n"], b"")
    assert split(b"data: a\r\n\r", b"data: b") == ([b"data: a\r\n\r"], b"data: b")


def test_an_event_with_lone_carriage_returns_does_not_wait_for_the_next() -> None:
    assert split(b"data: a\r\r") == ([b"data: a\r\r"], b"")


@settings(deadline=None)
@given(st.binary(), st.lists(st.integers(0, 64)))
def test_joined_the_events_are_the_stream(text: bytes, cuts: list[int]) -> None:
    marks = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    events, rest = split(*(text[a:b] for a, b in pairwise(marks)))
    assert b"".join([*events, rest]) == text


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([b"data: a", b":", b"data", b"\n", b"e: \xff"]), max_size=12),
    st.sampled_from(list(ENDS.values())),
    st.integers(0, 100),
)
def test_where_a_read_ends_makes_no_difference(lines: list[bytes], end: bytes, cut: int) -> None:
    text = b"".join(end if line == b"\n" else line for line in lines)
    assert split(text[:cut], text[cut:]) == split(text)


def test_inside_an_event() -> None:
    splitter = EventSplitter()
    assert not splitter.inside_event
    splitter.feed(b"data: a")
    assert splitter.inside_event
    splitter.feed(b"\n\n")
    assert not splitter.inside_event
    splitter.feed(b"\n")
    assert not splitter.inside_event


def test_a_long_line_is_one_event_whatever_the_reads() -> None:
    event = b"data: " + b"x" * 2**20 + b"\n\n"
    reads = [event[i : i + 16_384] for i in range(0, len(event), 16_384)]
    assert split(*reads) == ([event], b"")


def test_an_event_without_end_is_not_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT", 100)
    splitter = EventSplitter()
    passed = b""
    for _ in range(50):
        passed += b"".join(splitter.feed(b"data: " + b"x" * 30))
        assert len(splitter.rest) <= 100
        assert splitter.inside_event
    passed += b"".join(splitter.feed(b"\r\n"))
    assert splitter.inside_event
    events = splitter.feed(b"\r\ndata: next\r\n\r\n")
    assert not splitter.inside_event
    assert events[-1] == b"data: next\r\n\r\n"
    assert passed + b"".join(events) + splitter.rest == (
        (b"data: " + b"x" * 30) * 50 + b"\r\n\r\ndata: next\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b'data: {"a":1}\n\n', b'{"a":1}'),
        (b'data:{"a":1}\r\n\r\n', b'{"a":1}'),
        (b"data:  two spaces\n\n", b" two spaces"),
        (b"event: error\ndata: {}\nid: 7\n\n", b"{}"),
        (b'data: {"a":\ndata: 1}\n\n', b'{"a":\n1}'),
        (b"data\n\n", b""),
        (b"data:\n\n", b""),
        (b"data: [DONE]", b"[DONE]"),
        (b"\xef\xbb\xbfdata: x\n\n", b"x"),
        (b"\n\ndata: x\n\n", b"x"),
        (b": comment\n\n", None),
        (b"\n\n", None),
        (b"", None),
        (b"event: ping\n\n", None),
        (b"database: x\n\n", None),
        (b" data: x\n\n", None),
    ],
)
def test_the_data_of_an_event(event: bytes, data: bytes | None) -> None:
    assert payload(event) == data
