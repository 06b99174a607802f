from __future__ import annotations

import pytest

from proxy.errors import ErrorReason as R
from proxy.relay.verdict import (
    LONGEST_WITHOUT_CAPACITY,
    client_answer,
    is_over_allowance,
    judge,
)
from proxy.types import Action, Fault, Target, Verdict

KEY, TARGET, STOP = Action.NEXT_KEY, Action.NEXT_TARGET, Action.STOP

TARGET_FAILS = Verdict(TARGET, failure=True)

VERDICTS = {
    R.RATE_LIMIT: Verdict(KEY, "group", None, 7.0, 3.0),
    R.QUOTA_EXCEEDED: Verdict(KEY, "group", None, 7.0, 3.0),
    R.CREDIT: Verdict(KEY, "group", None, 7.0, 3.0),
    R.AUTHENTICATION: Verdict(KEY, "key", ""),
    R.FORBIDDEN: Verdict(STOP),
    R.NOT_FOUND: Verdict(TARGET),
    R.INVALID_REQUEST: Verdict(STOP),
    R.CONTEXT_LENGTH: Verdict(STOP),
    R.CONTENT_FILTER: Verdict(STOP),
    R.TOO_LARGE: Verdict(STOP),
    R.SERVER_ERROR: Verdict(KEY, failure=True),
    R.OVERLOADED: Verdict(KEY, "target", cooldown=7.0, failure=True),
    R.CONNECT: TARGET_FAILS,
    R.TIMEOUT: TARGET_FAILS,
    R.STREAM_ERROR: TARGET_FAILS,
    R.TRUNCATED: TARGET_FAILS,
    R.EMPTY_RESPONSE: TARGET_FAILS,
    R.BAD_RESPONSE: TARGET_FAILS,
    R.CLIENT_CLOSED: Verdict(STOP),
    R.NO_KEYS: Verdict(TARGET),
    R.INTERRUPTED: Verdict(STOP),
    R.INTERNAL: Verdict(STOP),
}


@pytest.mark.parametrize("reason", list(R))
def test_every_reason_has_one_verdict(reason: R) -> None:
    assert judge(Fault(reason, "x", retry_after=7.0, probe_after=3.0)) == VERDICTS[reason]


@pytest.mark.parametrize("covers", [None, "", "*:free"])
def test_a_limit_covers_what_the_provider_says(covers: str | None) -> None:
    fault = Fault(R.QUOTA_EXCEEDED, "x", covers=covers)
    assert judge(fault) == Verdict(KEY, "group", covers)


def test_a_limit_of_one_key_lets_its_group_work() -> None:
    fault = Fault(R.CREDIT, "x", retry_after=7.0, covers="", of_key=True)
    assert judge(fault) == Verdict(KEY, "key", "", 7.0)


def test_a_target_without_capacity_rests_for_a_minute_at_most() -> None:
    assert judge(Fault(R.OVERLOADED, "x", retry_after=3600.0)).cooldown == LONGEST_WITHOUT_CAPACITY
    assert LONGEST_WITHOUT_CAPACITY == 60.0


@pytest.mark.parametrize("said", [None, 0.0])
def test_a_target_without_capacity_rests_only_on_a_hint(said: float | None) -> None:
    assert judge(Fault(R.OVERLOADED, "x", retry_after=said)) == Verdict(KEY, failure=True)


def test_too_large_for_a_minute_goes_to_another_target() -> None:
    fault = Fault(R.TOO_LARGE, "x", 413, code="rate_limit_exceeded")
    assert is_over_allowance(fault)
    assert judge(fault) == Verdict(TARGET)


@pytest.mark.parametrize(
    ("reason", "status", "expected"),
    [
        (R.INVALID_REQUEST, 400, 400),
        (R.INVALID_REQUEST, 422, 422),
        (R.INVALID_REQUEST, None, 400),
        (R.INVALID_REQUEST, 500, 400),
        (R.FORBIDDEN, 403, 403),
        (R.FORBIDDEN, 400, 400),
        (R.NOT_FOUND, 404, 404),
        (R.NOT_FOUND, 501, 404),
        (R.TOO_LARGE, 413, 413),
        (R.TOO_LARGE, 429, 413),
        (R.CONTEXT_LENGTH, 500, 400),
        (R.CONTENT_FILTER, None, 400),
    ],
)
def test_what_is_the_clients_own_keeps_status_and_message(
    reason: R, status: int | None, expected: int
) -> None:
    fault = Fault(reason, "said so", status, type="t", code="c", param="p")
    answer = client_answer(fault, Target("lab", "m"))
    assert (answer.status, answer.message) == (expected, "said so")
    assert (answer.type, answer.param, answer.reason) == ("t", "p", reason)
    assert answer.should_retry is False


