from __future__ import annotations

import json

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
    UTC_MIDNIGHT,
    Case,
    check,
    group_rests,
    name_of,
    target_rests,
)
from tests.transcripts import body, data

CLOUDFLARE = DIALECTS["cloudflare"]


def envelope(code: int, message: str = "AiError: no") -> bytes:
    errors = [{"message": message, "code": code}]
    return json.dumps({"errors": errors, "success": False, "result": {}, "messages": []}).encode()


CASES = [
    Case("auth", 401, body("T18.key"), R.AUTHENTICATION, KEY_RESTS),
    Case("auth as a 403", 403, envelope(10000), R.AUTHENTICATION, KEY_RESTS),
    Case("wrong account", 404, envelope(7003), R.NOT_FOUND, NEXT_TARGET),
    Case("wrong method", 405, envelope(7001), R.NOT_FOUND, NEXT_TARGET),
    Case("unavailable", 500, envelope(7009), R.OVERLOADED, KEY_FAILS),
    Case("no such model", 400, envelope(5007), R.NOT_FOUND, NEXT_TARGET),
    Case("invalid model id", 404, envelope(3042), R.NOT_FOUND, NEXT_TARGET),
    *[
        Case(f"bad input {code}", 400, envelope(code), R.INVALID_REQUEST, STOP)
        for code in (5004, 3003, 3039)
    ],
    Case("bad input", 400, body("T18.input"), R.INVALID_REQUEST, STOP),
    *[
        Case(f"forbidden {code}", 403, envelope(code), R.FORBIDDEN, STOP)
        for code in (5016, 5018, 3023, 3041)
    ],
    *[
        Case(f"unsupported {code}", 405, envelope(code), R.INVALID_REQUEST, STOP)
        for code in (5019, 5005)
    ],
    Case("too large", 413, envelope(3006), R.TOO_LARGE, STOP),
    *[Case(f"late {code}", 408, envelope(code), R.TIMEOUT, TARGET_FAILS) for code in (3007, 3008)],
    Case("neurons", 429, envelope(3036), R.QUOTA_EXCEEDED, group_rests(UTC_MIDNIGHT, "")),
    Case("daily", 429, body("T18.daily"), R.QUOTA_EXCEEDED, group_rests(UTC_MIDNIGHT, "")),
    Case(
        "daily with a short wait: one look",
        429,
        body("T18.daily"),
        R.QUOTA_EXCEEDED,
        group_rests(UTC_MIDNIGHT, "", probe_after=30.0),
        {"retry-after": "30"},
    ),
    Case(
        "capacity for a while",
        429,
        body("T18.capacity"),
        R.OVERLOADED,
        target_rests(5.0),
        {"retry-after": "5"},
    ),
    Case("unavailable at the edge", 503, b"<html>503</html>", R.OVERLOADED, KEY_FAILS),
    Case("capacity", 429, body("T18.capacity"), R.OVERLOADED, KEY_FAILS),
    Case(
        "context",
        413,
        envelope(5021, "The input exceeded this model context window limit"),
        R.CONTEXT_LENGTH,
        STOP,
    ),
    Case("requests a minute", 429, envelope(0), R.RATE_LIMIT, group_rests()),
    Case("edge", 520, b"<!DOCTYPE html><title>520</title>", R.SERVER_ERROR, KEY_FAILS),
    Case(
        "gateway",
        401,
        b'{"success":false,"error":[{"code":2009,"message":"Unauthorized"}]}',
        R.AUTHENTICATION,
        KEY_RESTS,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_each_refusal_has_its_reason_and_its_verdict(case: Case) -> None:
    check("cloudflare", case)


def test_the_account_is_part_of_its_address() -> None:
    provider = Provider.of("cloudflare", CLOUDFLARE, account_id="a" * 32)
    base = f"https://api.cloudflare.com/client/v4/accounts/{'a' * 32}/ai/v1"
    assert str(provider.url(Operation.EMBEDDINGS)) == base + "/embeddings"
    assert CLOUDFLARE.models_url(provider.base_url) == (
        base.removesuffix("/v1") + "/models/search?per_page=100"
    )
    with pytest.raises(ValueError, match="account_id"):
        Provider.of("cloudflare", CLOUDFLARE)


def test_its_list_is_read_from_the_envelope() -> None:
    entry = {
        "id": "0f0",
        "name": "@cf/meta/llama-3.1-8b-instruct",
        "task": {"name": "Text Generation"},
        "properties": [
            {"property_id": "beta", "value": "true"},
            {"property_id": "context_window", "value": "7968"},
        ],
    }
    answer = {"success": True, "result": [entry, {"name": None}, "noise"]}
    (model,) = CLOUDFLARE.models("cf", json.dumps(answer).encode())
    assert model.name == "@cf/meta/llama-3.1-8b-instruct"
    assert (model.context_length, model.type) == (7968, "Text Generation")


def test_a_refused_list_is_no_empty_list() -> None:
    with pytest.raises(ValueError, match="no model list"):
        CLOUDFLARE.models("cf", body("T18.key"))


def test_its_usage_is_read() -> None:
    usage = CLOUDFLARE.usage(json.loads(data("T17")[2])["usage"])
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (45, 2, 47)
    assert usage.cached_tokens is None
