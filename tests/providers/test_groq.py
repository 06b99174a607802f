from __future__ import annotations

import pytest

from proxy.errors import ErrorReason as R
from proxy.providers import DIALECTS
from proxy.providers.base import Provider
from proxy.types import Operation
from tests.providers.cases import (
    KEY_FAILS,
    KEY_RESTS,
    NEXT_TARGET,
    STOP,
    TARGET_FAILS,
    Case,
    check,
    group_rests,
    name_of,
    openai_error,
    target_rests,
)
from tests.transcripts import body

LIMIT = (
    "Rate limit reached for model `x` in organization `org_01test` on {}: Limit 30, Used 30, "
    "Requested 1. Please try again in {}. Need more tokens? Upgrade to Dev Tier today"
)


def limited(window: str, wait: str, kind: str = "tokens") -> bytes:
    return openai_error(LIMIT.format(window, wait), type=kind, code="rate_limit_exceeded")


CASES = [
    Case("bad key", 401, body("T5.key"), R.AUTHENTICATION, KEY_RESTS),
    Case("unknown model", 404, body("T5.model"), R.NOT_FOUND, NEXT_TARGET),
    Case(
        "tokens a minute",
        429,
        limited("tokens per minute (TPM)", "5.289s"),
        R.RATE_LIMIT,
        group_rests(5.289),
        {"retry-after": "6"},
    ),
    Case(
        "requests a minute, no header",
        429,
        limited("requests per minute (RPM)", "1m47.5854s", "requests"),
        R.RATE_LIMIT,
        group_rests(107.5854),
    ),
    Case(
        "tokens a day",
        429,
        body("T3"),
        R.QUOTA_EXCEEDED,
        group_rests(578.016),
        {"retry-after": "579"},
    ),
    Case(
        "requests a day",
        429,
        limited("requests per day (RPD)", "33m57.312s", "requests"),
        R.QUOTA_EXCEEDED,
        group_rests(2037.312),
    ),
    Case(
        "tokens a day, longer than a header would be",
        429,
        limited("tokens per day (TPD)", "23m58.56s"),
        R.QUOTA_EXCEEDED,
        group_rests(1438.56),
    ),
    Case(
        "no window named: unclear, so a minute's",
        429,
        openai_error(
            "Rate limit reached for model `x` in organization `org_01test` on : Limit 500000, "
            "Used 499000, Requested ~12903. Please try again in 4.77s.",
            type="tokens",
            code="rate_limit_exceeded",
        ),
        R.RATE_LIMIT,
        group_rests(4.77),
    ),
    Case(
        "a header alone",
        429,
        openai_error("x", code="rate_limit_exceeded"),
        R.RATE_LIMIT,
        group_rests(7.0),
        {"retry-after": "7", "x-ratelimit-reset-requests": "23h59m"},
    ),
    Case(
        "no hint: the header of the bucket is none",
        429,
        openai_error("x", code="rate_limit_exceeded"),
        R.RATE_LIMIT,
        group_rests(),
        {"x-ratelimit-reset-requests": "23h59m"},
    ),
    Case("too large for a minute", 413, body("T4"), R.TOO_LARGE, NEXT_TARGET),
    Case("context", 400, body("T5.context"), R.CONTEXT_LENGTH, STOP),
    Case(
        "max_completion_tokens above the cap",
        400,
        openai_error(
            "`max_completion_tokens` must be less than or equal to `8192`",
            type="invalid_request_error",
            param="max_completion_tokens",
        ),
        R.INVALID_REQUEST,
        STOP,
    ),
    Case(
        "tool call did not validate",
        400,
        openai_error(
            "Tool call validation failed",
            type="invalid_request_error",
            code="tool_use_failed",
            failed_generation="{}",
        ),
        R.INVALID_REQUEST,
        STOP,
    ),
    Case(
        "over capacity for a while",
        503,
        body("T5.capacity"),
        R.OVERLOADED,
        target_rests(9.0),
        {"retry-after": "9"},
    ),
    Case(
        "over capacity for an hour: believed for a minute",
        503,
        body("T5.capacity"),
        R.OVERLOADED,
        target_rests(60.0),
        {"retry-after": "3600"},
    ),
    Case(
        "over capacity for no time",
        503,
        body("T5.capacity"),
        R.OVERLOADED,
        KEY_FAILS,
        {"retry-after": "0"},
    ),
    Case("over capacity", 503, body("T5.capacity"), R.OVERLOADED, KEY_FAILS),
    Case(
        "flex tier full",
        498,
        openai_error("Flex tier capacity exceeded", code="capacity_exceeded"),
        R.OVERLOADED,
        KEY_FAILS,
    ),
    Case("body too big", 413, openai_error("Request Entity Too Large"), R.TOO_LARGE, STOP),
    Case("unprocessable", 422, openai_error("semantic errors"), R.INVALID_REQUEST, STOP),
    Case("failed dependency", 424, openai_error("dependency"), R.INVALID_REQUEST, STOP),
    Case("cancelled", 499, openai_error("cancelled"), R.STREAM_ERROR, TARGET_FAILS),
    Case(
        "internal",
        500,
        openai_error("Internal Server Error", type="internal_server_error"),
        R.SERVER_ERROR,
        KEY_FAILS,
    ),
    Case(
        "unavailable",
        503,
        openai_error("Service Unavailable", type="internal_server_error"),
        R.OVERLOADED,
        KEY_FAILS,
    ),
    Case("bad gateway", 502, b"<html>502</html>", R.SERVER_ERROR, KEY_FAILS),
]


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_each_refusal_has_its_reason_and_its_verdict(case: Case) -> None:
    check("groq", case)


def test_both_forms_of_the_address_lead_to_the_same_place() -> None:
    for address in (None, "https://api.groq.com", "https://api.groq.com/openai/v1/"):
        provider = Provider.of("groq", DIALECTS["groq"], base_url=address)
        assert str(provider.url(Operation.CHAT)) == (
            "https://api.groq.com/openai/v1/chat/completions"
        )


def test_its_windows_are_a_day_of_requests_and_a_minute_of_tokens() -> None:
    assert DIALECTS["groq"].windows == {"requests": 86_400, "tokens": 60}
    assert not DIALECTS["groq"].include_usage
