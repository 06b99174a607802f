"""What the client hears when nobody can serve it."""

from __future__ import annotations

import math

import pytest

from proxy.errors import ErrorReason
from proxy.relay.exhausted import exhausted
from proxy.routing.obstacles import Obstacle
from proxy.types import Fault, Target

HERE = Target("lab", "m")
COOLING = Obstacle(40.2, "rate_limit", "rest")
LIMIT = Obstacle(7.0, "requests_minute 3/3", "limit")
BUSY = Obstacle(math.inf, "concurrent 1/1", "limit")
BREAKER = Obstacle(3.1, "breaker open", "breaker")
REFUSED = Obstacle(299.0, "authentication", "rest", "disabled")
SWITCHED = Obstacle(math.inf, "disabled by an operator", "disabled", "disabled")
BOOM = Fault(ErrorReason.SERVER_ERROR, "boom", status=500)


@pytest.mark.parametrize(
    ("obstacles", "status", "code", "wait"),
    [
        ([COOLING], 429, "rate_limit_exceeded", 41),
        ([COOLING, LIMIT], 429, "rate_limit_exceeded", 7),
        ([LIMIT, REFUSED], 429, "rate_limit_exceeded", 7),
        ([BUSY], 429, "rate_limit_exceeded", 1),
        ([Obstacle(0.01, "x", "limit")], 429, "rate_limit_exceeded", 1),
        ([BREAKER, COOLING], 503, "circuit_open", 4),
        ([LIMIT, Obstacle(9.0, "breaker open", "breaker")], 429, "rate_limit_exceeded", 7),
    ],
)
@pytest.mark.parametrize("fault", [None, BOOM])
def test_who_must_wait_is_told_until_when_the_first_is_free(
    obstacles: list[Obstacle | None], status: int, code: str, wait: int, fault: Fault | None
) -> None:
    error = exhausted("fast", obstacles, fault, HERE)
    assert (error.status, error.code, error.retry_after) == (status, code, wait)
    assert error.reason is ErrorReason.NO_KEYS
    assert "'fast'" in error.message
    assert ("lab/m: server_error (HTTP 500): boom" in error.message) == (fault is not None)


def test_without_an_attempt_the_obstacle_is_named() -> None:
    assert "(requests_minute 3/3)" in exhausted("m", [COOLING, LIMIT], None, HERE).message


def test_what_a_provider_says_of_a_key_is_not_quoted() -> None:
    """Its text may show a part of the key, or whose it is."""
    fault = Fault(ErrorReason.AUTHENTICATION, "bad key sk-ca..77 of acme", status=401)
    error = exhausted("m", [COOLING], fault, HERE)
    assert "acme" not in error.message
    assert "refused the configured key" in error.message


def test_where_somebody_could_serve_the_last_cause_is_the_answer() -> None:
    """The budget is used up, or all were asked in vain: waiting is not what helps."""
    error = exhausted("m", [COOLING, None], BOOM, HERE)
    assert (error.status, error.code, error.retry_after) == (502, "upstream_server_error", None)
    limited = Fault(ErrorReason.RATE_LIMIT, "slow", status=429, retry_after=9.0)
    error = exhausted("m", [None], limited, HERE)
    assert (error.status, error.type, error.retry_after) == (503, "api_error", 9)


@pytest.mark.parametrize(
    ("obstacle", "code"), [(REFUSED, "upstream_authentication"), (SWITCHED, "no_keys")]
)
def test_waiting_for_a_disabled_key_is_not_recommended(obstacle: Obstacle, code: str) -> None:
    error = exhausted("m", [obstacle, obstacle], None, HERE)
    assert (error.status, error.code, error.retry_after) == (502, code, None)
    assert error.should_retry is False
    assert obstacle.why in error.message


def test_a_deadline_that_passed_before_any_try_is_a_timeout() -> None:
    error = exhausted("m", [None], None, HERE)
    assert (error.status, error.reason) == (504, ErrorReason.TIMEOUT)
