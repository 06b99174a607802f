"""The tables of all providers side by side: one kind of refusal has one consequence everywhere.

Each row of a provider's table, with its whole verdict, stands in that provider's test. Here are the
kinds across providers, by the names of those rows, and the errors that come inside a 200.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from proxy.errors import ErrorReason as R
from proxy.providers import DIALECTS
from proxy.relay.verdict import judge
from proxy.types import Action, Verdict
from tests.providers import (
    test_cloudflare,
    test_gemini,
    test_groq,
    test_ollama,
    test_openai,
    test_openrouter,
)
from tests.providers.cases import (
    FREE,
    KEY_FAILS,
    KEY_RESTS,
    NOW,
    PACIFIC_MIDNIGHT,
    STOP,
    TARGET_FAILS,
    UTC_MIDNIGHT,
    Case,
    agree,
    check,
    group_rests,
)
from tests.transcripts import body, data

TABLES = {
    "cloudflare": test_cloudflare.CASES,
    "gemini": test_gemini.CASES,
    "groq": test_groq.CASES,
    "ollama": test_ollama.CASES,
    "openai": test_openai.CASES,
    "openrouter": test_openrouter.CASES,
}


class Kind(NamedTuple):
    """A kind of refusal; ``rows`` names rows that must be of it, by provider."""

    reason: R
    action: Action
    rests: set[str]
    failure: bool
    rows: dict[str, list[str]]


KEY, TARGET = Action.NEXT_KEY, Action.NEXT_TARGET

KINDS = {
    "wrong key": Kind(
        R.AUTHENTICATION,
        KEY,
        {"key"},
        False,
        {
            "openai": ["key", "vLLM key", "restricted key"],
            "gemini": ["bad key is a 400", "leaked key is a 403"],
            "cloudflare": ["auth", "auth as a 403"],
        },
    ),
    "limit of a minute": Kind(
        R.RATE_LIMIT,
        KEY,
        {"group"},
        False,
        {
            "groq": ["tokens a minute", "requests a minute, no header"],
            "gemini": ["a minute", "tokens"],
            "openrouter": ["requests a minute of one model", "upstream_provider_shared_pool"],
            "openai": ["bare limit"],
        },
    ),
    "quota of a day": Kind(
        R.QUOTA_EXCEEDED,
        KEY,
        {"group"},
        False,
        {
            "groq": ["tokens a day", "requests a day"],
            "gemini": ["a day with a delay"],
            "openrouter": ["daily free limit"],
            "cloudflare": ["neurons", "daily"],
            "ollama": ["cloud week"],
            "openai": ["quota"],
        },
    ),
    "no money": Kind(
        R.CREDIT,
        KEY,
        {"group", "key"},
        False,
        {"openrouter": ["no credit", "the key's own limit"]},
    ),
    "no capacity": Kind(
        R.OVERLOADED,
        KEY,
        {"none", "target"},
        True,
        {
            "openai": ["busy"],
            "openrouter": ["overloaded", "provider overloaded"],
            "groq": ["flex tier full", "over capacity"],
            "cloudflare": ["capacity"],
            "gemini": ["overloaded"],
            "ollama": ["queue full"],
        },
    ),
    "a bad gateway, that may be anything": Kind(
        R.SERVER_ERROR,
        KEY,
        {"none"},
        True,
        {
            "groq": ["bad gateway"],
            "openrouter": ["provider failed"],
            "ollama": ["cloud unreachable"],
        },
    ),
    "context": Kind(
        R.CONTEXT_LENGTH,
        Action.STOP,
        {"none"},
        False,
        {
            "groq": ["context"],
            "gemini": ["context"],
            "openrouter": ["context", "context, in the provider's words"],
            "openai": ["context", "vLLM context", "llama context"],
        },
    ),
    "bad request": Kind(
        R.INVALID_REQUEST,
        Action.STOP,
        {"none"},
        False,
        {"groq": ["unprocessable"], "gemini": ["unknown field"], "openai": ["FastAPI"]},
    ),
    "not found": Kind(
        R.NOT_FOUND,
        TARGET,
        {"none"},
        False,
        {
            "openrouter": ["unknown model", "no endpoints"],
            "cloudflare": ["no such model", "invalid model id"],
            "openai": ["model"],
        },
    ),
    "nothing in time": Kind(R.TIMEOUT, TARGET, {"none"}, True, {"openrouter": ["edge timeout"]}),
    "refused for what it asks": Kind(
        R.FORBIDDEN,
        Action.STOP,
        {"none"},
        False,
        {"openrouter": ["moderation"], "gemini": ["region"], "cloudflare": ["forbidden 5016"]},
    ),
}


def rows() -> Iterator[Any]:
    for kind, (_, _, _, _, names) in KINDS.items():
        for provider, cases in names.items():
            for name in cases:
                yield pytest.param(kind, provider, name, id=f"{kind}: {provider}, {name}")


@pytest.mark.parametrize(("kind", "provider", "name"), list(rows()))
def test_one_kind_of_refusal_has_one_consequence_everywhere(
    kind: str, provider: str, name: str
) -> None:
    (case,) = (case for case in TABLES[provider] if case.name == name)
    reason, action, rests, failure, _ = KINDS[kind]
    fault = check(provider, case)
    verdict = judge(fault)
    assert fault.reason is reason
    assert (verdict.action, verdict.failure) == (action, failure)
    assert verdict.rests in rests


@pytest.mark.parametrize("provider", TABLES)
def test_every_row_is_of_the_kind_that_its_reason_names(provider: str) -> None:
    kinds = {kind.reason: kind for kind in KINDS.values()}
    for case in TABLES[provider]:
        kind = kinds.get(case.reason)
        if kind is not None:
            found = (case.verdict.action, case.verdict.failure)
            assert found == (kind.action, kind.failure), case.name
            assert case.verdict.rests in kind.rests, case.name


@pytest.mark.parametrize("provider", TABLES)
def test_no_two_rows_have_one_name(provider: str) -> None:
    names = [case.name for case in TABLES[provider]]
    assert len(set(names)) == len(names)


def test_too_large_for_a_minute_goes_on_and_too_large_a_body_comes_back() -> None:
    for provider, cases in TABLES.items():
        for case in cases:
            if case.reason is R.TOO_LARGE:
                fault = check(provider, case)
                goes_on = fault.code == "rate_limit_exceeded"
                assert (judge(fault).action is TARGET) == goes_on
    assert _case("groq", "too large for a minute").verdict.action is TARGET
    assert _case("groq", "body too big").verdict.action is Action.STOP


def _case(provider: str, name: str) -> Case:
    return next(case for case in TABLES[provider] if case.name == name)


def chunk_error(name: str) -> Any:
    return next(json.loads(each) for each in data(name) if b'"error":' in each)["error"]


INSIDE = [
    # name, provider, the error member, reason, verdict
    ("Groq's error event", "groq", chunk_error("T2"), R.INVALID_REQUEST, STOP),
    ("provider failed", "openrouter", chunk_error("T11"), R.SERVER_ERROR, KEY_FAILS),
    ("context", "openrouter", chunk_error("T12"), R.CONTEXT_LENGTH, STOP),
    (
        "inside a choice",
        "openrouter",
        json.loads(body("T13.inside"))["choices"][0]["error"],
        R.SERVER_ERROR,
        KEY_FAILS,
    ),
    (
        "a code in words",
        "openrouter",
        {"code": "server_error", "message": "Provider disconnected"},
        R.SERVER_ERROR,
        KEY_FAILS,
    ),
    (
        "a limit of the day",
        "openrouter",
        json.loads(body("T13.daily"))["error"],
        R.QUOTA_EXCEEDED,
        group_rests(UTC_MIDNIGHT, FREE),
    ),
    (
        "a limit upstream",
        "openrouter",
        json.loads(body("T13.upstream"))["error"],
        R.RATE_LIMIT,
        group_rests(),
    ),
    ("wrong key", "openrouter", {"code": 401, "message": "x"}, R.AUTHENTICATION, KEY_RESTS),
    (
        "no room: form not recorded",
        "gemini",
        {"code": 503, "status": "UNAVAILABLE", "message": "x"},
        R.OVERLOADED,
        KEY_FAILS,
    ),
    (
        "a day: form not recorded",
        "gemini",
        json.loads(body("T8"))[0]["error"],
        R.QUOTA_EXCEEDED,
        group_rests(PACIFIC_MIDNIGHT, probe_after=36.429760048),
    ),
    ("a line of Ollama's own", "ollama", "an error was encountered", R.STREAM_ERROR, TARGET_FAILS),
    ("llama.cpp", "openai", chunk_error("T20.error"), R.CONTEXT_LENGTH, STOP),
    (
        "vLLM",
        "openai",
        {"message": "x", "type": "InternalServerError", "param": None, "code": 500},
        R.SERVER_ERROR,
        KEY_FAILS,
    ),
    (
        "LM Studio: form not recorded, so maybe executed",
        "openai",
        {"message": "The model has crashed"},
        R.STREAM_ERROR,
        TARGET_FAILS,
    ),
]


@pytest.mark.parametrize(
    ("provider", "error", "reason", "verdict"),
    [pytest.param(*row[1:], id=f"{row[1]}: {row[0]}") for row in INSIDE],
)
def test_an_error_inside_a_200_has_the_consequence_of_a_refusal(
    provider: str, error: Any, reason: R, verdict: Verdict
) -> None:
    fault = DIALECTS[provider].classify_event(error, NOW)
    assert fault.reason is reason
    agree(judge(fault), verdict)
