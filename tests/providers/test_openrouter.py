from __future__ import annotations

import json

import pytest

from proxy.errors import ErrorReason as R
from proxy.providers import DIALECTS
from tests.providers.cases import (
    FREE,
    KEY_FAILS,
    KEY_RESTS,
    NEXT_TARGET,
    NOW,
    STOP,
    TARGET_FAILS,
    UTC_MIDNIGHT,
    Case,
    check,
    group_rests,
    name_of,
    openai_error,
    target_rests,
)
from tests.transcripts import body, data

OPENROUTER = DIALECTS["openrouter"]
RESET = {"headers": {"X-RateLimit-Reset": str(int(NOW * 1000) + 30_000)}}

CASES = [
    Case(
        "unknown model",
        400,
        openai_error(
            "acme/fake-1.0 is not a valid model ID",
            error_type="invalid_request",
            availability={"code": "model_not_found"},
        ),
        R.NOT_FOUND,
        NEXT_TARGET,
    ),
    Case(
        "unknown model, older form",
        400,
        openai_error("acme/fake-1.0 is not a valid model ID", code=400),
        R.NOT_FOUND,
        NEXT_TARGET,
    ),
    Case(
        "context",
        400,
        openai_error("too long", code=400, metadata={"error_type": "context_length_exceeded"}),
        R.CONTEXT_LENGTH,
        STOP,
    ),
    Case(
        "context, in the provider's words",
        400,
        openai_error(
            "Provider returned error",
            code=400,
            metadata={"raw": '{"message":"maximum context length is 4096 tokens"}'},
        ),
        R.CONTEXT_LENGTH,
        STOP,
    ),
    Case(
        "max_tokens",
        400,
        openai_error("max_tokens", code=400, metadata={"error_type": "max_tokens_exceeded"}),
        R.INVALID_REQUEST,
        STOP,
    ),
    Case("bad key", 401, body("T13.key"), R.AUTHENTICATION, KEY_RESTS),
    Case(
        "no key",
        401,
        openai_error("No auth credentials found", code=401),
        R.AUTHENTICATION,
        KEY_RESTS,
    ),
    Case("no credit", 402, body("T13.credit"), R.CREDIT, group_rests(None, "")),
    Case(
        "the key's own limit",
        403,
        openai_error("Key limit exceeded (total limit).", code=403),
        R.CREDIT,
        KEY_RESTS,
    ),
    Case(
        "the key's own limit, by its source",
        402,
        openai_error("x", code=402, metadata={"limit_source": "openrouter_key_limit"}),
        R.CREDIT,
        KEY_RESTS,
    ),
    Case(
        "a free model with a negative balance",
        402,
        openai_error("Your account has a negative balance", code=402),
        R.CREDIT,
        group_rests(None, ""),
    ),
    Case(
        "no cookie",
        401,
        openai_error("No cookie auth credentials found", code=401),
        R.AUTHENTICATION,
        KEY_RESTS,
    ),
    Case(
        "no header",
        401,
        openai_error("Missing Authentication header", metadata={"error_type": "authentication"}),
        R.AUTHENTICATION,
        KEY_RESTS,
    ),
    Case("region", 403, openai_error("This model is not available", code=403), R.FORBIDDEN, STOP),
    Case(
        "moderation",
        403,
        openai_error(
            "Your chosen model requires moderation and your input was flagged",
            code=403,
            metadata={"reasons": ["violence"], "flagged_input": "an invalid api key"},
        ),
        R.FORBIDDEN,
        STOP,
    ),
    Case(
        "no endpoints",
        404,
        openai_error("No endpoints found matching your data policy and rate limit", code=404),
        R.NOT_FOUND,
        NEXT_TARGET,
    ),
    Case("timed out", 408, openai_error("Timed out", code=408), R.TIMEOUT, TARGET_FAILS),
    Case("too large", 413, openai_error("Too large", code=413), R.TOO_LARGE, STOP),
    Case("unprocessable", 422, openai_error("No", code=422), R.INVALID_REQUEST, STOP),
    Case(
        "daily free limit",
        429,
        body("T13.daily"),
        R.QUOTA_EXCEEDED,
        group_rests(UTC_MIDNIGHT, FREE),
        {"x-ratelimit-reset": "1795219200000"},
    ),
    Case(
        "daily limit without a hint ends at midnight UTC",
        429,
        openai_error("Rate limit exceeded: free-models-per-day-high-balance", code=429),
        R.QUOTA_EXCEEDED,
        group_rests(UTC_MIDNIGHT, FREE),
    ),
    Case(
        "free models a minute",
        429,
        openai_error("Rate limit exceeded: free-models-per-min. ", code=429, metadata=RESET),
        R.RATE_LIMIT,
        group_rests(30.0, FREE),
    ),
    Case(
        "daily free limit by its source",
        429,
        openai_error("x", code=429, metadata={"limit_source": "openrouter_free_tier_daily"}),
        R.QUOTA_EXCEEDED,
        group_rests(UTC_MIDNIGHT, FREE),
    ),
    Case(
        "daily free limit with a short wait: each refusal counts, so one look",
        429,
        body("T13.daily"),
        R.QUOTA_EXCEEDED,
        group_rests(UTC_MIDNIGHT, FREE, probe_after=20.0),
        {"retry-after": "20"},
    ),
    Case(
        "requests a minute of one model",
        429,
        openai_error("Rate limit exceeded: limit_rpm/x/1-2", code=429, metadata=RESET),
        R.RATE_LIMIT,
        group_rests(30.0),
        {"x-ratelimit-reset": RESET["headers"]["X-RateLimit-Reset"]},
    ),
    Case(
        "requests a minute, told by the header alone",
        429,
        openai_error("Rate limit exceeded: limit_rpm/x/1-2", code=429),
        R.RATE_LIMIT,
        group_rests(30.0),
        {"x-ratelimit-reset": RESET["headers"]["X-RateLimit-Reset"]},
    ),
    *[
        Case(
            source,
            429,
            openai_error("x", code=429, metadata={"limit_source": source}),
            R.RATE_LIMIT,
            group_rests(12.0),
            {"retry-after": "12"},
        )
        for source in ("openrouter_shared_capacity", "upstream_provider_shared_pool")
    ],
    Case(
        "requests a day of one model",
        429,
        openai_error("Rate limit exceeded: limit_rpd/x/1-2", code=429, metadata=RESET),
        R.QUOTA_EXCEEDED,
        group_rests(30.0),
    ),
    Case("upstream limit", 429, body("T13.upstream"), R.RATE_LIMIT, group_rests()),
    Case(
        "no provider has room: a limit by its own name",
        429,
        body("T13.capacity"),
        R.RATE_LIMIT,
        group_rests(40.0),
    ),
    Case("server", 500, openai_error("Internal Server Error", code=500), R.SERVER_ERROR, KEY_FAILS),
    Case(
        "provider failed",
        502,
        openai_error(
            "Provider returned error", code=502, metadata={"error_type": "provider_unavailable"}
        ),
        R.SERVER_ERROR,
        KEY_FAILS,
    ),
    Case(
        "provider overloaded",
        503,
        openai_error("x", code=503, metadata={"error_type": "provider_overloaded"}),
        R.OVERLOADED,
        target_rests(7.0),
        {"retry-after": "7"},
    ),
    Case(
        "no provider",
        503,
        openai_error("No provider available", code=503),
        R.OVERLOADED,
        KEY_FAILS,
    ),
    Case(
        "no provider, newer form",
        503,
        openai_error("x", http_status=503, availability={"code": "x", "retry_after": 600}),
        R.OVERLOADED,
        target_rests(60.0),
    ),
    Case("edge timeout", 524, b"<html>A timeout occurred</html>", R.TIMEOUT, TARGET_FAILS),
    Case("overloaded", 529, openai_error("overloaded", code=529), R.OVERLOADED, KEY_FAILS),
]


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_each_refusal_has_its_reason_and_its_verdict(case: Case) -> None:
    check("openrouter", case)


