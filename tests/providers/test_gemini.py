from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.errors import ErrorReason as R
from proxy.providers import DIALECTS
from tests.providers.cases import (
    KEY_FAILS,
    KEY_RESTS,
    NEXT_TARGET,
    NOW,
    PACIFIC_MIDNIGHT,
    STOP,
    TARGET_FAILS,
    Case,
    check,
    group_rests,
    name_of,
    target_rests,
)
from tests.transcripts import body, data

GEMINI = DIALECTS["gemini"]
OVER = "You exceeded your current quota, please check your plan and billing details."


def refused(status: str, message: str, *details: Any) -> bytes:
    error = {"code": 400, "message": message, "status": status, "details": list(details)}
    return json.dumps([{"error": error}], indent=2).encode()


def quota(*names: str, message: str = OVER, delay: str | None = None) -> bytes:
    violations = [{"quotaId": name} for name in names]
    details: list[Any] = [
        {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": violations}
    ]
    if delay:
        details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay})
    return refused("RESOURCE_EXHAUSTED", message, *details)


DAY = "GenerateRequestsPerDayPerProjectPerModel-FreeTier"
MINUTE = "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"
TOKENS = "GenerateContentInputTokensPerModelPerMinute-FreeTier"

CASES = [
    Case(
        "no authorization",
        400,
        refused("INVALID_ARGUMENT", "Invalid Authorization header."),
        R.AUTHENTICATION,
        KEY_RESTS,
    ),
    Case("bad key is a 400", 400, body("T9.key"), R.AUTHENTICATION, KEY_RESTS),
    Case(
        "new kind of key refused",
        401,
        refused("UNAUTHENTICATED", "x", {"reason": "ACCESS_TOKEN_TYPE_UNSUPPORTED"}),
        R.AUTHENTICATION,
        KEY_RESTS,
    ),
    Case(
        "leaked key is a 403",
        403,
        refused("PERMISSION_DENIED", "Your API key was reported as leaked. Use another API key."),
        R.AUTHENTICATION,
        KEY_RESTS,
    ),
    Case(
        "no permission is the client's",
        403,
        refused("PERMISSION_DENIED", "The caller does not have permission"),
        R.FORBIDDEN,
        STOP,
    ),
    Case(
        "region",
        400,
        refused("FAILED_PRECONDITION", "User location is not supported for the API use."),
        R.FORBIDDEN,
        STOP,
    ),
    Case("unknown field", 400, body("T9.field"), R.INVALID_REQUEST, STOP),
    Case(
        "unsupported value",
        400,
        refused(
            "INVALID_ARGUMENT",
            "Function calling with a response mime type: 'application/json' is unsupported",
        ),
        R.INVALID_REQUEST,
        STOP,
    ),
    Case(
        "thought signature",
        400,
        refused(
            "INVALID_ARGUMENT", "Function call is missing a thought_signature in functionCall parts"
        ),
        R.INVALID_REQUEST,
        STOP,
    ),
    Case(
        "model not found",
        404,
        refused("NOT_FOUND", "models/x is not found for API version v1beta"),
        R.NOT_FOUND,
        NEXT_TARGET,
    ),
    Case(
        "a day with a delay",
        429,
        body("T8"),
        R.QUOTA_EXCEEDED,
        group_rests(PACIFIC_MIDNIGHT, probe_after=36.429760048),
    ),
    Case(
        "a day without a delay ends at midnight in California",
        429,
        quota(MINUTE, DAY),
        R.QUOTA_EXCEEDED,
        group_rests(PACIFIC_MIDNIGHT),
    ),
    Case(
        "a day of the whole project",
        429,
        quota("GenerateRequestsPerDayPerProject", delay="26s"),
        R.QUOTA_EXCEEDED,
        group_rests(PACIFIC_MIDNIGHT, "", probe_after=26.0),
    ),
    Case(
        "a day with a wait until after midnight: the wait",
        429,
        quota(DAY, delay="60000s"),
        R.QUOTA_EXCEEDED,
        group_rests(60_000.0),
    ),
    Case(
        "one of several for all models: unclear, so the narrow one",
        429,
        quota(TOKENS, "GenerateRequestsPerMinutePerProject", delay="5s"),
        R.RATE_LIMIT,
        group_rests(5.0),
    ),
    Case("limits without a name: unclear", 429, quota(), R.RATE_LIMIT, group_rests()),
    Case("a minute", 429, quota(MINUTE, delay="26s"), R.RATE_LIMIT, group_rests(26.0)),
    Case("tokens", 429, quota(TOKENS, delay="34.4s"), R.RATE_LIMIT, group_rests(34.4)),
    Case(
        "for all models",
        429,
        quota("GenerateRequestsPerMinutePerProject", delay="5s"),
        R.RATE_LIMIT,
        group_rests(5.0, ""),
    ),
    Case(
        "not in the plan at all",
        429,
        quota(MINUTE, message=OVER + "\n* Quota exceeded for x, limit: 0, model: y", delay="9s"),
        R.QUOTA_EXCEEDED,
        group_rests(PACIFIC_MIDNIGHT),
    ),
    Case(
        "short form",
        429,
        refused("RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota)."),
        R.RATE_LIMIT,
        group_rests(),
    ),
    Case(
        "overloaded for a while",
        503,
        refused("UNAVAILABLE", "The model is overloaded.", {"retryDelay": "20s"}),
        R.OVERLOADED,
        target_rests(20.0),
    ),
    Case("overloaded", 503, body("T9.overloaded"), R.OVERLOADED, KEY_FAILS),
    Case(
        "context",
        400,
        refused(
            "INVALID_ARGUMENT",
            "The input token count (1200000) exceeds the maximum number of tokens allowed (1).",
        ),
        R.CONTEXT_LENGTH,
        STOP,
    ),
    Case("internal", 500, refused("INTERNAL", "internal"), R.SERVER_ERROR, KEY_FAILS),
    Case("late", 504, refused("DEADLINE_EXCEEDED", "deadline"), R.TIMEOUT, TARGET_FAILS),
]


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_each_refusal_has_its_reason_and_its_verdict(case: Case) -> None:
    check("gemini", case)


