from __future__ import annotations

import pytest

from proxy.errors import ErrorReason as R
from proxy.providers import DIALECTS
from proxy.providers.base import Provider
from proxy.types import Operation
from tests.providers.cases import NEXT_KEY, NEXT_TARGET, STOP, Case, check, name_of, openai_error
from tests.transcripts import body

LIMIT = (
    "Rate limit reached for model `x` in organization `org_01test` on {}: Limit 30, Used 30, "
    "Requested 1. Please try again in {}. Need more tokens? Upgrade to Dev Tier today"
)


def limited(window: str, wait: str, kind: str = "tokens") -> bytes:
    return openai_error(LIMIT.format(window, wait), type=kind, code="rate_limit_exceeded")


CASES = [
    Case("bad key", 401, body("T5.key"), R.AUTHENTICATION, NEXT_KEY, "disable"),
    Case("unknown model", 404, body("T5.model"), R.NOT_FOUND, NEXT_TARGET),
    Case(
        "tokens a minute",
        429,
        limited("tokens per minute (TPM)", "5.289s"),
        R.RATE_LIMIT,
        NEXT_KEY,
        "model",
        5.289,
        {"retry-after": "6"},
    ),
    Case(
        "requests a minute, no header",
        429,
        limited("requests per minute (RPM)", "1m47.5854s", "requests"),
        R.RATE_LIMIT,
        NEXT_KEY,
        "model",
        107.5854,
    ),
    Case(
        "tokens a day",
        429,
        body("T3"),
        R.QUOTA_EXCEEDED,
        NEXT_KEY,
        "model",
        578.016,
        {"retry-after": "579"},
    ),
    Case(
        "requests a day",
        429,
        limited("requests per day (RPD)", "33m57.312s", "requests"),
        R.QUOTA_EXCEEDED,
        NEXT_KEY,
        "model",
        2037.312,
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
    Case("over capacity", 503, body("T5.capacity"), R.OVERLOADED, NEXT_KEY),
    Case(
        "flex tier full",
        498,
        openai_error("Flex tier capacity exceeded", code="capacity_exceeded"),
        R.OVERLOADED,
        NEXT_KEY,
    ),
    Case("body too big", 413, openai_error("Request Entity Too Large"), R.TOO_LARGE, STOP),
    Case("unprocessable", 422, openai_error("semantic errors"), R.INVALID_REQUEST, STOP),
    Case("failed dependency", 424, openai_error("dependency"), R.INVALID_REQUEST, STOP),
    Case("cancelled", 499, openai_error("cancelled"), R.STREAM_ERROR, NEXT_TARGET),
    Case(
        "internal",
        500,
        openai_error("Internal Server Error", type="internal_server_error"),
        R.SERVER_ERROR,
        NEXT_KEY,
    ),
    Case("bad gateway", 502, b"<html>502</html>", R.SERVER_ERROR, NEXT_KEY),
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
