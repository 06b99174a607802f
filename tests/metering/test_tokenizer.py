from __future__ import annotations

from collections.abc import Iterator

import pytest

from proxy.metering import tokenizer
from proxy.metering.tokenizer import KEPT, Sample
from tests.metering import vocabulary


@pytest.fixture
def by_four(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vocabulary in which every four characters are a token."""
    monkeypatch.setattr(tokenizer, "load", lambda: lambda text: -(-len(text) // 4))


def parts(text: str, size: int) -> Iterator[str]:
    return (text[at : at + size] for at in range(0, len(text), size))


@pytest.mark.parametrize("size", [1, 7, 1000, 100_000])
@pytest.mark.parametrize("length", [0, 1, 10, KEPT, KEPT + 1, 5 * KEPT])
def test_the_beginning_is_counted_and_the_rest_is_as_dense(
    length: int, size: int, by_four: None
) -> None:
    sample = Sample()
    for part in parts("x" * length, size):
        sample.add(part)
    assert sample.length == length
    assert sample.tokens() == -(-length // 4)


def test_no_more_is_kept_than_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[str] = []
    monkeypatch.setattr(tokenizer, "load", lambda: lambda text: counted.append(text) or 1)
    sample = Sample()
    for part in parts("x" * (3 * KEPT), 1000):
        sample.add(part)
    assert sample.tokens() == 3
    assert [len(text) for text in counted] == [KEPT]


def test_without_the_extra_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "INSTALLED", False)
    assert tokenizer.sample() is None
    monkeypatch.setattr(tokenizer, "INSTALLED", True)
    assert isinstance(tokenizer.sample(), Sample)


# As another implementation of the same vocabulary counts.
TEXTS = {
    "Hello, world!": 4,
    "Schön, daß es regnet.": 8,
    "日本語テキスト": 5,
    "def f(x):\n    return x * 2\n": 11,
    "<|endoftext|>": 7,
    "A" * 8000: 1000,
}


@vocabulary.needed
@pytest.mark.parametrize(("text", "tokens"), TEXTS.items(), ids=[text[:8] for text in TEXTS])
def test_the_installed_vocabulary_counts_as_openai_does(text: str, tokens: int) -> None:
    sample = Sample()
    sample.add(text)
    assert sample.tokens() == tokens


@vocabulary.needed
def test_half_a_character_is_counted_as_something() -> None:
    sample = Sample()
    sample.add("a\ud800b")
    assert sample.tokens() > 0
