from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.metering.estimate import delta_tokens, prompt_tokens, tokens


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", 0), ("a", 1), ("four", 1), ("fives", 2), ("灯塔看守人", 5), ("café", 2), ("🎉🎉", 2)],
)
def test_four_ascii_characters_or_one_other_make_a_token(text: str, expected: int) -> None:
    assert tokens(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", 0), ("a", 1), (" English", 1), ("12345678", 1), ("灯塔", 1), ("beautiful", 3)],
)
def test_a_short_delta_is_one_token_and_a_long_one_is_measured(text: str, expected: int) -> None:
    assert delta_tokens(text) == expected


@given(st.text())
def test_a_text_never_has_more_tokens_than_characters(text: str) -> None:
    assert 0 <= tokens(text) <= len(text)
    assert bool(tokens(text)) == bool(text)
    assert bool(delta_tokens(text)) == bool(text)


@given(st.text(), st.text())
def test_a_longer_text_never_has_fewer_tokens(text: str, more: str) -> None:
    assert tokens(text) <= tokens(text + more)


@pytest.mark.parametrize(
    ("characters", "messages", "expected"),
    [(0, 1, 7), (400, 2, 111), (401, None, 101), (0, None, 0), (None, 2, None), (None, None, None)],
)
def test_a_prompt_is_its_length_and_its_framing(
    characters: int | None, messages: int | None, expected: int | None
) -> None:
    assert prompt_tokens(characters, messages) == expected
