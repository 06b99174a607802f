"""What of a plan is open to a client with a key of its own."""

from __future__ import annotations

import msgspec

from proxy.clients import Client
from proxy.errors import ErrorReason, GatewayError
from proxy.types import Plan, Target


def allowed(plan: Plan, client: Client) -> Plan:
    """The plan with the targets that the client may have. GatewayError 403 where that is none."""

    def some(targets: tuple[Target, ...]) -> tuple[Target, ...]:
        asked = plan.requested_model
        return tuple(each for each in targets if client.may(asked, each.provider, each.model))

    targets = some(plan.targets)
    if not targets:
        shown = plan.requested_model[:100]
        raise GatewayError(
            403,
            f"This key may not use the model '{shown}'.",
            ErrorReason.FORBIDDEN,
            code="model_not_allowed",
            param="model",
        )
    instead = {reason: some(others) for reason, others in plan.instead.items()}
    return msgspec.structs.replace(plan, targets=targets, instead=instead)
