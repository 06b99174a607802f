from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import GatewayError
from proxy.metering.attempt import Asked
from proxy.relay.inbound import (
    MOST_ANSWERS,
    MOST_OUTPUT,
    ClientGone,
    Inbound,
    parse,
    read_body,
)
from proxy.types import Operation

CHAT = Operation.CHAT


class Wire:
    """A client that sends these parts, and then waits, or goes."""

    def __init__(self, *parts: bytes, ends: bool = True, leaves: bool = False) -> None:
        self.messages: list[dict[str, Any]] = [
            {"type": "http.request", "body": part, "more_body": True} for part in parts
        ]
        if leaves:
            self.messages.append({"type": "http.disconnect"})
        elif ends and self.messages:
            del self.messages[-1]["more_body"]

    async def receive(self) -> dict[str, Any]:
        if not self.messages:
            await asyncio.sleep(3600)
        return self.messages.pop(0)


def inbound(body: bytes | dict[str, Any], operation: Operation = CHAT) -> Inbound:
    return parse(body if isinstance(body, bytes) else json.dumps(body).encode(), operation)


def chat(**members: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "hi"}], **members}


# Reading the body.


@pytest.mark.parametrize(
    "parts", [(b"",), (b"abc",), (b"a", b"", b"bc"), (b"abc", b""), (b"x",) * 1000]
)
async def test_a_body_is_its_parts_in_order(parts: tuple[bytes, ...]) -> None:
    body = await read_body(Wire(*parts).receive, None, 1000, 5)
    assert body == b"".join(parts)


@pytest.mark.parametrize(
    ("parts", "length", "large"),
    [
        ((b"x" * 10,), 10, False),
        ((b"x" * 11,), None, True),
        ((b"x" * 6, b"x" * 5), None, True),
        ((b"x" * 6, b"x" * 4), None, False),
        ((), 11, True),  # refused before anything is read
    ],
)
async def test_a_body_over_the_limit_is_413(
    parts: tuple[bytes, ...], length: int | None, large: bool
) -> None:
    wire = Wire(*parts)
    if not large:
        assert len(await read_body(wire.receive, length, 10, 5)) == 10
        return
    with pytest.raises(GatewayError) as caught:
        await read_body(wire.receive, length, 10, 5)
    assert (caught.value.status, caught.value.code) == (413, "request_too_large")


async def test_the_limit_holds_before_the_body_has_ended() -> None:
    wire = Wire(*[b"x" * 10] * 1000, ends=False)
    with pytest.raises(GatewayError):
        await read_body(wire.receive, None, 100, 5)
    assert len(wire.messages) == 1000 - 11


@pytest.mark.parametrize("parts", [(), (b"{",)])
async def test_a_body_that_never_arrives_is_408(parts: tuple[bytes, ...]) -> None:
    with pytest.raises(GatewayError) as caught:
        await read_body(Wire(*parts, ends=False).receive, None, 10, 0.01)
    assert (caught.value.status, caught.value.code) == (408, "request_timeout")


@pytest.mark.parametrize("parts", [(), (b"{",)])
async def test_a_client_that_leaves_before_its_body_is_gone(parts: tuple[bytes, ...]) -> None:
    with pytest.raises(ClientGone):
        await read_body(Wire(*parts, leaves=True).receive, None, 10, 5)


# What is refused.


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"{", None),
        (b"[1]", None),
        (b'"text"', None),
        (b"null", None),
        (b'{"model": "m"} trailing', None),
        (b'{"model": "m", "messages": [{"content": "\xff"}]}', None),
        (b"\xef\xbb\xbf{}", None),
        (b'{"model":"m","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}", None),
        (b"{}", "model"),
        (b'{"model": null}', "model"),
        (b'{"model": ""}', "model"),
        (b'{"model": "  "}', "model"),
        (b'{"model": 7}', "model"),
        (b'{"model": ["m"]}', "model"),
        (b'{"model": 7, "messages": "odd"}', "model"),
    ],
)
@pytest.mark.parametrize("operation", Operation)
def test_what_cannot_be_served_is_400(body: bytes, param: str | None, operation: Operation) -> None:
    with pytest.raises(GatewayError) as caught:
        parse(body, operation)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert caught.value.type == "invalid_request_error"


@settings(deadline=None)
@given(st.binary())
def test_no_body_brings_the_parser_down(body: bytes) -> None:
    with suppress(GatewayError):
        parse(body, CHAT)


