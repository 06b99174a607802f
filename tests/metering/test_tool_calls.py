from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.metering import tool_calls
from proxy.metering.tap import StreamTap
from proxy.metering.tool_calls import MAX_CALLS, MAX_ID, MAX_INDEX, ToolCalls
from tests.metering.streams import chunk, event, events, facts, watch
from tests.transcripts import stream

Given = tuple[Any, Any]
"""Index and id of one tool call; the id is left out where it is ``...``."""


def call(index: Any, id_: Any, arguments: str = "{}") -> dict[str, Any]:
    """A tool call in the order of Ollama's members."""
    name = {} if id_ is ... else {"id": id_}
    function = {"name": "f", "arguments": arguments}
    return {**name, "index": index, "type": "function", "function": function}


def delta(*calls: Given, choice: Any = 0) -> bytes:
    """One event with these calls."""
    found = {"tool_calls": [call(*each) for each in calls]}
    return event({"choices": [{"index": choice, "delta": found, "finish_reason": None}]})


def read(text: bytes) -> Iterator[dict[str, Any]]:
    for part in text.split(b"\n\n")[:-1]:
        yield json.loads(part.removeprefix(b"data: "))


def indices(text: bytes, choice: int = 0) -> list[Any]:
    """The index of each call of a choice, as a client sees them."""
    return [
        each.get("index")
        for document in read(text)
        for found in document["choices"]
        if found["index"] == choice
        for each in found["delta"]["tool_calls"]
    ]


def mended(*parts: bytes) -> bytes:
    tools = ToolCalls()
    return b"".join([tools.mend(each) for each in parts])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([(0, "a"), (0, "b"), (0, "c")], [0, 1, 2]),
        ([(3, "a"), (3, "b")], [3, 4]),
        ([(0, "a"), (1, "b"), (1, "c"), (0, "d")], [0, 1, 2, 3]),
        # What has no id belongs to the call that was last named under its index.
        ([(0, "a"), (0, ...), (0, "b"), (0, ...), (0, None), (0, "")], [0, 0, 1, 1, 1, 1]),
        ([(0, "a"), (0, "b"), (0, "b"), (0, "c"), (0, "c")], [0, 1, 1, 2, 2]),
        ([(0, "a"), (0, "b"), (0, "a"), (0, ...)], [0, 1, 0, 0]),
        # A call whose own index has been given away moves on as well.
        ([(0, "a"), (0, "b"), (1, "c"), (1, ...), (0, ...)], [0, 1, 2, 2, 1]),
        ([(0, "a"), (0, "b"), (1, ...), (1, "c"), (1, "d")], [0, 1, 2, 2, 3]),
        ([(0, "a"), (0, "b"), (2, "c"), (0, "d")], [0, 1, 2, 3]),
        # An id that comes late proves nothing; the next one does.
        ([(0, ...), (0, "a"), (0, "b")], [0, 0, 1]),
    ],
)
def test_a_call_under_a_used_index_moves_to_the_next_free_one(
    given: list[Given], expected: list[int]
) -> None:
    assert indices(mended(*(delta(each) for each in given))) == expected
    assert indices(mended(delta(*given))) == expected  # all in one event


RIGHT = [
    [(0, "a"), (1, "b"), (2, "c")],
    [(0, "a"), (0, "a"), (0, ...), (0, None), (0, "")],
    [(0, ...), (0, ...)],
    [(0, ""), (0, "a"), (0, "")],
    [(0, None), (0, None)],
    [(2, "a"), (0, "b"), (1, "c")],
    [(0, "a"), (1, "a")],
    [(0, "a"), (0, 7), (0, ["b"]), (0, {}), (0, True)],
    [(-1, "a"), (-1, "b")],
    [("0", "a"), ("0", "b")],
    [(None, "a"), (None, "b")],
    [(True, "a"), (True, "b"), (False, "c"), (False, "d")],
    [(0.0, "a"), (0.0, "b")],
    [([], "a"), ({}, "b")],
    [(MAX_INDEX + 1, "a"), (MAX_INDEX + 1, "b")],
    [(10**30, "a"), (10**30, "b")],
    [(10**6000, "a"), (10**6000, "b")],
    [(0, "a"), (0, "b" * (MAX_ID + 1))],
]


@pytest.mark.parametrize("given", RIGHT)
def test_what_is_not_provably_wrong_stays(given: list[Given]) -> None:
    apart = [spelled(each) for each in given]
    assert mended(*apart) == b"".join(apart)
    together = spelled(*given)
    assert mended(together) == together


