from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.metering.answer import Answer, Choice, Message, decode


def read(document: Any) -> Answer:
    answer = decode(json.dumps(document).encode())
    assert answer is not None
    return answer


def delta(members: dict[str, Any], **beside: Any) -> Message:
    """The delta as it is read; an odd ``model`` beside it forces the lenient way."""
    choices = read({"choices": [{"delta": members}], **beside}).choices
    assert choices is not None
    assert choices[0].delta is not None
    return choices[0].delta


@pytest.mark.parametrize("document", [b"", b"[]", b"1", b"null", b'"x"', b"{", b"\xff", b"[DONE]"])
def test_what_is_no_object_is_nothing(document: bytes) -> None:
    assert decode(document) is None


@pytest.mark.parametrize("document", [b'{"a":' * 50_000, b"[" * 50_000, b'{"usage":' + b"[" * 9999])
def test_what_is_nested_without_end_is_nothing(document: bytes) -> None:
    assert decode(document) is None


def test_members_that_nobody_asked_for_are_passed_over() -> None:
    assert read({"id": 1, "object": [], "choices": [], "x": {"model": 5}}) == Answer(choices=[])


def test_null_is_unknown() -> None:
    members = ["choices", "usage", "error", "x_groq", "timings", "model", "provider", "data"]
    assert read(dict.fromkeys(members)) == Answer()
    assert read({"choices": [{"delta": {"audio": None, "tool_calls": None}}]}) == Answer(
        choices=[Choice(delta=Message())]
    )


@pytest.mark.parametrize("odd", [{}, {"model": 5}, {"object": "x", "provider": ["a"]}])
def test_a_member_of_an_odd_type_hides_no_other(odd: dict[str, Any]) -> None:
    answer = read(
        {
            **odd,
            "choices": [
                {
                    "delta": {"content": "a", "reasoning": "b", "refusal": "c"},
                    "message": {"thinking": "d", "reasoning_content": "e"},
                    "text": "f",
                    "finish_reason": "stop",
                    "error": {"code": 1},
                }
            ],
            "usage": {"prompt_tokens": 1},
            "error": "no",
            "x_groq": {"id": "r"},
            "timings": {"cache_n": 1},
            "system_fingerprint": "fp",
            "service_tier": "default",
        }
    )
    assert answer == Answer(
        choices=[
            Choice(
                delta=Message(content="a", reasoning="b", refusal="c"),
                message=Message(thinking="d", reasoning_content="e"),
                text="f",
                finish_reason="stop",
                error={"code": 1},
            )
        ],
        usage={"prompt_tokens": 1},
        error="no",
        x_groq={"id": "r"},
        timings={"cache_n": 1},
        system_fingerprint="fp",
        service_tier="default",
    )


@pytest.mark.parametrize("model", ["m", 5])
def test_output_that_is_no_text_is_seen(model: Any) -> None:
    found = delta({"audio": {"data": "AA"}, "reasoning_details": [{}, {}]}, model=model)
    assert found.audio is not None
    assert found.reasoning_details is not None
    assert len(found.reasoning_details) == 2
    assert not delta({"audio": None, "reasoning_details": []}, model=model).reasoning_details
    assert delta({"audio": None}, model=model).audio is None


@pytest.mark.parametrize("model", ["m", 5])
def test_vectors_are_seen_and_not_read(model: Any) -> None:
    data = read({"data": [{"embedding": [0.1, 0.2]}] * 3, "model": model}).data
    assert data is not None
    assert len(data) == 3


def test_content_in_parts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image"}, {"text": None}, {"text": "b"}, 7]
    assert delta({"content": parts}).content == "ab"
    assert delta({"content": [[], "x"]}).content == ""
    assert delta({"content": 7}).content is None


def test_arguments_that_are_an_object() -> None:
    calls = [
        {"function": {"name": "get", "arguments": {"city": "Oslo"}}},
        {"function": {"name": None, "arguments": ""}},
        {"function": "x"},
        {"id": "1"},
        None,
    ]
    found = delta({"tool_calls": calls}).tool_calls
    assert found is not None
    functions = [call.function for call in found if call.function is not None]
    assert [(f.name, f.arguments) for f in functions] == [("get", '{"city":"Oslo"}'), (None, "")]


def test_choices_that_are_no_list() -> None:
    assert read({"choices": {"delta": {}}, "model": "m"}) == Answer(model="m")
    assert read({"choices": [None, 1, {"text": "a"}]}).choices == [Choice(text="a")]
    assert read({"choices": [{"delta": []}]}).choices == [Choice()]


def test_what_is_not_quite_json() -> None:
    chunk = b'{"choices":[{"text":"a\\ud83d","logprobs":NaN,"finish_reason":"\xff"}],"model":"m"}'
    assert decode(chunk) == Answer(choices=[Choice(text="a?", finish_reason="�")], model="m")
    assert decode(b'\xef\xbb\xbf{"model":"m"}') == Answer(model="m")
    assert decode(b'{"usage":{"prompt_tokens":-Infinity,"completion_tokens":2}}') == Answer(
        usage={"prompt_tokens": None, "completion_tokens": 2}
    )
    assert decode(b'{"model":"m","usage":{"cost":1e999,"prompt_tokens":2.5}}') == Answer(
        model="m", usage={"cost": None, "prompt_tokens": 2.5}
    )


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NAMES = [*Answer.__struct_fields__, *Choice.__struct_fields__, *Message.__struct_fields__]


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.dictionaries(st.sampled_from(NAMES), inner, max_size=5) | st.lists(inner, max_size=2)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), ODD | nested(ODD | nested(ODD)), max_size=6))
def test_whatever_the_types_it_is_read_and_can_be_stored(document: dict[str, Any]) -> None:
    answer = decode(json.dumps(document).encode())
    assert answer is None or msgspec.json.encode(answer)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_are_a_surprise(document: bytes) -> None:
    for text in (document, b'{"model":' + document + b"}", b'{"model":"' + document + b'"}'):
        decode(text)
