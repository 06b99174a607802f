from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.errors import ErrorReason as R
from proxy.providers import DIALECTS
from proxy.providers.base import Provider
from proxy.types import Operation
from tests.providers.cases import (
    KEY_FAILS,
    KEY_RESTS,
    NEXT_TARGET,
    NOW,
    STOP,
    TARGET_FAILS,
    Case,
    check,
    group_rests,
    name_of,
)
from tests.providers.cases import openai_error as error
from tests.transcripts import body, data

OPENAI = DIALECTS["openai"]
VLLM_CONTEXT = (
    "This model's maximum context length is 32768 tokens. However, you requested 32818 tokens"
)

CASES = [
    # OpenAI
    Case("key", 401, error("x", code="invalid_api_key"), R.AUTHENTICATION, KEY_RESTS),
    Case(
        "restricted key",
        403,
        error("You have insufficient permissions for this operation."),
        R.AUTHENTICATION,
        KEY_RESTS,
    ),
    Case("region", 403, error("Country, region not supported"), R.FORBIDDEN, STOP),
    Case("model", 404, error("x", code="model_not_found"), R.NOT_FOUND, NEXT_TARGET),
    Case("context", 400, error("x", code="context_length_exceeded"), R.CONTEXT_LENGTH, STOP),
    Case("filter", 400, error("x", code="content_filter"), R.CONTENT_FILTER, STOP),
    Case(
        "quota",
        429,
        error("You exceeded your current quota", type="insufficient_quota", code=None),
        R.QUOTA_EXCEEDED,
        group_rests(None, ""),
    ),
    Case(
        "minute",
        429,
        error(
            "Rate limit reached for x on requests per min (RPM). Please try again in 20s. Visit",
            code="rate_limit_exceeded",
        ),
        R.RATE_LIMIT,
        group_rests(20.0),
    ),
    Case(
        "minute, in milliseconds",
        429,
        error("x", code="rate_limit_exceeded"),
        R.RATE_LIMIT,
        group_rests(1.5),
        {"retry-after-ms": "1500", "retry-after": "2"},
    ),
    Case(
        "one request too large for a minute, as a 429",
        429,
        error(
            "Request too large for gpt-4o on tokens per min (TPM): Limit 30000, Requested 40000.",
            type="tokens",
            code="rate_limit_exceeded",
        ),
        R.TOO_LARGE,
        NEXT_TARGET,
    ),
    Case(
        "no money at a provider that says so in a 429",
        429,
        error("Insufficient balance"),
        R.CREDIT,
        group_rests(None, ""),
    ),
    Case("bare limit", 429, b"", R.RATE_LIMIT, group_rests()),
    Case("server", 500, error("x", type="server_error"), R.SERVER_ERROR, KEY_FAILS),
    Case("busy", 503, b"upstream connect error", R.OVERLOADED, KEY_FAILS),
    Case("late", 504, b"<html>504</html>", R.TIMEOUT, TARGET_FAILS),
    Case("teapot", 418, b"short and stout", R.INVALID_REQUEST, STOP),
    Case("redirect", 302, b"", R.BAD_RESPONSE, TARGET_FAILS),
    # A word is not a reason.
    Case("limit in a 404", 404, error("No rate limit group here"), R.NOT_FOUND, NEXT_TARGET),
    Case("quota in a 400", 400, error("unknown field daily_quota"), R.INVALID_REQUEST, STOP),
    # vLLM
    Case("vLLM key", 401, body("T21.vllm_key"), R.AUTHENTICATION, KEY_RESTS),
    Case("old vLLM context", 400, body("T21.vllm_context"), R.CONTEXT_LENGTH, STOP),
    Case(
        "vLLM context",
        400,
        error(VLLM_CONTEXT, type="BadRequestError", code=400),
        R.CONTEXT_LENGTH,
        STOP,
    ),
    Case(
        "vLLM model",
        404,
        error("The model `x` does not exist.", type="NotFoundError", code=404),
        R.NOT_FOUND,
        NEXT_TARGET,
    ),
    # llama.cpp
    Case("llama context", 400, body("T21.llama_context"), R.CONTEXT_LENGTH, STOP),
    Case(
        "llama context grown over",
        500,
        error("Context size has been exceeded.", type="server_error", code=500),
        R.CONTEXT_LENGTH,
        STOP,
    ),
    Case(
        "llama key",
        401,
        error("Invalid API Key", type="authentication_error", code=401),
        R.AUTHENTICATION,
        KEY_RESTS,
    ),
    Case("llama permission", 403, error("x", type="permission_error", code=403), R.FORBIDDEN, STOP),
    Case(
        "llama loading",
        503,
        error("Loading model", type="unavailable_error", code=503),
        R.OVERLOADED,
        KEY_FAILS,
    ),
    Case(
        "llama cannot",
        501,
        error("no embeddings", type="not_supported_error", code=501),
        R.NOT_FOUND,
        NEXT_TARGET,
    ),
    Case(
        "llama input",
        400,
        error("no messages", type="invalid_request_error", code=400),
        R.INVALID_REQUEST,
        STOP,
    ),
    Case(
        "llama route",
        404,
        error("File Not Found", type="not_found_error", code=404),
        R.NOT_FOUND,
        NEXT_TARGET,
    ),
    Case(
        "llama broken",
        500,
        error("x", type="server_error", code=500),
        R.SERVER_ERROR,
        KEY_FAILS,
    ),
    Case(
        "llama context, as it was in 2025",
        500,
        error("the request exceeds the available context size", type="server_error", code=500),
        R.CONTEXT_LENGTH,
        STOP,
    ),
    # LM Studio
    Case(
        "LM Studio", 400, b'{"error":"Trying to keep the first 4 tokens"}', R.INVALID_REQUEST, STOP
    ),
    # FastAPI
    Case("FastAPI", 422, body("T21.fastapi"), R.INVALID_REQUEST, STOP),
]


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_each_refusal_has_its_reason_and_its_verdict(case: Case) -> None:
    check("openai", case)