def spelled(*given: Given) -> bytes:
    """Like ``delta``, for numbers that Python does not like to print."""
    huge = b"1" + b"0" * 6000
    short = [(-99, name) if index == 10**6000 else (index, name) for index, name in given]
    return delta(*short).replace(b"-99", huge)


def test_a_call_without_an_index_stays_beside_one_that_is_mended() -> None:
    first = delta((0, "a"))
    second = delta((0, "b"), (None, "x"), ("0", "y"), (-1, "z"), (0.5, "w")).replace(
        b'"index": null, ', b""
    )
    assert indices(mended(first, second)) == [0, 1, None, "0", -1, 0.5]


def test_choices_do_not_share_their_indices() -> None:
    apart = delta((0, "a")) + delta((0, "b"), choice=1)
    assert mended(*(part + b"\n\n" for part in apart.split(b"\n\n")[:-1])) == apart
    out = mended(*(delta((0, name), choice=choice) for name in "abc" for choice in (1, 0)))
    assert indices(out, 0) == indices(out, 1) == [0, 1, 2]


def test_choices_of_one_event_are_told_apart() -> None:
    def both(name: str) -> bytes:
        found = [{"index": n, "delta": {"tool_calls": [call(0, name)]}} for n in (0, 1)]
        return event({"choices": found})

    out = mended(both("a"), both("b"))
    assert indices(out, 0) == indices(out, 1) == [0, 1]


@pytest.mark.parametrize("choice", [None, "0", -1, 1.5, True, [], MAX_INDEX + 1])
def test_a_choice_without_an_index_proves_nothing(choice: Any) -> None:
    parts = [delta((0, name), choice=choice) for name in "ab"]
    assert mended(*parts) == b"".join(parts)


ODD = (
    b'data: {"x":1e-05,"x" : 2.50,"index":0,"s":"\\u2019\\/\\"index\\":0,{[",\t"choices": [ {'
    b'"delta":{"tool_calls":[ {"function":{"name":"f","arguments":"{\\"index\\":0}","index":0},'
    b'"index" : %b , "id":"%b","more":[{"index":0}]}],"x":{"tool_calls":[{"index":0}]}},'
    b'"logprobs":{"content":[{"index":0}]},"index":0}],'
    b'"caf\xc3\xa9":{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}}'
    b"\n\n"
)


def test_only_the_digits_change() -> None:
    assert mended(ODD % (b"0", b"a"), ODD % (b"0", b"b")) == ODD % (b"0", b"a") + ODD % (b"1", b"b")
    tools = ToolCalls()
    for number in range(12):
        name = b"%d" % number
        assert tools.mend(ODD % (b"0", name)) == ODD % (name, name)


@pytest.mark.parametrize(
    "frame",
    [
        b"event: x\r\nid: 7\r\ndata:%b\r\n\r\n",
        b": ping\ndata: %b\n\n",
        b"data: %b\r\r",
        b"\xef\xbb\xbfdata: %b\n\n",
    ],
)
def test_the_frame_of_an_event_does_not_matter(frame: bytes) -> None:
    def framed(name: bytes, index: bytes) -> bytes:
        found = b'{"choices":[{"index":0,"delta":{"tool_calls":[{"id":"%b","index":%b}]}}]}'
        return frame % (found % (name, index))

    expected = framed(b"a", b"0") + framed(b"b", b"1")
    assert mended(framed(b"a", b"0"), framed(b"b", b"0")) == expected


def test_an_event_of_several_lines_is_mended() -> None:
    lines = (
        b'data: {"choices":[{"index":0,\ndata: "delta":{"tool_calls":[\n'
        b'data: {"id":"%b","index":%b,\ndata: "function":{}}]}}]}\n\n'
    )
    out = mended(lines % (b"a", b"0"), lines % (b"b", b"0"))
    assert out == lines % (b"a", b"0") + lines % (b"b", b"1")


