"""The clients' keys, from the database to the door: made, taken back, replaced, and followed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import msgspec

from proxy.clients import Client, Keyring, Secret, new_id, new_key
from proxy.clock import now_ms
from proxy.store.address import StoreError
from proxy.store.clients import ClientTable

FOLLOW_SECONDS = 0.5
"""How often is looked whether another process has made or taken back a key."""


class ClientKeys:
    """``keyring`` is what the door asks; here is what changes it. Instants are UTC milliseconds.

    What is changed raises StoreError where it cannot be kept, and holds here at once; other
    gateways and ``tollkeeper keys`` are followed within ``FOLLOW_SECONDS``.
    """

    def __init__(self, table: ClientTable, keyring: Keyring) -> None:
        self.keyring = keyring
        self._table = table
        self._mark: tuple[Any, ...] = ()
        self._clients: dict[str, Client] = {}

    @property
    def kept(self) -> bool:
        """Whether there is a database to keep keys in."""
        return self._table.kept

    @property
    def loaded(self) -> bool:
        """Whether the database has told who there is."""
        return bool(self._mark)

    def all(self) -> list[Client]:
        """Every client, those whose time is over included; the oldest first."""
        return list(self._clients.values())

    def get(self, client_id: str) -> Client | None:
        return self._clients.get(client_id)

    async def create(self, client: Client) -> str:
        """Let a client in; its key, which nobody can tell a second time."""
        key = new_key()
        digest = self.keyring.digest(key.encode())
        await self._table.create(client, Secret(digest, client.id, client.created_at))
        await self.load()
        return key

    async def change(self, client_id: str, fields: Mapping[str, Any]) -> bool:
        """Change these fields of a client, from now on; False if there is no such client."""
        known = await self._table.change(client_id, fields, now_ms())
        await self.load()
        return known

    async def revoke(self, client_id: str) -> bool:
        """Let none of a client's keys open anything any more; False if there is no such client."""
        known = await self._table.revoke(client_id, now_ms())
        await self.load()
        return known

    async def rotate(self, client_id: str, grace_ms: int) -> str | None:
        """Another key for a client; the one of before opens for so long. None: no such client."""
        key, now = new_key(), now_ms()
        secret = Secret(self.keyring.digest(key.encode()), client_id, now)
        known = await self._table.rotate(secret, now + grace_ms)
        await self.load()
        return key if known else None

    async def spent(self, client_id: str, since: str) -> int | None:
        """Nano-dollars since a day; None where they are not known."""
        return await self._table.spent(client_id, since)

    async def load(self) -> None:
        """Take up what the database has."""
        mark = await self._table.mark()
        clients, hashes = await self._table.load()
        self._mark = mark
        self._clients = {client.id: client for client in clients}
        self.keyring.hold(clients, hashes)

    async def follow(self) -> None:
        """Take up what others change, until cancelled. A database that is away changes nothing."""
        while True:
            with suppress(StoreError):
                if await self._table.mark() != self._mark:
                    await self.load()
            await asyncio.sleep(FOLLOW_SECONDS)


def new_client(name: str, **more: Any) -> Client:
    """A client that is made now. Raises msgspec.ValidationError where it cannot be."""
    return msgspec.convert({"id": new_id(), "name": name, "created_at": now_ms(), **more}, Client)
