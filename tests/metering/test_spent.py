from __future__ import annotations

from proxy.metering.attempt import Asked, Attempt
from proxy.metering.spent import spent
from proxy.metering.tap import BodyTap
from proxy.types import Target


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