@pytest.mark.parametrize(
    "second",
    [
        b'{"choices":[{"index":0,"delta":{"tool_calls":[{"id":"b","index":0,"index":0}]}}]}',
        b'{"choices":[{"index":0,"delta":{"tool_calls":[{"id":"b","\\u0069ndex":0}]}}]}',
        b'{"choices":[{"index":0,"delta":{"tool_\\u0063alls":[{"id":"b","index":0}]}}]}',
        b'{"choices":[{"index":0,"delta":{"tool_calls":[{"id":"b","index":-0}]}}]}',
        b'{"choices":[{"index":0,"delta":{"tool_calls":[{"id":"b","index":0}],'
        b'"tool_calls":[{"id":"b","index":0}]}}]}',
        # One that counts and cannot be seen, one that can be seen and does not count.
        b'{"choices":[{"index":0,"delta":{"tool_calls":[{"id":"b","index":5,"\\u0069ndex":0}]}}]}',
        # The first of two lists does not count.
        b'{"choices":[{"index":0,"delta":{"tool_calls":[{"id":"x","index":0}],'
        b'"tool_calls":[{"id":"b","index":0,"index":-0}]}}]}',
    ],
)
def test_what_cannot_be_placed_for_certain_stays(second: bytes) -> None:
    second = b"data: " + second + b"\n\n"
    assert mended(delta((0, "a")), second) == delta((0, "a")) + second


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[DONE]",
        b"null",
        b"[]",
        b'{"choices":null}',
        b'{"choices":{}}',
        b'{"choices":[null,1,"x",[]]}',
        b'{"choices":[{"index":0,"delta":null}]}',
        b'{"choices":[{"index":0,"delta":[]}]}',
        b'{"choices":[{"index":0,"delta":{"tool_calls":null}}]}',
        b'{"choices":[{"index":0,"delta":{"tool_calls":{"index":0,"id":"b"}}}]}',
        b'{"choices":[{"index":0,"delta":{"tool_calls":[null,0,[{"index":0,"id":"b"}]]}}]}',
        b'{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"b"}]}}]',
        b'{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"\xff"}]}}]}',
        b'{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"b"}],"x":NaN}}]}',
        b'{"a":' * 5000 + b"0" + b"}" * 5000,
    ],
)
def test_what_is_no_chunk_of_calls_stays(document: bytes) -> None:
    odd = b"data: " + document + b"\n\n"
    assert mended(delta((0, "a")), odd) == delta((0, "a")) + odd


def test_nesting_is_no_surprise_however_deep() -> None:
    text = (
        b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"id":"%b","index":0}]}}],"x":%b}\n\n'
    )
    for depth in range(100, 2000, 50):
        nested = b'{"a":' * depth + b"0" + b"}" * depth
        out = mended(text % (b"a", nested), text % (b"b", nested))
        assert len(out) == 2 * len(text % (b"a", nested))


def test_thousands_of_calls_are_told_apart_up_to_a_limit() -> None:
    count = MAX_CALLS + 2
    out = mended(*(delta((0, f"c{n}")) for n in range(count)), delta((0, "c5")), delta((0, ...)))
    assert indices(out) == [*range(MAX_CALLS), 0, 0, 5, 5]
    assert indices(mended(delta(*((0, f"c{n}") for n in range(5000))))) == [*range(5000)]


def test_text_that_never_closes_its_quotes_costs_no_square() -> None:
    tail = b": " + b'\\"' * 500_000 + b"\n"
    first, second = (tail + b'data: "\n' + delta((0, name)) for name in "ab")
    assert mended(first, second) == first + second  # this is no JSON
    first, second = (delta((0, name))[:-1] + tail + b"\n" for name in "ab")
    assert mended(first, second) == first + delta((1, "b"))[:-1] + tail + b"\n"


# In the tap.

WRONG = b"".join(
    [
        chunk(
            {"role": "assistant", "content": "", "tool_calls": [call(0, "a", '{"a":"caf\u00e9"}')]}
        ),
        chunk({"content": "between"}),
        chunk({"tool_calls": [call(0, "b"), call(0, "c")]}),
        chunk({"tool_calls": [call(0, ...)]}, "tool_calls"),
        event({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}),
        b"data: [DONE]\n\n",
    ]
)


def with_indices(text: bytes, *wanted: int) -> bytes:
    parts = text.split(b'"index": 0, "type"')
    assert len(parts) == len(wanted) + 1
    joints = [b'"index": %d, "type"' % index for index in wanted] + [b""]
    return b"".join(part + joint for part, joint in zip(parts, joints, strict=True))


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_calls_are_told_apart_wherever_the_reads_end(end: bytes) -> None:
    text = WRONG.replace(b"\n", end)
    expected = with_indices(WRONG, 0, 1, 2, 2).replace(b"\n", end)
    seen = facts(watch(text)[0])
    for cut in range(len(text)):
        tap, out = watch(text[:cut], text[cut:], mend_tools=True)
        assert out == expected
        assert facts(tap) == seen
    assert watch(*(text[i : i + 1] for i in range(len(text))), mend_tools=True)[1] == expected


def test_a_read_of_whole_events_is_mended_as_well() -> None:
    assert watch(WRONG, mend_tools=True)[1] == with_indices(WRONG, 0, 1, 2, 2)


