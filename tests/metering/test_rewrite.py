from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.metering.rewrite import MAX_TRIES, model_rewriter
from tests.transcripts import stream

rewrite = model_rewriter("fast")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'{"model":"up"}', b'{"model":"fast"}'),
        (
            b'{ "a" : 1.50,\n\t"model" :\t"up" , "a":2}',
            b'{ "a" : 1.50,\n\t"model" :\t"fast" , "a":2}',
        ),
        (b'data: {"model":"up"}\n\n', b'data: {"model":"fast"}\n\n'),
        (b'event: x\r\ndata:{"model":"up"}\r\n\r\n', b'event: x\r\ndata:{"model":"fast"}\r\n\r\n'),
        (b'data: {"a":1,\ndata: "model":"up"}\n\n', b'data: {"a":1,\ndata: "model":"fast"}\n\n'),
        (b'{"model":""}', b'{"model":"fast"}'),
        (b'{"model":"u\\"p\\\\"}', b'{"model":"fast"}'),
        (b'{"model":"u\xc3\xbc"}', b'{"model":"fast"}'),
    ],
)
def test_the_model_of_a_document_or_event(before: bytes, after: bytes) -> None:
    assert rewrite(before) == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'{"x":{"model":"up"},"model":"up"}', b'{"x":{"model":"up"},"model":"fast"}'),
        (b'{"model":"up","x":[{"model":"up"}]}', b'{"model":"fast","x":[{"model":"up"}]}'),
        (b'{"x":"\\"model\\":\\"a\\"","model":"a"}', b'{"x":"\\"model\\":\\"a\\"","model":"fast"}'),
        (b'{"x":"{\\"model\\":","model":"up"}', b'{"x":"{\\"model\\":","model":"fast"}'),
        (b'{"x":"\\\\","model":"up"}', b'{"x":"\\\\","model":"fast"}'),
        # Of two members of one name the last counts for those who read them.
        (b'{"model":"a","model":"b"}', b'{"model":"a","model":"fast"}'),
    ],
)
def test_only_the_member_at_the_top(before: bytes, after: bytes) -> None:
    assert rewrite(before) == after


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"data: [DONE]\n\n",
        b": comment\n\n",
        b"[]",
        b'[{"model":"up"}]',
        b'{"x":{"model":"up"}}',
        b'{"model":null}',
        b'{"model":5}',
        b'{"model":{"model":"up"}}',
        b'{"models":"up"}',
        b'{"model":"fast"}',
        b'{"model":"up"',
        b'{"model":"u\np"}',
        b'{"mod\\u0065l":"up"}',
        b'{"model":"up"} {}',
        b'"model":"up"',
        b"\xff\xfe",
    ],
)
def test_what_cannot_be_read_or_has_no_model_stays(document: bytes) -> None:
    assert rewrite(document) == document


def test_the_alias_may_be_any_text() -> None:
    alias = 'a"b\\c\n\N{GREEK SMALL LETTER ALPHA}'
    changed = model_rewriter(alias)(b'{"model":"up","n":1e-05}')
    assert json.loads(changed) == {"model": alias, "n": 1e-05}
    assert b"1e-05" in changed


def test_looking_for_the_member_has_an_end() -> None:
    inner = b",".join([b'{"model":"up"}'] * MAX_TRIES)
    assert rewrite(b'{"x":[%b],"model":"up"}' % inner).endswith(b'"model":"up"}')
    assert rewrite(b'{"model":"up","x":[%b]}' % inner).startswith(b'{"model":"fast"')


@pytest.mark.parametrize("name", ["T1", "T6", "T7", "T10", "T17", "T19", "T20"])
def test_what_providers_send_changes_only_there(name: str) -> None:
    for event in stream(name).split(b"\n\n"):
        changed = rewrite(event)
        if b"{" not in event:
            assert changed == event
            continue
        before = json.loads(event.removeprefix(b"data: "))
        after = json.loads(changed.removeprefix(b"data: "))
        assert after == {**before, "model": "fast"}
        assert len(changed) - len(event) == len("fast") - len(before["model"])


@settings(deadline=None)
@given(st.binary(max_size=100))
def test_no_bytes_are_a_surprise(document: bytes) -> None:
    assert rewrite(document) == document
    rewrite(b'{"model":"' + document + b'","a":' + document + b"}")