def test_the_words_of_the_provider_behind_it_are_told() -> None:
    fault = OPENROUTER.classify(429, [], body("T13.upstream"), NOW)
    assert fault.message.startswith("Provider returned error (Google: google/gemini-2.0-flash")


@pytest.mark.parametrize(
    ("name", "reason", "status"),
    [("T11", R.SERVER_ERROR, 502), ("T12", R.CONTEXT_LENGTH, 400)],
)
def test_an_error_chunk_is_classified_like_an_answer(name: str, reason: R, status: int) -> None:
    chunk = next(json.loads(each) for each in data(name) if b'"error":' in each)
    fault = OPENROUTER.classify_event(chunk["error"], NOW)
    assert (fault.reason, fault.status) == (reason, status)


def test_an_error_inside_a_choice_is_classified_too() -> None:
    choice = json.loads(body("T13.inside"))["choices"][0]
    fault = OPENROUTER.classify_event(choice["error"], NOW)
    assert (fault.reason, fault.message) == (R.SERVER_ERROR, "Provider disconnected mid-stream")


def test_its_cost_is_taken_to_the_nano_dollar() -> None:
    usage = OPENROUTER.usage(json.loads(data("T10")[-2])["usage"])
    assert usage.cost_nano_usd == 13_050
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (67, 5, 72)
    assert (usage.cached_tokens, usage.cache_write_tokens, usage.reasoning_tokens) == (0, 0, 0)


def test_reasoning_is_never_more_than_the_output_it_is_part_of() -> None:
    chunk = json.loads(data("T12")[1])
    usage = OPENROUTER.usage(chunk["usage"])
    assert (usage.output_tokens, usage.reasoning_tokens, usage.cost_nano_usd) == (10, 10, 0)


def test_attribution_is_added_only_where_the_client_has_none() -> None:
    assert dict(OPENROUTER.defaults(set())) == {
        b"http-referer": b"http://localhost",
        b"x-openrouter-title": b"Tollkeeper",
    }
    for name in (b"http-referer", b"x-title", b"x-openrouter-title"):
        assert OPENROUTER.defaults({name}) == []
        assert name in OPENROUTER.forwarded


def test_its_list_tells_sizes_and_keeps_prices_in_raw() -> None:
    entry = {
        "id": "openai/gpt-4o-mini",
        "context_length": 128_000,
        "architecture": {"modality": "text+image->text"},
        "pricing": {"prompt": "0.00000015"},
        "top_provider": {"max_completion_tokens": 16_384},
    }
    (model,) = OPENROUTER.models("or", json.dumps({"data": [entry]}).encode())
    assert (model.provider, model.name) == ("or", "openai/gpt-4o-mini")
    assert (model.context_length, model.max_output_tokens) == (128_000, 16_384)
    assert model.type == "text+image->text"
    assert model.raw["pricing"] == {"prompt": "0.00000015"}
