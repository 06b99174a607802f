from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.errors import ErrorReason as R
from proxy.providers import DIALECTS
from tests.providers.cases import NEXT_KEY, NEXT_TARGET, NOW, STOP, Case, check, name_of
from tests.transcripts import body, data

GEMINI = DIALECTS["gemini"]
PACIFIC_MIDNIGHT = 16 * 3600.0  # from 08:00 of a day in winter
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
        NEXT_KEY,
        "disable",
    ),
    Case("bad key is a 400", 400, body("T9.key"), R.AUTHENTICATION, NEXT_KEY, "disable"),
    Case(
        "new kind of key refused",
        401,
        refused("UNAUTHENTICATED", "x", {"reason": "ACCESS_TOKEN_TYPE_UNSUPPORTED"}),
        R.AUTHENTICATION,
        NEXT_KEY,
        "disable",
    ),
    Case(
        "leaked key is a 403",
        403,
        refused("PERMISSION_DENIED", "Your API key was reported as leaked. Use another API key."),
        R.AUTHENTICATION,
        NEXT_KEY,
        "disable",
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
        NEXT_KEY,
        "model",
        36.429760048,
    ),
    Case(
        "a day without a delay ends at midnight in California",
        429,
        quota(MINUTE, DAY),
        R.QUOTA_EXCEEDED,
        NEXT_KEY,
        "model",
        PACIFIC_MIDNIGHT,
    ),
    Case("a minute", 429, quota(MINUTE, delay="26s"), R.RATE_LIMIT, NEXT_KEY, "model", 26.0),
    Case("tokens", 429, quota(TOKENS, delay="34.4s"), R.RATE_LIMIT, NEXT_KEY, "model", 34.4),
    Case(
        "for all models",
        429,
        quota("GenerateRequestsPerMinutePerProject", delay="5s"),
        R.RATE_LIMIT,
        NEXT_KEY,
        "key",
        5.0,
    ),
    Case(
        "not in the plan at all",
        429,
        quota(MINUTE, message=OVER + "\n* Quota exceeded for x, limit: 0, model: y", delay="9s"),
        R.QUOTA_EXCEEDED,
        NEXT_KEY,
        "model",
        PACIFIC_MIDNIGHT,
    ),
    Case(
        "short form",
        429,
        refused("RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota)."),
        R.RATE_LIMIT,
        NEXT_KEY,
        "model",
    ),
    Case("overloaded", 503, body("T9.overloaded"), R.OVERLOADED, NEXT_KEY),
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
    Case("internal", 500, refused("INTERNAL", "internal"), R.SERVER_ERROR, NEXT_KEY),
    Case("late", 504, refused("DEADLINE_EXCEEDED", "deadline"), R.TIMEOUT, NEXT_TARGET),
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


def test_output_is_not_guessed_without_a_total() -> None:
    usage = GEMINI.usage({"completion_tokens": 3})
    assert (usage.output_tokens, usage.hidden_tokens, usage.total_tokens) == (3, None, None)


def test_names_lose_their_prefix() -> None:
    listed = b'{"object":"list","data":[{"id":"models/gemini-2.5-flash","object":"model"}]}'
    assert [model.name for model in GEMINI.models("g", listed)] == ["gemini-2.5-flash"]