@pytest.mark.parametrize(
    ("reason", "status", "code"),
    [
        (R.AUTHENTICATION, 502, "upstream_authentication"),
        (R.CREDIT, 502, "upstream_credit"),
        (R.RATE_LIMIT, 429, "rate_limit_exceeded"),
        (R.QUOTA_EXCEEDED, 429, "quota_exceeded"),
        (R.OVERLOADED, 503, "upstream_overloaded"),
        (R.SERVER_ERROR, 502, "upstream_server_error"),
        (R.CONNECT, 502, "upstream_connect"),
        (R.TIMEOUT, 504, "upstream_timeout"),
        (R.STREAM_ERROR, 502, "upstream_stream_error"),
        (R.TRUNCATED, 502, "upstream_truncated"),
        (R.EMPTY_RESPONSE, 502, "upstream_empty_response"),
        (R.BAD_RESPONSE, 502, "upstream_bad_response"),
        (R.NO_KEYS, 503, "no_keys"),
        (R.INTERRUPTED, 503, "interrupted"),
        (R.INTERNAL, 500, "internal_error"),
        (R.CLIENT_CLOSED, 499, "client_closed"),
    ],
)
def test_what_is_not_the_clients_names_the_last_cause(reason: R, status: int, code: str) -> None:
    answer = client_answer(Fault(reason, "out of order", 401), Target("lab", "m"))
    assert (answer.status, answer.code) == (status, code)
    assert "lab/m" in answer.message
    assert answer.type not in ("authentication_error", "permission_error")


def test_the_last_cause_is_told_with_its_status() -> None:
    answer = client_answer(Fault(R.SERVER_ERROR, "boom", 500), Target("lab", "m"))
    assert answer.message == "lab/m: server_error (HTTP 500): boom"
    assert client_answer(Fault(R.CONNECT, "refused")).message == "the upstream: connect: refused"


def test_what_a_provider_says_of_a_key_is_not_passed_on() -> None:
    answer = client_answer(Fault(R.AUTHENTICATION, "Incorrect API key: sk-1", 401))
    assert "sk-1" not in answer.message


def test_the_wait_is_told_in_whole_seconds_rounded_up() -> None:
    assert client_answer(Fault(R.RATE_LIMIT, "x", 429, retry_after=7.2)).retry_after == 8
    assert client_answer(Fault(R.RATE_LIMIT, "x", 429), retry_after=1.0).retry_after == 1
    assert client_answer(Fault(R.OVERLOADED, "x", 503, retry_after=3)).retry_after == 3
    assert client_answer(Fault(R.SERVER_ERROR, "x", 500, retry_after=3)).retry_after is None


def test_a_client_may_try_again_only_when_told_when() -> None:
    assert client_answer(Fault(R.RATE_LIMIT, "x", 429), retry_after=1.0).should_retry is None
    assert client_answer(Fault(R.SERVER_ERROR, "x", 500)).should_retry is False


def test_without_a_key_the_answer_says_when_there_will_be_one() -> None:
    answer = client_answer(Fault(R.NO_KEYS, "all keys rest"), retry_after=12.0)
    assert (answer.status, answer.retry_after) == (429, 12)


def test_clients_find_openais_code_for_a_full_context() -> None:
    answer = client_answer(Fault(R.CONTEXT_LENGTH, "x", 400, code="INVALID_ARGUMENT"))
    assert answer.code == "context_length_exceeded"
    assert client_answer(Fault(R.NOT_FOUND, "x", 404)).code == "model_not_found"
    assert client_answer(Fault(R.NOT_FOUND, "x", 404, code="5007")).code == "5007"
