"""The taps and the bytes: not one is changed, wherever the reads end."""

from __future__ import annotations

import gzip
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.metering.rewrite import model_rewriter
from proxy.metering.tap import StreamTap
from tests.metering.streams import chunk, event, events, facts, watch, whole
from tests.transcripts import stream, tortured

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
