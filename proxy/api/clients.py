"""``/admin/keys``: who may come in. ``/v1/key`` and ``/v1/generation``: what a client sees of
itself, in the shape that OpenRouter made usual."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from proxy.api.body import bad, told
from proxy.api.budgets import terms
from proxy.budgeting import MOST_BUDGETS, KeyBudget, of_client
from proxy.clients import Client, ClientLimits
from proxy.clock import now_ms, rfc3339
from proxy.errors import ErrorReason, GatewayError
from proxy.keys import ClientKeys, new_client
from proxy.money import dollars
from proxy.store import calls
from proxy.store.address import StoreError
from proxy.store.engine import Store
from proxy.store.leases import LeaseTable
from proxy.tags import whole
from proxy.telemetry.dates import moment
from proxy.types import Caller
from proxy.when import span


def _told(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("must be printable characters, and not only blanks")
    return text


def _kept(told: list[str]) -> list[str]:
    whole(told)
    return told


Text = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_told)]
Texts = Annotated[list[Text], Field(max_length=100)]


class Terms(BaseModel):
    """What a client may be told to be. ``models`` and ``providers`` are shell patterns; ``limits``
    are checked as ``ClientLimits``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Text = ""
    owner: Text | None = None
    models: Texts = []
    providers: Texts = []
    tags: Annotated[list[Text], AfterValidator(_kept)] = []
    budgets: Annotated[list[KeyBudget], Field(max_length=MOST_BUDGETS)] = []
    expires_at: Text | None = None
    limits: dict[str, Any] = {}


class NewKey(Terms):
    """A client to be let in."""

    name: Text


class Rotation(BaseModel):
    """``grace`` is how long the key of before goes on to open, such as ``24h``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    grace: Text = "24h"


def clients_router(keys: ClientKeys, store: Store) -> APIRouter:
    """``keys`` are the clients' keys; ``store`` has their calls."""
    clients = _Clients(keys, store)
    router = APIRouter()
    one = "/admin/keys/{client_id}"
    router.add_api_route("/admin/keys", clients.create, methods=["POST"], status_code=201)
    router.add_api_route("/admin/keys", clients.listed, methods=["GET"])
    router.add_api_route(one, clients.one, methods=["GET"])
    router.add_api_route(one, clients.change, methods=["PATCH"])
    router.add_api_route(one, clients.revoke, methods=["DELETE"])
    router.add_api_route(f"{one}/rotate", clients.rotate, methods=["POST"])
    router.add_api_route("/v1/key", clients.own, methods=["GET"])
    router.add_api_route("/v1/generation", clients.generation, methods=["GET"])
    return router


