from __future__ import annotations

from typing import Any

import pytest

from proxy.providers.ollama_request import chat, embed, generate
from proxy.providers.translation import Untranslatable

ASK = [{"role": "user", "content": "hi"}]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": CITY}}


def said(*messages: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = chat({"model": "m", "messages": [*messages]})["messages"]
    return found


def test_the_least_is_a_model_and_messages() -> None:
    assert chat({"model": "m", "messages": ASK}) == {"model": "m", "messages": ASK}
    assert generate({"model": "m", "prompt": "hi"}) == {"model": "m", "prompt": "hi"}
    assert embed({"model": "m", "input": ["a", "b"]}) == {"model": "m", "input": ["a", "b"]}


def test_sampling_goes_into_the_options() -> None:
    asked = {
        "temperature": 0,
        "top_p": 0.9,
        "top_k": 40,
        "seed": 7,
        "frequency_penalty": 0.1,
        "presence_penalty": 0.2,
    }
    for ask, question in ((chat, {"messages": ASK}), (generate, {"prompt": "hi"})):
        assert ask({"model": "m", **question, **asked})["options"] == asked


@pytest.mark.parametrize(
    ("asked", "options"),
    [
        ({"max_tokens": 5}, {"num_predict": 5}),
        ({"max_completion_tokens": 6}, {"num_predict": 6}),
        ({"max_tokens": 5, "max_completion_tokens": 6}, {"num_predict": 6}),
        ({"stop": "x"}, {"stop": ["x"]}),
        ({"stop": ["x", "y"]}, {"stop": ["x", "y"]}),
        ({"options": {"num_ctx": 8192}}, {"num_ctx": 8192}),
        ({"temperature": 1, "options": {"temperature": 0.5}}, {"temperature": 0.5}),
    ],
)
def test_limits_stops_and_what_only_ollama_knows(
    asked: dict[str, Any], options: dict[str, Any]
) -> None:
    assert chat({"model": "m", "messages": ASK, **asked})["options"] == options


@pytest.mark.parametrize(
    "asked",
    [
        {"temperature": None, "stop": None, "max_tokens": None, "options": None},
        {"n": 2, "user": "u", "logit_bias": {}, "store": True, "stream_options": {}},
        {"response_format": {"type": "text"}},
        {"tools": [], "tool_choice": "auto"},
        {"tools": [TOOL], "tool_choice": "none"},
        {"logprobs": False, "top_logprobs": 5},
        {"reasoning_effort": None},
    ],
)
def test_what_says_nothing_and_what_ollama_has_no_word_for_is_left_out(
    asked: dict[str, Any],
) -> None:
    assert chat({"model": "m", "messages": ASK, **asked}) == {"model": "m", "messages": ASK}


@pytest.mark.parametrize(
    ("asked", "member", "value"),
    [
        ({"keep_alive": "5m"}, "keep_alive", "5m"),
        ({"keep_alive": 0}, "keep_alive", 0),
        ({"think": True}, "think", True),
        ({"think": False, "reasoning_effort": "high"}, "think", False),
        ({"reasoning_effort": "high"}, "think", "high"),
        ({"reasoning_effort": "minimal"}, "think", "low"),
        ({"reasoning_effort": "none"}, "think", False),
        ({"reasoning": {"effort": "low"}}, "think", "low"),
        ({"tools": [TOOL]}, "tools", [TOOL]),
        ({"response_format": {"type": "json_object"}}, "format", "json"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": CITY}}},
            "format",
            CITY,
        ),
        ({"response_format": {"type": "json_schema"}}, "format", "json"),
        ({"logprobs": True, "top_logprobs": 2}, "top_logprobs", 2),
    ],
)
def test_what_is_asked_of_the_model_beside_its_options(
    asked: dict[str, Any], member: str, value: Any
) -> None:
    assert chat({"model": "m", "messages": ASK, **asked})[member] == value


def test_parts_become_one_text_and_images() -> None:
    url = "data:image/png;base64,aGk="
    parts = [
        {"type": "text", "text": "What is"},
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "this?"},
        {"type": "image_url", "image_url": url},
    ]
    assert said({"role": "user", "content": parts}) == [
        {"role": "user", "content": "What is\nthis?", "images": ["aGk=", "aGk="]}
    ]


def test_calls_and_their_results_find_each_other() -> None:
    function = {"name": "weather", "arguments": '{"city":"Oslo"}'}
    call = {"id": "c1", "type": "function", "function": function}
    asked, answered = said(
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "cold"},
    )
    arguments = {"name": "weather", "arguments": {"city": "Oslo"}}
    assert asked["content"] == ""
    assert asked["tool_calls"] == [{"id": "c1", "function": arguments}]
    assert answered == {
        "role": "tool",
        "content": "cold",
        "tool_call_id": "c1",
        "tool_name": "weather",
    }


@pytest.mark.parametrize("arguments", ["", "{}", {}])
def test_a_call_without_arguments_has_an_empty_object(arguments: Any) -> None:
    call = {"function": {"name": "time", "arguments": arguments}}
    [message] = said({"role": "assistant", "tool_calls": [call]})
    assert message["tool_calls"] == [{"function": {"name": "time", "arguments": {}}}]


def test_roles_and_thoughts_have_their_names() -> None:
    developer, assistant = said(
        {"role": "developer", "content": "be brief"},
        {"role": "assistant", "content": "a", "reasoning_content": "hm"},
    )
    assert developer["role"] == "system"
    assert assistant["thinking"] == "hm"


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (None, "'messages'"),
        ("hi", "'messages'"),
        (["hi"], "'messages'"),
        ([{"role": "user", "content": 5}], "'content'"),
        ([{"role": [], "content": [{"type": "input_audio"}]}], "no other part"),
        (
            [{"content": [{"type": "image_url", "image_url": {"url": "https://x/a.png"}}]}],
            "data: URLs",
        ),
        ([{"content": [{"type": "image_url", "image_url": None}]}], "data: URLs"),
        ([{"tool_calls": [{"function": {"arguments": "[1]"}}]}], "'arguments'"),
        ([{"tool_calls": [{"function": {"arguments": "{"}}]}], "'arguments'"),
        ([{"tool_calls": [{"function": None}]}], "'arguments'"),
    ],
)
def test_what_cannot_be_put_into_its_words_is_said(messages: Any, words: str) -> None:
    with pytest.raises(Untranslatable, match=words):
        chat({"model": "m", "messages": messages})


def test_one_prompt_is_taken() -> None:
    assert generate({"model": "m", "prompt": ["a"], "suffix": "b"}) == {
        "model": "m",
        "prompt": "a",
        "suffix": "b",
    }
    for prompt in (None, ["a", "b"], [1, 2], [[1]]):
        with pytest.raises(Untranslatable, match="'prompt'"):
            generate({"model": "m", "prompt": prompt})