def test_a_bad_key_named_in_a_message_is_masked_wholly() -> None:
    said = error("Incorrect API key provided: sk-proj-ab******wxyz. You can find", code="x")
    fault = OPENAI.classify(401, [], said, NOW)
    assert fault.message == "Incorrect API key provided: *** You can find"


def test_members_of_the_error_reach_the_client() -> None:
    fault = OPENAI.classify(400, [], error("m", type="t", code="c", param="p"), NOW)
    assert (fault.message, fault.type, fault.code, fault.param) == ("m", "t", "c", "p")


def test_an_error_event_without_a_status_goes_by_its_type() -> None:
    fault = OPENAI.classify_event({"message": "x", "type": "server_error"}, NOW)
    assert (fault.reason, fault.status, fault.executed) == (R.SERVER_ERROR, None, False)


def test_an_error_event_that_says_nothing_may_have_been_executed() -> None:
    sayings: list[Any] = ["broken", {"message": "broken"}, {}, None, 7, []]
    for said in sayings:
        fault = OPENAI.classify_event(said, NOW)
        assert (fault.reason, fault.executed) == (R.STREAM_ERROR, True)


def test_an_error_event_of_llama_cpp_is_read() -> None:
    fault = OPENAI.classify_event(json.loads(data("T20.error")[0])["error"], NOW)
    assert (fault.reason, fault.status) == (R.CONTEXT_LENGTH, 500)


def test_an_error_event_of_groq_names_its_status() -> None:
    fault = OPENAI.classify_event(json.loads(data("T2")[-1])["error"], NOW)
    assert (fault.reason, fault.status, fault.code) == (R.INVALID_REQUEST, 400, "tool_use_failed")


def test_usage_with_details_is_read() -> None:
    usage = OPENAI.usage(json.loads(data("T19")[3])["usage"])
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (16, 1, 17)
    assert (usage.cached_tokens, usage.reasoning_tokens) == (0, 0)
    assert usage.cost_nano_usd is None


def test_its_address_is_never_guessed() -> None:
    with pytest.raises(ValueError, match="base_url"):
        Provider.of("lab", OPENAI)
    provider = Provider.of("lab", OPENAI, base_url="http://127.0.0.1:9000/v1/")
    assert str(provider.url(Operation.COMPLETION)) == "http://127.0.0.1:9000/v1/completions"
    assert provider.include_usage