class _Clients:
    def __init__(self, keys: ClientKeys, store: Store) -> None:
        self._keys = keys
        self._store = store
        self._leases = LeaseTable(store)

    async def create(self, request: Request) -> dict[str, Any]:
        asked = await told(request, NewKey)
        client = new_client(**_terms(asked))
        client = msgspec.structs.replace(
            client, budgets=of_client(asked.budgets, client.id, client.name)
        )
        with self._keeping():
            key = await self._keys.create(client)
        return {"key": key, **_shown(client)}

    async def change(self, client_id: str, request: Request) -> dict[str, Any]:
        """Only what is told changes."""
        asked = await told(request, Terms)
        terms = _terms(asked)
        client = self._keys.get(client_id)
        if client is not None and "budgets" in asked.model_fields_set:
            terms["budgets"] = of_client(asked.budgets, client_id, terms.get("name", client.name))
        elif client is not None and "name" in terms:
            named = [msgspec.structs.replace(each, name=terms["name"]) for each in client.budgets]
            terms["budgets"] = tuple(named)
        with self._keeping():
            if terms:
                await self._keys.change(client_id, terms)
        return await self.one(client_id)

    async def listed(self) -> dict[str, Any]:
        return {"data": [_shown(client) for client in self._keys.all()], "next_cursor": None}

    async def one(self, client_id: str) -> dict[str, Any]:
        client = self._keys.get(client_id)
        if client is None:
            raise GatewayError(
                404,
                f"There is no client '{client_id[:100]}' here.",
                ErrorReason.NOT_FOUND,
                code="key_not_found",
            )
        return _shown(client)

    async def revoke(self, client_id: str) -> dict[str, Any]:
        with self._keeping():
            await self._keys.revoke(client_id)
        return await self.one(client_id)

    async def rotate(self, client_id: str, request: Request) -> dict[str, Any]:
        asked = await told(request, Rotation)
        try:
            grace = span(asked.grace)
        except ValueError as error:
            raise bad("grace", str(error)) from None
        client = self._keys.get(client_id)
        if client is not None and client.revoked_at is not None:
            raise GatewayError(
                409,
                "This client was revoked: no key lets it in again.",
                ErrorReason.INVALID_REQUEST,
                code="key_revoked",
            )
        with self._keeping():
            key = await self._keys.rotate(client_id, grace)
        return {"key": key, **await self.one(client_id)}

    async def own(self, request: Request) -> dict[str, Any]:
        caller: Caller = request.scope["caller"]
        client = caller.client or Client(id="", name=caller.client_id or "", created_at=0)
        return {
            "data": {
                "id": caller.client_id,
                "label": client.name or None,
                **await self._usage(caller.client_id or ""),
                **await self._limit(client),
                "models": list(client.models),
                "providers": list(client.providers),
                "tags": list(client.tags),
                "limits": msgspec.to_builtins(client.limits),
                "expires_at": rfc3339(client.expires_at),
            }
        }

    async def generation(self, request: Request, id: str) -> dict[str, Any]:
        caller: Caller = request.scope["caller"]
        with self._keeping():
            async with self._store.reader() as connection:
                attempts = await calls.request(connection, id)
        others = caller.client is not None and any(
            row["client_id"] != caller.client_id for row in attempts
        )
        if not attempts or others:
            message = f"No call with the id {id[:100]!r} is known."
            raise GatewayError(404, message, ErrorReason.NOT_FOUND, param="id")
        return {"data": _generation(attempts)}

    async def _usage(self, client_id: str) -> dict[str, float | None]:
        """Dollars, by days in UTC; a week begins on Monday."""
        today = datetime.fromtimestamp(now_ms() / 1000, UTC).date()
        starts = {
            "usage": date.min,
            "usage_daily": today,
            "usage_weekly": today - timedelta(days=today.weekday()),
            "usage_monthly": today.replace(day=1),
        }
        usage: dict[str, float | None] = {}
        with self._keeping():
            for name, since in starts.items():
                nano = await self._keys.spent(client_id, since.isoformat())
                usage[name] = dollars(nano)
        return usage

    async def _limit(self, client: Client) -> dict[str, float | str | None]:
        """Of its hard budgets, the one that has least left; when it begins anew."""
        now = now_ms()
        tightest = None
        with self._keeping():
            for budget in client.budgets:
                if budget.mode == "hard":
                    found = await self._leases.standing(budget, now)
                    left = max(0, budget.limit_nano - found.spent - found.leased)
                    if tightest is None or left < tightest[0]:
                        tightest = left, budget.limit_nano, found.window.end
        if tightest is None:
            return {"limit": None, "limit_remaining": None, "limit_reset": None}
        left, limit, end = tightest
        return {
            "limit": dollars(limit),
            "limit_remaining": dollars(left),
            "limit_reset": rfc3339(end),
        }

    @contextmanager
    def _keeping(self) -> Iterator[None]:
        """What the database cannot do is 503."""
        if not self._keys.kept:
            raise GatewayError(
                503,
                "No key can be kept here: telemetry is switched off, and with it the database.",
                ErrorReason.INTERNAL,
                code="telemetry_off",
                should_retry=False,
            )
        try:
            yield
        except StoreError as error:
            raise GatewayError(503, str(error), ErrorReason.INTERNAL) from error


def _terms(asked: Terms) -> dict[str, Any]:
    """What was told of a client, in its own terms. GatewayError 422 for what cannot be."""
    terms = asked.model_dump(exclude_unset=True, exclude={"budgets"})
    if terms.get("expires_at") is not None:
        try:
            terms["expires_at"] = moment(terms["expires_at"])
        except ValueError as error:
            raise bad("expires_at", str(error)) from None
    if "limits" in terms:
        try:
            terms["limits"] = msgspec.convert(terms["limits"], ClientLimits)
        except msgspec.ValidationError as error:
            raise bad("limits", str(error)) from None
    lists = {name: tuple(terms[name]) for name in ("models", "providers", "tags") if name in terms}
    return terms | lists


def _shown(client: Client) -> dict[str, Any]:
    return {
        "id": client.id,
        "name": client.name,
        "owner": client.owner,
        "models": list(client.models),
        "providers": list(client.providers),
        "tags": list(client.tags),
        "limits": msgspec.to_builtins(client.limits),
        "budgets": [terms(budget) for budget in client.budgets],
        "created_at": rfc3339(client.created_at),
        "expires_at": rfc3339(client.expires_at),
        "revoked_at": rfc3339(client.revoked_at),
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