def test_mending_goes_with_withholding_and_an_alias() -> None:
    def alias(data: bytes) -> bytes:
        return data.replace(b'"up"', b'"fast"')

    _, out = watch(WRONG, mend_tools=True, hide_usage=True, rewrite=alias)
    expected = alias(with_indices(WRONG, 0, 1, 2, 2))
    usage = expected.index(b'data: {"choices": []')
    assert out == expected[:usage] + b"data: [DONE]\n\n"


def test_nobody_mends_unless_told_to_nor_what_is_packed() -> None:
    assert watch(WRONG)[1] == WRONG
    assert watch(WRONG, mend_tools=True, encoding="br")[1] == WRONG


def test_events_without_tool_calls_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool_calls, "_decode", None)
    for name in ("T1", "T14", "T17"):
        assert watch(stream(name), mend_tools=True)[1] == stream(name)
        assert watch(*events(name), mend_tools=True)[1] == stream(name)


def test_after_the_first_call_only_events_with_calls_are(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[bytes] = []
    monkeypatch.setattr(ToolCalls, "mend", lambda _, event: looked.append(event) or event)
    parts = [part + b"\n\n" for part in WRONG.split(b"\n\n")[:-1]]
    for reads in (parts, [WRONG]):
        looked.clear()
        assert watch(*reads, mend_tools=True)[1] == WRONG
        assert len(looked) == WRONG.count(b'"tool_calls":') == 3


def test_calls_beside_members_of_an_odd_type_count_too() -> None:
    parts = [
        chunk({"content": [{"text": "x"}], "tool_calls": [{"index": 0, "id": name}]})
        for name in "ab"
    ]
    out = watch(*parts, mend_tools=True)[1]
    assert out == parts[0] + parts[1].replace(b'[{"index": 0, "id"', b'[{"index": 1, "id"')


@pytest.mark.parametrize("name", ["T1", "T7", "T10", "T12", "T14", "T15", "T20"])
def test_what_providers_send_passes(name: str) -> None:
    assert watch(stream(name), mend_tools=True)[1] == stream(name)


# Whatever comes.

ODDITIES = st.sampled_from([0, 1, 2, 7, -1, "0", None, True, 0.5, 10**30, MAX_INDEX])
NAMES = st.sampled_from(["a", "b", "c", "", None, ..., 5])
CALLS = st.lists(st.tuples(ODDITIES | st.just(0), NAMES), max_size=3)
EVENTS = st.builds(
    lambda calls, choice: delta(*calls, choice=choice), CALLS, st.sampled_from([0, 0, 0, 1, None])
)


@settings(deadline=None)
@given(st.lists(EVENTS | st.binary(max_size=20), max_size=8), st.lists(st.integers(0, 2000)))
def test_any_split_of_the_bytes_gives_the_same(parts: list[bytes], cuts: list[int]) -> None:
    text = b"".join(parts)
    places = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    reads = [text[start:end] for start, end in pairwise(places)]
    assert watch(*reads, mend_tools=True)[1] == watch(text, mend_tools=True)[1]


@settings(deadline=None)
@given(st.lists(EVENTS, max_size=8))
def test_a_client_never_sees_two_ids_under_one_index(parts: list[bytes]) -> None:
    named: dict[tuple[int, int], str] = {}
    before = list(read(b"".join(parts)))
    after = list(read(mended(*parts)))
    assert len(before) == len(after)
    for document in after:
        [choice] = document["choices"]
        for each in choice["delta"]["tool_calls"]:
            place, name = each["index"], each.get("id")
            if type(place) is not int or not 0 <= place < 100 or choice["index"] is None:
                continue
            if isinstance(name, str) and name:
                assert named.setdefault((choice["index"], place), name) == name


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 9)), max_size=20))
def test_a_stream_in_which_nothing_is_wrong_stays(steps: list[tuple[int, bool, int]]) -> None:
    parts = [
        delta((index, f"{choice}-{index}" if named else ...), choice=choice % 2)
        for choice, named, index in steps
    ]
    names: dict[tuple[int, int], str] = {}
    right = []
    for (choice, named, index), each in zip(steps, parts, strict=True):
        name = names.setdefault((choice % 2, index), f"{choice}-{index}")
        if not named or name == f"{choice}-{index}":
            right.append(each)
    text = b"".join(right)
    assert watch(text, mend_tools=True)[1] == text
    assert watch(*right, mend_tools=True)[1] == text


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_no_bytes_are_a_surprise(data: bytes) -> None:
    odd = b'data: {"tool_calls":' + data + b"}\n\n"
    assert mended(odd) == odd
    tap = StreamTap(mend_tools=True)
    tap.feed(WRONG[:300] + data, 0)
    tap.feed(data + WRONG[300:], 1)
    tap.finish()