def test_the_bare_object_is_read_like_the_list() -> None:
    bare = body("T9.key").strip()[1:-1]
    assert GEMINI.classify(400, [], bare, NOW) == GEMINI.classify(400, [], body("T9.key"), NOW)


def test_thoughts_count_as_output_that_was_not_sent() -> None:
    usage = GEMINI.usage(json.loads(data("T6")[-2])["usage"])
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (9, 100, 109)
    assert (usage.reasoning_tokens, usage.hidden_tokens) == (94, 94)


def test_thoughts_that_ate_all_tokens_leave_no_completion_tokens() -> None:
    usage = GEMINI.usage({"prompt_tokens": 9, "total_tokens": 59})
    assert (usage.output_tokens, usage.hidden_tokens) == (50, 50)


def test_thoughts_are_no_more_than_the_output() -> None:
    usage = GEMINI.usage(
        {
            "prompt_tokens": 9,
            "total_tokens": 9,
            "completion_tokens_details": {"reasoning_tokens": 5},
        }
    )
    assert (usage.output_tokens, usage.reasoning_tokens) == (0, 0)


def test_output_is_not_guessed_without_a_total() -> None:
    usage = GEMINI.usage({"completion_tokens": 3})
    assert (usage.output_tokens, usage.hidden_tokens, usage.total_tokens) == (3, None, None)


def test_names_lose_their_prefix() -> None:
    listed = b'{"object":"list","data":[{"id":"models/gemini-2.5-flash","object":"model"}]}'
    assert [model.name for model in GEMINI.models("g", listed)] == ["gemini-2.5-flash"]
