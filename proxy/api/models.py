"""``/v1/models``: what can be asked for, all providers' lists in one, aliases first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from fastapi import APIRouter

from proxy.errors import ErrorReason, GatewayError
from proxy.types import ModelInfo


def models_router(
    aliases: Callable[[], Iterable[str]], listed: Callable[[], Awaitable[list[ModelInfo]]]
) -> APIRouter:
    """``GET /v1/models`` and ``GET /v1/models/{id}``; an id may hold slashes."""
    router = APIRouter()

    def own() -> list[dict[str, Any]]:
        entry = {"object": "model", "created": 0, "owned_by": "tollkeeper"}
        return [{"id": name, **entry} for name in aliases()]

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": own() + [_entry(model) for model in await listed()]}

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        for entry in own():
            if entry["id"] == name:
                return entry
        for each in await listed():
            if name in (f"{each.provider}/{each.name}", each.name):
                return _entry(each)
        raise GatewayError(
            404,
            f"The model '{name[:200]}' does not exist here.",
            ErrorReason.NOT_FOUND,
            code="model_not_found",
            param="model",
        )

    return router


def _entry(model: ModelInfo) -> dict[str, Any]:
    """A provider's entry under the name it has here; what else it says stays."""
    created = model.raw.get("created")
    return {
        **model.raw,
        "id": f"{model.provider}/{model.name}",
        "object": "model",
        "created": created if isinstance(created, int) else 0,
        "owned_by": model.raw.get("owned_by") or model.provider,
    }
