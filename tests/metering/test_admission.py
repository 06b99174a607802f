from __future__ import annotations

import msgspec

from proxy.metering.admission import Admission, Unfinished, admission, following
from proxy.metering.attempt import Asked, Attempt, Attribution
from proxy.types import CallRecord, Target
from tests.store.rows import call, failed

WHO = Attribution("theirs", "agent", "tool", "session", "trace", user_id="ann", tags=("a", "b"))
ASKED = Asked(model="fast", stream=True, message_count=2, prompt_length=9, max_tokens=7, seed=1)


def admitted(number: int = 1) -> CallRecord:
    attempt = Attempt(number, Target("lab", "m"), 0, leased=0)
    attempt.key_id, attempt.account = "k1", "org"
    return admission(
        "ID",
        attempt,
        ASKED,
        WHO,
        endpoint="/v1/chat/completions",
        client_id="master",
        privacy_level="metadata",
    )


def test_an_admission_is_the_row_of_a_call_that_nothing_more_is_heard_of() -> None:
    row = admitted()
    assert (row.status, row.error_reason, row.is_final) == ("error", "interrupted", True)
    assert (row.request_id, row.attempt, row.key_id, row.account) == ("ID", 1, "k1", "org")
    assert (row.provider, row.model, row.requested_model) == ("lab", "m", "fast")
    assert (row.client_id, row.client_request_id, row.agent_name) == ("master", "theirs", "agent")
    assert (row.user_id, row.tags) == ("ann", '["a","b"]')
    assert (row.is_stream, row.message_count, row.max_tokens, row.seed) == (True, 2, 7, 1)
    assert (row.usage_source, row.cost_source) == ("none", "none")
    assert row.client_status is None
    assert row.output_tokens is None
    assert row.finished_at == row.timestamp


def test_a_request_is_unfinished_until_its_final_row() -> None:
    first, second = admitted(), admitted(2)
    unfinished = Unfinished()
    unfinished.hear(Admission(first))
    assert unfinished.rows() == [first]
    unfinished.hear(failed(request_id="ID", is_final=False))
    unfinished.hear(Admission(second))
    assert unfinished.rows() == [second]
    unfinished.hear(call(request_id="another"))
    copy = unfinished.copy()
    unfinished.hear(call(request_id="ID", attempt=2))
    assert unfinished.rows() == []
    assert copy.rows() == [second]
    assert len(copy) == 1


def test_an_attempt_that_failed_says_nothing_of_the_next_one_that_is_under_way() -> None:
    second = admitted(2)
    unfinished = Unfinished()
    unfinished.hear(Admission(second))
    unfinished.hear(failed(request_id="ID", is_final=False))
    assert unfinished.rows() == [second]


def test_where_another_attempt_was_to_follow_that_is_the_final_row() -> None:
    lost = failed(request_id="ID", attempt=3, is_final=False, agent_name="agent", tags='["a"]')
    unfinished = Unfinished()
    unfinished.hear(lost)
    (row,) = unfinished.rows()
    assert row == following(lost)
    assert (row.request_id, row.attempt, row.is_final) == ("ID", 4, True)
    assert (row.status, row.error_reason, row.timestamp) == (
        "error",
        "interrupted",
        lost.finished_at,
    )
    assert (row.agent_name, row.key_id, row.http_status) == ("agent", None, None)


def test_other_entries_are_no_calls() -> None:
    unfinished = Unfinished()
    for item in (msgspec.UNSET, [], "x"):
        unfinished.hear(item)
    assert unfinished.rows() == []
