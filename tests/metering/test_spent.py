from __future__ import annotations

import pytest

from proxy.metering import tokenizer
from proxy.metering.attempt import Asked, Attempt
from proxy.metering.spent import spent
from proxy.metering.tap import BodyTap, StreamTap
from proxy.metering.tokenizer import Sample
from proxy.providers.usage import count
from proxy.types import Target
from tests.upstream import event


def test_an_attempt_without_an_answer_spent_nothing_that_is_known() -> None:
    assert spent(Attempt(1, Target("lab", "m"), 1.0, leased=1.0), "error", Asked()) == (
        None,
        "none",
    )


def test_what_was_seen_is_estimated() -> None:
    attempt = Attempt(1, Target("lab", "m"), 1.0, leased=1.0)
    attempt.tap = BodyTap()
    attempt.tap.seen_tokens = 5
    usage, source = spent(attempt, "cancelled", Asked(prompt_length=8))
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (2, 5, 7)
    assert source == "estimated"


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the extra were installed, with a vocabulary of single characters."""
    monkeypatch.setattr(tokenizer, "INSTALLED", True)
    monkeypatch.setattr(tokenizer, "load", lambda: len)


def sample(text: str) -> Sample:
    made = Sample()
    made.add(text)
    return made


def test_with_a_vocabulary_what_was_seen_is_counted(counting: None) -> None:
    attempt = Attempt(1, Target("lab", "m"), 1.0, leased=1.0)
    attempt.tap = StreamTap()
    call = {"index": 0, "function": {"name": "f", "arguments": "{}"}}
    for delta in ({"content": "Hello"}, {"reasoning": "hm"}, {"tool_calls": [call]}):
        attempt.tap.feed(event(delta), 1.0)
    asked = Asked(prompt_length=3, message_count=1)
    usage, source = spent(attempt, "success", asked, sample("abc"))
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (3 + 7, 10, 20)
    assert source == "estimated"
    assert attempt.tap.details == {"estimate": "o200k_base"}


def test_a_prompt_without_text_is_not_counted(counting: None) -> None:
    attempt = Attempt(1, Target("lab", "m"), 1.0, leased=1.0)
    attempt.tap = StreamTap()
    attempt.tap.feed(event({"content": "Hello"}), 1.0)
    usage, _ = spent(attempt, "success", Asked(), None)
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (None, 5)


def body(document: bytes) -> Attempt:
    attempt = Attempt(1, Target("lab", "m"), 1.0, leased=1.0)
    attempt.tap = BodyTap()
    attempt.tap.feed(document, 1.0)
    attempt.tap.finish()
    return attempt


BODY = (
    b'{"choices":[{"message":{"content":"Hello you","reasoning":"hm","tool_calls":'
    b'[{"function":{"name":"look","arguments":"{}"}}]},"finish_reason":"stop"}]}'
)


def test_a_body_without_usage_is_estimated_too() -> None:
    usage, source = spent(body(BODY), "success", Asked(prompt_length=8))
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (2, 3 + 1 + 1 + 1)
    assert source == "estimated"


def test_a_body_without_usage_is_counted_too(counting: None) -> None:
    usage, _ = spent(body(BODY), "success", Asked())
    assert usage is not None
    assert usage.output_tokens == 9 + 2 + 4 + 2


def test_a_body_s_own_usage_is_believed_whoever_left() -> None:
    attempt = body(BODY[:-1] + b',"usage":{"prompt_tokens":5,"completion_tokens":1}}')
    attempt.normalise = count
    usage, source = spent(attempt, "cancelled", Asked())
    assert usage is not None
    assert (usage.output_tokens, source) == (1, "provider")


@pytest.mark.parametrize(
    ("told", "output", "said_by"),
    [
        (b'{"prompt_tokens":0,"completion_tokens":0}', 0, "provider"),
        (b'{"prompt_tokens":null,"completion_tokens":null}', 6, "estimated"),
        (b'{"prompt_tokens":-5,"total_tokens":"many"}', 6, "estimated"),
        (b"null", 6, "estimated"),
    ],
    ids=["zero", "null", "absurd", "absent"],
)
def test_zero_is_a_word_and_null_is_none(told: bytes, output: int, said_by: str) -> None:
    attempt = body(BODY[:-1] + b',"usage":' + told + b"}")
    attempt.normalise = count
    usage, source = spent(attempt, "success", Asked())
    assert usage is not None
    assert (usage.output_tokens, source) == (output, said_by)