FINITE = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | FINITE | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
READ = [*Asked.__struct_fields__, "messages", "stop", "tools", "stream_options", "input", "prompt"]


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(READ), JSON), st.sampled_from(Operation))
def test_members_of_any_type_are_the_upstreams_to_judge(
    members: dict[str, Any], operation: Operation
) -> None:
    found = inbound({**members, "model": "m"}, operation)
    assert found.model == "m"
    for name in Asked.__struct_fields__:
        assert isinstance(getattr(found.asked, name), int | float | str | None)


# What a row keeps of it.


def test_the_parameters_are_read() -> None:
    asked = inbound(
        chat(
            stream=True,
            temperature=0.5,
            top_p=1,
            frequency_penalty=-0.5,
            presence_penalty=0.25,
            top_k=40,
            max_tokens=100,
            stop=["a", "b"],
            tools=[{"type": "function"}] * 3,
            n=2,
            seed=-7,
            reasoning_effort="low",
        )
    ).asked
    assert asked == Asked("m", True, 1, 2, 0.5, 1.0, -0.5, 0.25, 40, 100, 2, 3, 2, -7, "low")


@pytest.mark.parametrize(
    ("members", "name", "value"),
    [
        ({}, "temperature", None),
        ({"temperature": "hot"}, "temperature", None),
        ({"temperature": True}, "temperature", None),
        ({"temperature": 0}, "temperature", 0.0),
        ({"max_tokens": 5, "max_completion_tokens": 9}, "max_tokens", 9),
        ({"max_tokens": 1.5}, "max_tokens", None),
        ({"max_tokens": 1e6}, "max_tokens", 1_000_000),
        ({"max_tokens": " 100 "}, "max_tokens", 100),
        ({"max_tokens": "many"}, "max_tokens", None),
        ({"max_tokens": -1}, "max_tokens", None),
        ({"max_tokens": True}, "max_tokens", None),
        ({"max_tokens": 10**30}, "max_tokens", MOST_OUTPUT),
        ({"n": -1}, "n", None),
        ({"n": 0}, "n", None),
        ({"n": 10**30}, "n", MOST_ANSWERS),
        ({"seed": 2**63}, "seed", None),
        ({"seed": 2**63 - 1}, "seed", 2**63 - 1),
        ({"stop": "x"}, "stop_count", 1),
        ({"stop": []}, "stop_count", 0),
        ({"stop": None}, "stop_count", None),
        ({"tools": "x"}, "tool_count", None),
        ({"stream": 1}, "stream", False),
        ({"stream": "true"}, "stream", False),
        ({"reasoning": {"effort": "high"}}, "reasoning_effort", "high"),
        ({"reasoning": {"effort": "high"}, "reasoning_effort": "low"}, "reasoning_effort", "low"),
        ({"reasoning_effort": "as you like"}, "reasoning_effort", None),
        ({"model": "x" * 999}, "model", "x" * 256),
    ],
)
def test_odd_parameters_are_unknown(members: dict[str, Any], name: str, value: object) -> None:
    found = getattr(inbound(chat(**members)).asked, name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("messages", "count", "length"),
    [
        ([], 0, 0),
        ([{"content": "h\u00e9!"}, {"content": None}, {}], 3, 3),
        ([{"content": [{"type": "text", "text": "abc"}, {"type": "image_url"}]}], 1, 3),
        ("odd", None, None),
        ([{"content": 7}], 1, None),
        (None, None, None),
    ],
)
def test_the_length_of_a_chat_is_its_text(
    messages: Any, count: int | None, length: int | None
) -> None:
    asked = inbound(chat(messages=messages)).asked
    assert (asked.message_count, asked.prompt_length) == (count, length)


@pytest.mark.parametrize(
    ("operation", "members", "length"),
    [
        (Operation.COMPLETION, {"prompt": "abc"}, 3),
        (Operation.COMPLETION, {"prompt": ["ab", "c"]}, 3),
        (Operation.COMPLETION, {"prompt": [1, 2, 3]}, None),
        (Operation.COMPLETION, {}, None),
        (Operation.EMBEDDINGS, {"input": ["ab", "cd"]}, 4),
        (Operation.EMBEDDINGS, {"input": []}, None),
        (Operation.EMBEDDINGS, {"prompt": "abc"}, None),
    ],
)
def test_the_length_of_other_inputs(
    operation: Operation, members: dict[str, Any], length: int | None
) -> None:
    asked = inbound({"model": "m", **members}, operation).asked
    assert (asked.message_count, asked.prompt_length) == (None, length)


