"""What the client hears when no target can serve it. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from proxy.errors import ErrorReason, GatewayError
from proxy.relay.verdict import cause, client_answer
from proxy.routing.obstacles import Obstacle
from proxy.types import Fault, Target


def exhausted(
    model: str,
    obstacles: Sequence[Obstacle | None],
    fault: Fault | None,
    last: Target,
) -> GatewayError:
    """429 or 503 with the earliest ``Retry-After`` if everybody must wait, else what went wrong.

    ``obstacles`` says for each target what keeps it from serving, None if nothing does; ``fault``
    is the last one, at ``last``; None if nobody was asked.
    """
    waiting = [each for each in obstacles if each is not None and each.state != "disabled"]
    if waiting and all(obstacles):
        why = f"; the last cause: {cause(fault, last)}" if fault is not None else ""
        return _wait(model, min(waiting, key=lambda each: each.wait), why)
    if fault is not None:
        answer = client_answer(fault, last)
        if answer.status == 429:
            answer.status, answer.type = 503, "api_error"
        return answer
    first = obstacles[0] if obstacles else None
    if first is not None and all(obstacles):
        return GatewayError(
            502,
            f"Every key for '{model}' is disabled ({first.why}).",
            ErrorReason.NO_KEYS,
            code="no_keys" if first.kind == "disabled" else "upstream_authentication",
            should_retry=False,
        )
    return GatewayError(504, "There was no time left to try.", ErrorReason.TIMEOUT)


def _wait(model: str, first: Obstacle, why: str) -> GatewayError:
    seconds = max(1, math.ceil(first.wait)) if math.isfinite(first.wait) else 1
    why = why or f" ({first.why})"
    if first.kind == "breaker":
        return GatewayError(
            503,
            f"'{model}' is left alone after failures, {seconds} s more{why}",
            ErrorReason.NO_KEYS,
            code="circuit_open",
            retry_after=seconds,
        )
    return GatewayError(
        429,
        f"Every key for '{model}' must wait, {seconds} s at least{why}",
        ErrorReason.NO_KEYS,
        code="rate_limit_exceeded",
        retry_after=seconds,
    )
