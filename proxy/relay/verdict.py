"""What follows a failed attempt, and what the client hears when nothing is left. Pure."""

from __future__ import annotations

import math
from typing import Literal

from proxy.errors import ErrorReason as R
from proxy.errors import GatewayError
from proxy.types import Action, Fault, Target, Verdict

_NEXT_KEY = Verdict(Action.NEXT_KEY)
_NEXT_TARGET = Verdict(Action.NEXT_TARGET)
_STOP = Verdict(Action.STOP)

_VERDICTS = {
    R.AUTHENTICATION: Verdict(Action.NEXT_KEY, park="disable"),
    R.SERVER_ERROR: _NEXT_KEY,
    R.OVERLOADED: _NEXT_KEY,
    R.NO_KEYS: _NEXT_TARGET,
    R.NOT_FOUND: _NEXT_TARGET,
    # Another key leads to the same host, and may pay a second time for work already done.
    R.CONNECT: _NEXT_TARGET,
    R.TIMEOUT: _NEXT_TARGET,
    R.STREAM_ERROR: _NEXT_TARGET,
    R.TRUNCATED: _NEXT_TARGET,
    R.EMPTY_RESPONSE: _NEXT_TARGET,
    R.BAD_RESPONSE: _NEXT_TARGET,
}
"""Reasons that always mean the same; whatever is not here or below stops."""


def judge(fault: Fault) -> Verdict:
    """What to do after a fault, before the client got a byte; after that, always stop.

    Of the faults with ``executed`` the relay lets one a request go on.
    """
    if fault.reason in (R.RATE_LIMIT, R.QUOTA_EXCEEDED):
        scope: Literal["model", "key"] = "model" if fault.model_scope else "key"
        return Verdict(Action.NEXT_KEY, park=scope, cooldown=fault.retry_after)
    if fault.reason is R.CREDIT:
        return Verdict(Action.NEXT_KEY, park="key", cooldown=fault.retry_after)
    if fault.reason is R.TOO_LARGE:
        return _NEXT_TARGET if is_over_allowance(fault) else _STOP
    return _VERDICTS.get(fault.reason, _STOP)


def is_over_allowance(fault: Fault) -> bool:
    """Whether "too large" means the key's tokens a minute, as at Groq, and not the body.

    Waiting never helps then, but a target with a larger allowance does.
    """
    return fault.reason is R.TOO_LARGE and fault.code == "rate_limit_exceeded"


def client_answer(
    fault: Fault, target: Target | None = None, retry_after: float | None = None
) -> GatewayError:
    """The answer when nothing is left to try. ``fault`` is the last one, at ``target``.

    ``retry_after`` is seconds until a key is free again, None to say what the provider said. What
    is the client's own matter keeps the provider's status and message. Whatever concerns our keys
    becomes a 502, lest the client takes it for its own key or account.
    """
    wait = retry_after if retry_after is not None else fault.retry_after
    if fault.reason in _OWN:
        return _own(fault)
    status = _ANSWERS.get(fault.reason, 502)
    if fault.reason is R.NO_KEYS and wait is None:
        status = 503
    seconds = math.ceil(wait) if wait is not None and status in (429, 503) else None
    return GatewayError(
        status,
        _cause(fault, target),
        fault.reason,
        code=_CODES.get(fault.reason, f"upstream_{fault.reason}"),
        retry_after=seconds,
        # The gateway has tried what there is; a client that tries all of it again helps nobody.
        should_retry=None if seconds is not None else False,
    )


_OWN = {
    R.INVALID_REQUEST: (400, None),
    R.CONTEXT_LENGTH: (400, "context_length_exceeded"),
    R.CONTENT_FILTER: (400, "content_filter"),
    R.FORBIDDEN: (403, None),
    R.NOT_FOUND: (404, "model_not_found"),
    R.TOO_LARGE: (413, None),
}
"""What is the client's own: the status where the provider's does not fit, and OpenAI's code."""

_NOT_OWN = frozenset({401, 402, 407, 408, 429, 499})
"""Statuses with which an upstream speaks of our key or of itself, never of the request."""

_ANSWERS = {
    R.RATE_LIMIT: 429,
    R.QUOTA_EXCEEDED: 429,
    R.NO_KEYS: 429,
    R.OVERLOADED: 503,
    R.INTERRUPTED: 503,
    R.TIMEOUT: 504,
    R.CLIENT_CLOSED: 499,
    R.INTERNAL: 500,
}
"""The status of an answer that is the gateway's; 502 for the rest."""

_CODES = {
    R.RATE_LIMIT: "rate_limit_exceeded",
    R.QUOTA_EXCEEDED: "quota_exceeded",
    R.NO_KEYS: "no_keys",
    R.CLIENT_CLOSED: "client_closed",
    R.INTERRUPTED: "interrupted",
    R.INTERNAL: "internal_error",
}


def _own(fault: Fault) -> GatewayError:
    status, code = _OWN[fault.reason]
    if fault.status is not None and 400 <= fault.status < 500 and fault.status not in _NOT_OWN:
        status = fault.status
    fixed = fault.reason in (R.CONTEXT_LENGTH, R.CONTENT_FILTER)  # clients act on these two
    return GatewayError(
        status,
        fault.message,
        fault.reason,
        type=fault.type,
        code=code if fixed else fault.code or code,
        param=fault.param,
        should_retry=False,
    )


def _cause(fault: Fault, target: Target | None) -> str:
    """Names the last cause. What a provider says of a key stays here: it may quote the key."""
    where = str(target) if target else "the upstream"
    if fault.reason is R.AUTHENTICATION:
        return f"{where}: the provider refused the configured key"
    answered = f" (HTTP {fault.status})" if fault.status is not None else ""
    return f"{where}: {fault.reason}{answered}: {fault.message}"
