from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import ErrorReason as R
from proxy.providers import DIALECTS
from proxy.providers.faults import parse, read, reason_of
from proxy.relay.verdict import client_answer, judge
from tests.providers.cases import NOW
from tests.transcripts import body

KEYS = [
    "error", "errors", "message", "code", "type", "status", "details", "metadata", "detail",
    "availability", "retry_after", "headers", "X-RateLimit-Reset", "violations", "quotaId",
    "retryDelay", "reason", "limit_source", "error_type", "object", "success", "raw", "loc", "msg",
]  # fmt: skip
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["9m38.016s", "36s", "4006", "rate_limit_exceeded", "1788220800000", "\x00"])
)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(KEYS), inner),
    max_leaves=20,
)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([{"error": {"message": "a"}}], "a"),
        ({"error": {"message": "b"}}, "b"),
        ({"error": "c"}, "c"),
        ({"error": [{"message": "d"}]}, "d"),
        ({"success": False, "errors": [{"code": 1, "message": "e"}]}, "e"),
        ({"object": "error", "message": "f"}, "f"),
        ({"detail": "g"}, "g"),
        ({"detail": [{"loc": ["body", "messages"], "msg": "h"}]}, "body.messages: h"),
        ("i", "i"),
        ({"error": {"message": {"deep": "j"}}}, ""),
        ([], ""),
        (None, ""),
        ([1, 2], ""),
    ],
)
def test_every_shape_has_its_message(raw: Any, message: str) -> None:
    assert read(raw).message == message
    if not isinstance(raw, str):
        assert parse(json.dumps(raw).encode()).message == message


def test_text_and_html_are_kept_up_to_five_hundred_characters() -> None:
    page = parse(b"<html>\n <h1>Bad  gateway</h1>" + b" word" * 200).message
    assert page.startswith("<html> <h1>Bad gateway</h1> word")
    assert 480 < len(page) <= 502


def test_a_cut_never_leaves_half_a_word() -> None:
    text = b"x" * 480 + b" sk-abcdefghijklmnopqrstuvwxyz0123456789"
    assert parse(text).message == "x" * 480 + " …"


def test_bytes_that_are_no_text_still_have_a_message() -> None:
    assert parse(b"\xff\xfe oops").message.endswith("oops")
    assert parse(b"").message == ""
    assert parse(b"\xef\xbb\xbf" + body("T5.key")).message == "Invalid API Key"


def test_a_message_can_be_stored_anywhere() -> None:
    message = read({"error": {"message": "a\x00b\ud800c" + "d" * 9000}}).message
    assert message.startswith("ab?c")
    assert len(message) <= 4002
    message.encode()


@pytest.mark.parametrize(
    "hostile",
    [
        b"[" * 200_000,
        b'{"error":' * 50_000,
        b'{"error":{"code":' + b"9" * 6000 + b"}}",
        b'{"error":{"message":"' + b"a" * 3_000_000 + b'"}}',
        b'{"error":{"message":"\\ud800"}}',
        b'{"error":{"code":1e999}}',
        b'{"error":{"message":"try again in ' + b"9" * 4000 + b's"}}',
        b'{"error":{"message":"retry in ' + b"1m" * 1900 + b'"}}',
    ],
)
@pytest.mark.parametrize("name", list(DIALECTS))
def test_hostile_bodies_are_only_bodies(hostile: bytes, name: str) -> None:
    fault = DIALECTS[name].classify(500, [], hostile, NOW)
    assert fault.reason is R.SERVER_ERROR
    assert len(fault.message) < 4100


@given(st.integers(100, 999), st.binary(), st.sampled_from(list(DIALECTS)))
def test_any_bytes_are_classified(status: int, raw: bytes, name: str) -> None:
    fault = DIALECTS[name].classify(status, [(b"retry-after", raw)], raw, NOW)
    judge(fault)
    client_answer(fault)


@given(st.integers(100, 999), JSON, st.sampled_from(list(DIALECTS)))
def test_any_json_is_classified(status: int, value: Any, name: str) -> None:
    dialect = DIALECTS[name]
    raw = json.dumps(value).encode()
    for fault in (dialect.classify(status, [], raw, NOW), dialect.classify_event(value, NOW)):
        judge(fault)
        answer = client_answer(fault)
        assert 400 <= answer.status < 600
        assert answer.retry_after is None or 0 <= answer.retry_after <= 86_400
        answer.message.encode()
    dialect.usage(value if isinstance(value, dict) else {})


