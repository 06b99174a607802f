"""What of a plan is open to a client with a key of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from proxy.clients import Client
from proxy.errors import ErrorReason, GatewayError
from proxy.metering.attempt import Attribution
from proxy.types import Caller, Demand, Headers, Plan

Admit = Callable[[str, Caller, Attribution, Plan, Demand, int], Awaitable[tuple[Plan, Headers]]]
"""What of a plan its caller can pay for, and what the answer is to tell of that. It takes the
request's id, and last how many answers are wanted. GatewayError where that is nothing."""


def allowed(plan: Plan, client: Client) -> Plan:
    """The plan with the targets that the client may have. GatewayError 403 where that is none."""
    if not client.models and not client.providers:
        return plan
    asked = plan.requested_model
    own = plan.only(lambda target: client.may(asked, target.provider, target.model))
    if not own.targets:
        shown = asked[:100]
        raise GatewayError(
            403,
            f"This key may not use the model '{shown}'.",
            ErrorReason.FORBIDDEN,
            code="model_not_allowed",
            param="model",
        )
    return own
