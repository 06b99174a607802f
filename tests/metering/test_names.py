from __future__ import annotations

import pytest

from proxy.errors import ErrorReason
from proxy.metering.names import identifier, numbers, outline, title, word
from proxy.types import Fault


def test_a_name_is_kept_as_it_is_or_not_at_all() -> None:
    assert [word(text) for text in ("content_filter", "tool-calls.2:x")] == [
        "content_filter",
        "tool-calls.2:x",
    ]
    ids = ("req_01J", "@cf/meta/llama-3.2:free", "a+b/c=")
    assert tuple(map(identifier, ids)) == ids
    titles = ("Groq", "Google AI Studio")
    assert tuple(map(title, titles)) == titles


@pytest.mark.parametrize("text", [None, "", "two words", "tab\tbed", "naïve", "end\n", "x" * 33])
def test_any_other_text_is_no_word(text: str | None) -> None:
    assert word(text) is None


def test_a_sentence_is_neither_an_id_nor_a_title() -> None:
    assert identifier("what it said") is identifier("x" * 129) is None
    assert title("what it said then") is title("x" * 30 + " xy") is title(" x") is None


def test_of_measures_the_numbers_are_kept() -> None:
    told = {"ms": 1.5, "byok": True, "said": "gold", "of what": 1, "none": None, "in": {"n": 2}}
    assert numbers(told) == {"ms": 1.5, "byok": True, "in": {"n": 2}}
    assert numbers({"in": {"said": "gold", "deeper": {"n": 1}}, "of what": {"n": 1}}) == {}


def test_a_fault_is_outlined_by_its_names() -> None:
    fault = Fault(
        ErrorReason.INVALID_REQUEST,
        "where is the gold",
        status=400,
        type="invalid request: gold",
        code="unsupported_value",
        param="messages[0].content",
    )
    known = "status 400, code unsupported_value, param messages[0].content"
    assert outline(fault) == f"the provider's error: {known}"
    assert outline(Fault(ErrorReason.STREAM_ERROR, "gold")) == "the provider's error"
