"""``tollkeeper keys``: by hand what ``/admin/keys`` does, also while gateways serve."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from proxy.budget import Budget
from proxy.clients import Client, Keyring
from proxy.clock import now_ms, rfc3339
from proxy.config import client_secret
from proxy.errors import ConfigError
from proxy.keys import ClientKeys
from proxy.money import dollars
from proxy.schema import Settings
from proxy.store.clients import ClientTable
from proxy.store.engine import Store


async def create(settings: Settings, client: Client) -> str:
    """Let a client in, and say its key: this once. Raises StoreError, and ConfigError where there
    is no database to keep it in."""
    async with _keys(settings) as keys:
        key = await keys.create(client)
    return f"{client.id}  {client.name}\n{key}\nThe key is shown this once; only its hash is kept."


async def listed(settings: Settings) -> str:
    """A line for each client."""
    async with _keys(settings) as keys:
        clients = keys.all()
    return "\n".join(map(_line, clients)) or "no client has a key of its own"


async def revoke(settings: Settings, client_id: str) -> str:
    """Let none of a client's keys open anything any more."""
    async with _keys(settings) as keys:
        if not await keys.revoke(client_id):
            raise _nobody(client_id)
    return f"{client_id}: revoked"


async def rotate(settings: Settings, client_id: str, grace_ms: int) -> str:
    """Another key for a client, to be said this once."""
    async with _keys(settings) as keys:
        client = keys.get(client_id)
        if client is not None and client.revoked_at is not None:
            raise ConfigError([f"{client_id} was revoked: no key lets it in again"])
        key = await keys.rotate(client_id, grace_ms)
    if key is None:
        raise _nobody(client_id)
    until = rfc3339(now_ms() + grace_ms)
    return f"{client_id}\n{key}\nThe key is shown this once; the one of before opens until {until}."


@asynccontextmanager
async def _keys(settings: Settings) -> AsyncIterator[ClientKeys]:
    if not settings.telemetry.keeps:
        raise ConfigError(["telemetry is switched off, and with it the database that keeps keys"])
    store = Store(settings.telemetry.database_url)
    try:
        await store.open()
        keys = ClientKeys(ClientTable(store), Keyring(client_secret(settings)))
        await keys.load()
        yield keys
    finally:
        await store.close()


def _line(client: Client) -> str:
    if client.revoked_at is not None:
        state = "revoked"
    elif client.expires_at is not None:
        state = f"until {rfc3339(client.expires_at)}"
    else:
        state = "open"
    may = " ".join([*client.models, *(f"{name}/*" for name in client.providers)]) or "everything"
    limits = msgspec.to_builtins(client.limits)
    most = "".join(f"  {name}={amount}" for name, amount in limits.items())
    budgets = "".join(f"  {_terms(budget)}" for budget in client.budgets)
    name = client.name if client.name.isprintable() else ascii(client.name)
    return f"{client.id}  {name}  {state}  {may}{most}{budgets}"


def _terms(budget: Budget) -> str:
    soft = "/soft" if budget.mode == "soft" else ""
    return f"${dollars(budget.limit_nano):.12g}/{budget.period}{soft}"


def _nobody(client_id: str) -> ConfigError:
    return ConfigError([f"there is no client {client_id} here"])
