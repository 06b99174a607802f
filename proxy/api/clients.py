"""``/admin/keys``: who may come in. ``/v1/key`` and ``/v1/generation``: what a client sees of
itself, in the shape that OpenRouter made usual."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from proxy.api.body import bad, told
from proxy.clients import Client
from proxy.clock import now_ms, rfc3339
from proxy.errors import ErrorReason, GatewayError
from proxy.keys import ClientKeys, new_client
from proxy.store import calls
from proxy.store.address import StoreError
from proxy.store.engine import Store
from proxy.telemetry.dates import moment
from proxy.types import Caller
from proxy.when import span

Text = Annotated[str, Field(min_length=1, max_length=200, pattern="^[^\x00]*$")]
Texts = Annotated[list[Text], Field(max_length=100)]


class NewKey(BaseModel):
    """A client to be let in. ``models`` and ``providers`` are shell patterns."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Text
    owner: Text | None = None
    models: Texts = []
    providers: Texts = []
    tags: Texts = []
    expires_at: Text | None = None


class Rotation(BaseModel):
    """``grace`` is how long the key of before goes on to open, such as ``24h``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    grace: Text = "24h"


def clients_router(keys: ClientKeys, store: Store) -> APIRouter:
    """``keys`` are the clients' keys; ``store`` has their calls."""
    router = APIRouter()

    @router.post("/admin/keys", status_code=201)
    async def create(request: Request) -> dict[str, Any]:
        _check_kept(keys)
        asked = await told(request, NewKey)
        try:
            expires_at = None if asked.expires_at is None else moment(asked.expires_at)
        except ValueError as error:
            raise bad("expires_at", str(error)) from None
        client = new_client(**asked.model_dump(exclude={"expires_at"}), expires_at=expires_at)
        try:
            key = await keys.create(client)
        except StoreError as error:
            raise _unkept(error) from error
        return {"id": client.id, "key": key, **_shown(client)}

    @router.get("/admin/keys")
    async def listed() -> dict[str, Any]:
        return {"data": [_shown(client) for client in keys.all()], "next_cursor": None}

    @router.get("/admin/keys/{client_id}")
    async def one(client_id: str) -> dict[str, Any]:
        client = keys.get(client_id)
        if client is None:
            raise _no_client(client_id)
        return _shown(client)

    @router.delete("/admin/keys/{client_id}")
    async def revoke(client_id: str) -> dict[str, Any]:
        try:
            known = await keys.revoke(client_id)
        except StoreError as error:
            raise _unkept(error) from error
        client = keys.get(client_id)
        if not known or client is None:
            raise _no_client(client_id)
        return _shown(client)

    @router.post("/admin/keys/{client_id}/rotate")
    async def rotate(client_id: str, request: Request) -> dict[str, Any]:
        asked = await told(request, Rotation)
        try:
            grace = span(asked.grace)
        except ValueError as error:
            raise bad("grace", str(error)) from None
        try:
            key = await keys.rotate(client_id, grace)
        except StoreError as error:
            raise _unkept(error) from error
        client = keys.get(client_id)
        if key is None or client is None:
            raise _no_client(client_id)
        return {"id": client.id, "key": key, **_shown(client)}

    @router.get("/v1/key")
    async def own(request: Request) -> dict[str, Any]:
        caller: Caller = request.scope["caller"]
        return {"data": await _own(keys, caller)}

    @router.get("/v1/generation")
    async def generation(request: Request, id: str) -> dict[str, Any]:
        caller: Caller = request.scope["caller"]
        try:
            async with store.reader() as connection:
                attempts = await calls.request(connection, id)
        except StoreError as error:
            raise GatewayError(503, str(error), ErrorReason.INTERNAL) from error
        mine = caller.client is None or any(
            row["client_id"] == caller.client_id for row in attempts
        )
        if not attempts or not mine:
            message = f"No call with the id {id[:100]!r} is known."
            raise GatewayError(404, message, ErrorReason.NOT_FOUND, param="id")
        return {"data": _generation(attempts)}

    return router


def _shown(client: Client) -> dict[str, Any]:
    return {
        "id": client.id,
        "name": client.name,
        "owner": client.owner,
        "models": list(client.models),
        "providers": list(client.providers),
        "tags": list(client.tags),
        "created_at": rfc3339(client.created_at),
        "expires_at": rfc3339(client.expires_at),
        "revoked_at": rfc3339(client.revoked_at),
    }


async def _own(keys: ClientKeys, caller: Caller) -> dict[str, Any]:
    """What is spent is counted by days in UTC; a week begins on Monday."""
    client, name = caller.client, caller.client_id
    today = datetime.fromtimestamp(now_ms() / 1000, UTC).date()
    starts = {
        "usage": date.min,
        "usage_daily": today,
        "usage_weekly": today - timedelta(days=today.weekday()),
        "usage_monthly": today.replace(day=1),
    }
    usage: dict[str, float | None] = dict.fromkeys(starts)
    if keys.kept:
        try:
            for each, since in starts.items():
                nano = await keys.spent(name or "", since.isoformat())
                usage[each] = None if nano is None else nano / 1e9
        except StoreError as error:
            raise GatewayError(503, str(error), ErrorReason.INTERNAL) from error
    return {
        "id": name,
        "label": client.name if client is not None else name,
        **usage,
        "models": list(client.models) if client is not None else [],
        "providers": list(client.providers) if client is not None else [],
        "tags": list(client.tags) if client is not None else [],
        "expires_at": rfc3339(client.expires_at) if client is not None else None,
    }


def _generation(attempts: list[dict[str, Any]]) -> dict[str, Any]:
    last = attempts[-1]
    costs = [row["cost_estimate_usd"] for row in attempts]
    known = [cost for cost in costs if cost is not None]
    return {
        "id": last["request_id"],
        "upstream_id": last["upstream_request_id"],
        "model": last["model"],
        "provider_name": last["provider"],
        "created_at": attempts[0]["timestamp"],
        "streamed": last["is_stream"],
        "cancelled": last["status"] == "cancelled",
        "finish_reason": last["finish_reason"],
        "tokens_prompt": last["input_tokens"],
        "tokens_completion": last["output_tokens"],
        "native_tokens_reasoning": last["reasoning_tokens"],
        "native_tokens_cached": last["cached_tokens"],
        "total_cost": sum(known) if known else None,
        "latency": last["time_to_first_token_ms"],
        "generation_time": last["total_duration_ms"],
        "attempts": len(attempts),
        "status": last["status"],
    }


def _check_kept(keys: ClientKeys) -> None:
    if not keys.kept:
        raise GatewayError(
            503,
            "No key can be kept here: telemetry is switched off, and with it the database.",
            ErrorReason.INTERNAL,
            code="telemetry_off",
            should_retry=False,
        )


def _unkept(error: StoreError) -> GatewayError:
    return GatewayError(503, str(error), ErrorReason.INTERNAL)


def _no_client(client_id: str) -> GatewayError:
    return GatewayError(
        404,
        f"There is no client '{client_id[:100]}' here.",
        ErrorReason.NOT_FOUND,
        code="key_not_found",
    )
