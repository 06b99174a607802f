"""``/v1/models``: what can be asked for, all providers' lists in one, aliases first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request

from proxy.clients import Client
from proxy.errors import ErrorReason, GatewayError
from proxy.types import Caller, ModelInfo, Target


def models_router(
    aliases: Callable[[], Mapping[str, Sequence[Target]]],
    listed: Callable[[], Awaitable[list[ModelInfo]]],
) -> APIRouter:
    """``GET /v1/models`` and ``GET /v1/models/{id}``; an id may hold slashes. A client with a key
    of its own sees what it may use."""
    router = APIRouter()

    def own(client: Client | None) -> list[dict[str, Any]]:
        entry = {"object": "model", "created": 0, "owned_by": "tollkeeper"}
        return [
            {"id": name, **entry}
            for name, targets in aliases().items()
            if client is None or any(client.may(name, t.provider, t.model) for t in targets)
        ]

    @router.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        client = _client(request)
        others = [_entry(model) for model in await listed() if _may_have(client, model)]
        return {"object": "list", "data": own(client) + others}

    @router.get("/v1/models/{name:path}")
    async def model(request: Request, name: str) -> dict[str, Any]:
        client = _client(request)
        for entry in own(client):
            if entry["id"] == name:
                return entry
        for each in await listed():
            if name in (f"{each.provider}/{each.name}", each.name) and _may_have(client, each):
                return _entry(each)
        raise GatewayError(
            404,
            f"The model '{name[:200]}' does not exist here.",
            ErrorReason.NOT_FOUND,
            code="model_not_found",
            param="model",
        )

    return router


def _client(request: Request) -> Client | None:
    caller: Caller = request.scope["caller"]
    return caller.client


def _may_have(client: Client | None, model: ModelInfo) -> bool:
    return client is None or client.may(model.name, model.provider, model.name)


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
