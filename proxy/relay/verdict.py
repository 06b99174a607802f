"""What follows a failed attempt, and what the client hears when nothing is left. Pure."""

from __future__ import annotations

import math

from msgspec.structs import replace

from proxy.errors import ErrorReason as R
from proxy.errors import GatewayError
from proxy.reasons import MEANINGS
from proxy.types import Action, Fault, Target, Verdict

LONGEST_WITHOUT_CAPACITY = 60.0
"""Seconds that a target rests at most when its provider has no capacity: that may end any time."""


def judge(fault: Fault) -> Verdict:
    """What to do after a fault, before the client got a byte; after that, always stop.

    Of the faults with ``executed`` the relay lets one a request go on.
    """
    if is_over_allowance(fault):
        return Verdict(Action.NEXT_TARGET)
    meaning = MEANINGS[fault.reason]
    verdict = Verdict(meaning.action, failure=meaning.failure)
    match meaning.rests:
        case "group" if fault.of_key:
            return replace(verdict, rests="key", covers="", cooldown=fault.retry_after)
        case "group":
            return replace(
                verdict,
                rests="group",
                covers=fault.covers,
                cooldown=fault.retry_after,
                probe_after=fault.probe_after,
            )
        case "key":
            return replace(verdict, rests="key", covers="")
        case "target" if fault.retry_after:  # without a hint the next call may find room
            seconds = min(fault.retry_after, LONGEST_WITHOUT_CAPACITY)
            return replace(verdict, rests="target", cooldown=seconds)
        case _:
            return verdict


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
    meaning = MEANINGS[fault.reason]
    if meaning.own:
        return _own(fault)
    status = meaning.status
    if fault.reason is R.NO_KEYS and wait is None:
        status = 503
    seconds = math.ceil(wait) if wait is not None and status in (429, 503) else None
    return GatewayError(
        status,
        cause(fault, target),
        fault.reason,
        code=meaning.code,
        retry_after=seconds,
        # The gateway has tried what there is; a client that tries all of it again helps nobody.
        should_retry=None if seconds is not None else False,
    )


_NOT_OWN = frozenset({401, 402, 407, 408, 429, 499})
"""Statuses with which an upstream speaks of our key or of itself, never of the request."""


def _own(fault: Fault) -> GatewayError:
    meaning = MEANINGS[fault.reason]
    status, code = meaning.status, meaning.code
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


def cause(fault: Fault, target: Target | None) -> str:
    """The last cause in words. What a provider says of a key stays here: it may quote the key."""
    where = str(target) if target else "the upstream"
    if fault.reason is R.AUTHENTICATION:
        return f"{where}: the provider refused the configured key"
    answered = f" (HTTP {fault.status})" if fault.status is not None else ""
    return f"{where}: {fault.reason}{answered}: {fault.message}"
