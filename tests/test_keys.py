from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from proxy.clients import Client, ClientLimits, Keyring
from proxy.clock import now_ms
from proxy.keys import ClientKeys, new_client
from proxy.store.clients import ClientTable
from proxy.store.engine import Store


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(f"sqlite+aiosqlite:///{tmp_path}/t.db")
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def keys(store: Store) -> ClientKeys:
    return ClientKeys(ClientTable(store), Keyring(b"pepper"))


def who(keys: ClientKeys, key: str) -> Client | str:
    return keys.keyring.find(key.encode(), now_ms())


async def test_a_key_opens_from_when_it_is_made_until_it_is_revoked(keys: ClientKeys) -> None:
    client = new_client("ann", models=["fast"])
    assert client.models == ("fast",)
    key = await keys.create(client)
    assert who(keys, key) == keys.get(client.id) == client
    assert await keys.revoke(client.id)
    assert who(keys, key) == "revoked"
    assert await keys.change(client.id, {"limits": ClientLimits(rpm=1)})
    assert keys.all() == [keys.get(client.id)]
    assert keys.all()[0].limits == ClientLimits(rpm=1)
    assert not await keys.change("ck-none", {"name": "bob"})
    assert not await keys.revoke("ck-none")


async def test_a_rotation_leaves_both_keys_for_a_while(keys: ClientKeys) -> None:
    client = new_client("ann")
    first = await keys.create(client)
    second = await keys.rotate(client.id, grace_ms=60_000)
    third = await keys.rotate(client.id, grace_ms=0)
    assert second is not None
    assert third is not None
    assert who(keys, first) == who(keys, second) == "expired"
    assert who(keys, third) == client
    assert await keys.rotate("ck-none", grace_ms=0) is None


async def test_what_another_process_makes_is_followed(keys: ClientKeys, store: Store) -> None:
    other = ClientKeys(ClientTable(store), Keyring(b"pepper"))
    following = asyncio.create_task(keys.follow())
    try:
        key = await other.create(new_client("ann"))
        async with asyncio.timeout(20):
            while not isinstance(who(keys, key), Client):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await store.close()
        await asyncio.sleep(0)
        assert isinstance(who(keys, key), Client)
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following