def test_the_body_decides_before_the_status() -> None:
    assert reason_of(400, parse(body("T9.key"))) is R.AUTHENTICATION
    assert reason_of(429, parse(body("T18.capacity"))) is R.OVERLOADED
    assert reason_of(403, parse(body("T18.key"))) is R.AUTHENTICATION


def test_a_request_quoted_in_a_message_parks_no_key() -> None:
    said = "Invalid value for messages[3].content, which is given as: " + "x" * 40
    assert reason_of(400, read({"error": {"message": said + " invalid api key"}})) is (
        R.INVALID_REQUEST
    )


def test_the_code_shown_is_a_name_rather_than_the_status() -> None:
    assert parse(body("T5.key")).code == "invalid_api_key"
    assert parse(body("T9.key")).code == "API_KEY_INVALID"
    assert parse(body("T9.field")).code == "INVALID_ARGUMENT"
    assert parse(body("T13.credit")).code == "payment_required"
    assert parse(body("T13.key")).code is None
    assert parse(body("T18.daily")).code == "4006"


NAMES = {
    R.RATE_LIMIT: "rate_limit_exceeded rate_limit_error RESOURCE_EXHAUSTED"
    " openrouter_shared_capacity upstream_provider_shared_pool",
    R.QUOTA_EXCEEDED: "insufficient_quota openrouter_free_tier_daily 3036 4006",
    R.CREDIT: "payment_required openrouter_credits openrouter_key_limit",
    R.AUTHENTICATION: "invalid_api_key authentication_error authentication API_KEY_INVALID"
    " ACCESS_TOKEN_TYPE_UNSUPPORTED UNAUTHENTICATED 10000",
    R.FORBIDDEN: "3023 3041 5016 5018 permission_error",
    R.NOT_FOUND: "model_not_found model_decommissioned not_found_error NOT_FOUND"
    " not_supported_error 7001 7003 5007 3042",
    R.INVALID_REQUEST: "tool_use_failed invalid_request_error 3003 3039 5004 5005 5006 5019",
    R.CONTEXT_LENGTH: "context_length_exceeded token_limit_exceeded exceed_context_size_error 5021",
    R.CONTENT_FILTER: "content_filter content_policy_violation",
    R.TOO_LARGE: "3006",
    R.OVERLOADED: "capacity_exceeded UNAVAILABLE provider_overloaded unavailable_error 3040 7009",
    R.TIMEOUT: "DEADLINE_EXCEEDED timeout 3007 3008",
    R.SERVER_ERROR: "server_error internal_server_error api_error server provider_unavailable",
}


@pytest.mark.parametrize(
    ("name", "reason"), [(name, reason) for reason in NAMES for name in NAMES[reason].split()]
)
def test_a_name_decides_where_no_status_came(name: str, reason: R) -> None:
    for place in ("code", "status", "type", "error_type"):
        assert reason_of(None, read({"error": {place: name}})) is reason
    assert reason_of(None, read({"error": {"metadata": {"error_type": name}}})) is reason


STATUSES = {
    400: R.INVALID_REQUEST, 401: R.AUTHENTICATION, 402: R.CREDIT, 403: R.FORBIDDEN,
    404: R.NOT_FOUND, 405: R.NOT_FOUND, 407: R.BAD_RESPONSE, 408: R.TIMEOUT, 409: R.INVALID_REQUEST,
    410: R.NOT_FOUND, 413: R.TOO_LARGE, 422: R.INVALID_REQUEST, 429: R.RATE_LIMIT,
    498: R.OVERLOADED, 499: R.STREAM_ERROR, 500: R.SERVER_ERROR, 501: R.NOT_FOUND,
    502: R.SERVER_ERROR, 503: R.OVERLOADED, 504: R.TIMEOUT, 520: R.SERVER_ERROR, 524: R.TIMEOUT,
    529: R.OVERLOADED, 304: R.BAD_RESPONSE, 600: R.BAD_RESPONSE,
}  # fmt: skip


@pytest.mark.parametrize(("status", "reason"), STATUSES.items())
def test_a_bare_status_decides_alone(status: int, reason: R) -> None:
    assert reason_of(status, parse(b"")) is reason
    if 400 <= status < 600:
        assert reason_of(None, read({"error": {"code": status}})) is reason