# What is changed in it.


def members(body: bytes) -> dict[str, Any]:
    return json.loads(body)


@pytest.mark.parametrize("ask", [False, True])
@pytest.mark.parametrize(
    "body",
    [
        b'{ "model" : "m", "messages":[ ] }',
        b'{"model":"m","stream":true,"stream_options":{"include_usage": true}}',
    ],
)
def test_a_body_that_needs_no_edit_is_sent_as_it_came(body: bytes, ask: bool) -> None:
    assert inbound(body).edited("m", ask) == body


def test_only_the_model_changes_and_everything_keeps_its_place_and_bytes() -> None:
    body = (
        b'{"z": 1.10, "messages": [ {"content" : "\\u00e9 \xc3\xa9", "odd":1e5} ],'
        b' "model":"fast", "x_unknown": {"a":[1,  null]}, "big":123456789012345678901234567890}'
    )
    edited = inbound(body).edited("vendor/real", True)
    assert list(members(edited)) == ["z", "messages", "model", "x_unknown", "big"]
    assert members(edited) == {**members(body), "model": "vendor/real"}
    for kept in (
        b'[ {"content" : "\\u00e9 \xc3\xa9", "odd":1e5} ]',
        b"1.10",
        b'{"a":[1,  null]}',
        b"123456789012345678901234567890",
    ):
        assert kept in edited


@pytest.mark.parametrize(
    ("options", "after"),
    [
        (..., {"include_usage": True}),
        (None, {"include_usage": True}),
        ({}, {"include_usage": True}),
        ({"include_usage": False}, {"include_usage": True}),
        (
            {"include_usage": None, "include_obfuscation": False},
            {"include_usage": True, "include_obfuscation": False},
        ),
        ("odd", "odd"),  # the upstream's to refuse
    ],
)
def test_usage_is_asked_for_where_it_has_to_be(options: Any, after: Any) -> None:
    more = {} if options is ... else {"stream_options": options}
    found = inbound(chat(stream=True, **more))
    assert not found.wants_usage
    edited = members(found.edited("m", True))
    assert edited == {**chat(stream=True), "stream_options": after}
    assert members(found.edited("m", False)) == chat(stream=True, **more)


@pytest.mark.parametrize("more", [{}, {"stream": False}, {"stream_options": {"include_usage": 1}}])
def test_nothing_is_asked_for_without_a_stream(more: dict[str, Any]) -> None:
    assert members(inbound(chat(**more)).edited("m", True)) == chat(**more)


@pytest.mark.parametrize(
    ("options", "wants"),
    [({"include_usage": True}, True), ({"include_usage": 1}, False), ([], False), (None, False)],
)
def test_a_client_wants_usage_if_it_says_so(options: Any, wants: bool) -> None:
    assert inbound(chat(stream=True, stream_options=options)).wants_usage is wants


@settings(deadline=None)
@given(st.dictionaries(st.text(), JSON), st.text(min_size=1), st.booleans())
def test_an_edit_loses_nothing(extra: dict[str, Any], model: str, ask: bool) -> None:
    before = {**extra, "model": "m", "stream": True}
    after = members(inbound(before).edited(model, ask))
    options = {
        name: each.pop("stream_options", None) for name, each in (("b", before), ("a", after))
    }
    assert after == {**before, "model": model}
    if not ask:
        assert options["a"] == options["b"]


def test_a_large_body_is_read_and_edited_whole() -> None:
    text = "x" * (16 * 1024 * 1024)
    found = inbound(chat(messages=[{"content": text}] * 2))
    assert found.asked.prompt_length == 2 * len(text)
    edited = found.edited("other", True)
    assert len(edited) - len(found.body) < 100
    assert members(edited)["messages"][1]["content"] == text


def test_the_first_user_that_is_a_text_is_the_user() -> None:
    assert inbound(chat(user=5, safety_identifier="si")).user == "si"
    assert inbound(chat(user="ann", safety_identifier="si")).user == "ann"
    assert inbound(chat(user="", safety_identifier=[])).user is None


def test_an_endless_number_of_answers_is_refused() -> None:
    with pytest.raises(GatewayError, match="not valid JSON"):
        parse(b'{"model":"m","prompt":"x","best_of":1e999}', Operation.COMPLETION)
