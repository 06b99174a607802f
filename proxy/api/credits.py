"""``/admin/credits``: counting what tools use that are not behind the gateway, such as searches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, ConfigDict, Field

from proxy.api.body import told
from proxy.clock import now_ms, rfc3339
from proxy.errors import ErrorReason, GatewayError
from proxy.store.address import StoreError
from proxy.store.credits import Account, Credits, Period
from proxy.store.pages import shown
from proxy.store.tables import api_credits

Text = Annotated[str, Field(min_length=1, max_length=200, pattern="^[^\x00]*$")]
Part = Annotated[str, Path(min_length=1, max_length=200, pattern="^[^\x00]*$")]

LEAST = 1e-6
MOST = 1e9


class Allowance(BaseModel):
    """What may be used in each period; null: as much as anybody likes, counted all the same."""

    model_config = ConfigDict(extra="forbid", strict=True)

    kind: Text = "search"
    allowance: float | None = Field(ge=0, le=MOST, allow_inf_nan=False)
    period: Period = "monthly"


class Use(BaseModel):
    """So much was, or is to be, used."""

    model_config = ConfigDict(extra="forbid", strict=True)

    kind: Text = "search"
    amount: float = Field(1.0, ge=LEAST, le=MOST, allow_inf_nan=False)


def credits_router(credits: Credits) -> APIRouter:
    """``PUT /admin/credits/{provider}/{key}`` and ``POST`` of ``/consume`` below it."""
    router = APIRouter(prefix="/admin/credits/{provider}/{key}")

    @router.put("")
    async def allow(provider: Part, key: Part, request: Request) -> dict[str, Any]:
        asked = await told(request, Allowance)
        account = Account(asked.kind, provider, key)
        with _keeping(credits):
            row = await credits.allow(account, asked.allowance, asked.period, now_ms())
        return shown(api_credits, row)

    @router.post("/consume")
    async def consume(provider: Part, key: Part, request: Request) -> dict[str, Any]:
        asked, now = await told(request, Use), now_ms()
        with _keeping(credits):
            used, row = await credits.consume(Account(asked.kind, provider, key), asked.amount, now)
        if row is None:
            raise GatewayError(
                404,
                f"There are no credits of the kind '{asked.kind}' for a key '{key}' of a provider"
                f" '{provider}' here. PUT /admin/credits/PROVIDER/KEY makes them.",
                ErrorReason.NOT_FOUND,
                code="credits_not_found",
            )
        if not used:
            raise _exhausted(row, asked.amount, now)
        return shown(api_credits, row)

    return router


def _exhausted(row: dict[str, Any], amount: float, now: int) -> GatewayError:
    reset = row["reset_at"]
    left = f"{row['credits_remaining']:g} credits are left, and {amount:g} were asked for"
    until = "they are not restored" if reset is None else f"restored at {rfc3339(reset)}"
    return GatewayError(
        429,
        f"{left}; {until}.",
        ErrorReason.QUOTA_EXCEEDED,
        code="credits_exhausted",
        retry_after=None if reset is None else max(1, math.ceil((reset - now) / 1000)),
        should_retry=False,
    )


@contextmanager
def _keeping(credits: Credits) -> Iterator[None]:
    """What the database cannot do is 503."""
    if not credits.kept:
        raise GatewayError(
            503,
            "No credits can be counted here: telemetry is switched off, and with it the database.",
            ErrorReason.INTERNAL,
            code="telemetry_off",
            should_retry=False,
        )
    try:
        yield
    except StoreError as error:
        raise GatewayError(503, str(error), ErrorReason.INTERNAL) from error
