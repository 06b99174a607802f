from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.errors import ConfigError, ErrorReason, GatewayError, error_type


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "invalid_request_error"),
        (413, "invalid_request_error"),
        (422, "invalid_request_error"),
        (429, "rate_limit_error"),
        (499, "invalid_request_error"),
        (500, "api_error"),
        (503, "api_error"),
    ],
)
def test_a_status_has_the_type_that_clients_expect(status: int, name: str) -> None:
    assert error_type(status) == name
    assert GatewayError(status, "x", ErrorReason.INTERNAL).type == name


def test_the_body_is_openais_envelope_and_nothing_else() -> None:
    error = GatewayError(
        404, 'no "x"', ErrorReason.NOT_FOUND, code="model_not_found", param="model", retry_after=3
    )
    assert json.loads(error.body()) == {
        "error": {
            "message": 'no "x"',
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
    }
    assert str(error) == 'no "x"'


def test_a_type_of_its_own_is_kept() -> None:
    error = GatewayError(400, "x", ErrorReason.FORBIDDEN, type="moderation")
    assert json.loads(error.body())["error"]["type"] == "moderation"


@pytest.mark.parametrize(
    ("more", "headers"),
    [
        ({}, []),
        ({"retry_after": 0}, [(b"retry-after", b"0")]),
        ({"retry_after": 61}, [(b"retry-after", b"61")]),
        ({"should_retry": False}, [(b"x-should-retry", b"false")]),
        ({"should_retry": True}, [(b"x-should-retry", b"true")]),
    ],
)
def test_clients_are_told_when_to_come_again(
    more: dict[str, Any], headers: list[tuple[bytes, bytes]]
) -> None:
    assert GatewayError(429, "x", ErrorReason.RATE_LIMIT, **more).headers() == headers


def test_mistakes_of_a_configuration_are_lines() -> None:
    error = ConfigError(["a: is wrong", "b: too"])
    assert str(error) == "a: is wrong\nb: too"
    assert error.mistakes == ["a: is wrong", "b: too"]


def test_reasons_are_words_for_a_column() -> None:
    assert all(reason.value == reason.name.lower() == str(reason) for reason in ErrorReason)
