"""``/admin``: what an operator tells a running gateway."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from fastapi import APIRouter

from proxy.api.keys import shown
from proxy.errors import ConfigError, ErrorReason, GatewayError

Order = Literal["reset", "disable", "enable"]


def admin_router(
    steer: Callable[[str, str, Order], dict[str, Any] | None],
    reload: Callable[[], dict[str, Any]],
) -> APIRouter:
    """``steer(provider, key, order)`` gives the key's state after it, None if there is no such key.
    ``reload`` raises ConfigError where the new configuration does not hold."""
    router = APIRouter(prefix="/admin")

    def order(what: Order) -> Callable[..., Any]:
        async def endpoint(provider: str, name: str) -> dict[str, Any]:
            state = steer(provider, name, what)
            if state is None:
                raise GatewayError(
                    404,
                    f"There is no key '{name[:100]}' of a provider '{provider[:100]}' here.",
                    ErrorReason.NOT_FOUND,
                    code="key_not_found",
                )
            return shown(state)

        return endpoint

    orders: tuple[Order, ...] = ("reset", "disable", "enable")
    for what in orders:
        path = f"/providers/{{provider}}/keys/{{name}}/{what}"
        router.add_api_route(path, order(what), methods=["POST"], response_model=None)

    @router.post("/reload")
    async def read_again() -> dict[str, Any]:
        try:
            return reload()
        except ConfigError as error:
            raise GatewayError(
                422,
                "; ".join(error.mistakes),
                ErrorReason.INVALID_REQUEST,
                code="invalid_configuration",
            ) from None

    return router
