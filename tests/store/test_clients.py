from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from proxy.clients import Client, ClientLimits, Secret
from proxy.store.address import StoreError
from proxy.store.clients import ClientTable
from proxy.store.engine import Store
from tests.store.rows import call


def client(number: int = 1, **more: Any) -> Client:
    return Client(id=f"ck-{number}", name="ann", created_at=number, **more)


async def test_a_client_comes_back_as_it_was(either: Store) -> None:
    table = ClientTable(either)
    made = client(
        owner="bo",
        models=("fast", "groq/*"),
        providers=("groq",),
        tags=("a",),
        expires_at=9,
        limits=ClientLimits(rpm=3, parallel=1),
    )
    await table.create(made, Secret("d1", "ck-1", 1))
    assert await table.load() == ([made], [Secret("d1", "ck-1", 1)])


async def test_every_change_is_seen_by_its_mark(either: Store) -> None:
    table = ClientTable(either)
    marks = [await table.mark()]
    await table.create(client(1), Secret("d1", "ck-1", 1))
    marks.append(await table.mark())
    await table.create(client(2), Secret("d2", "ck-2", 2))
    marks.append(await table.mark())
    assert await table.rotate(Secret("d3", "ck-1", 2), until=5)
    marks.append(await table.mark())
    assert await table.revoke("ck-2", 2)
    marks.append(await table.mark())
    assert await table.change("ck-1", {"name": "bob"}, 2)
    marks.append(await table.mark())
    assert len(set(marks)) == len(marks)
    assert not await table.change("ck-9", {"name": "bob"}, 2)
    assert not await table.rotate(Secret("d4", "ck-9", 2), until=5)
    assert not await table.revoke("ck-9", 2)
    assert await table.mark() == marks[-1]


async def test_changes_of_two_gateways_come_one_after_the_other(
    either: Store, other: Store
) -> None:
    """Else one that was begun first could be seen last, and its mark be no other."""
    await other.open()
    table = ClientTable(either)
    for number in (1, 2):
        await table.create(client(number), Secret(f"d{number}", f"ck-{number}", number))
    async with table._changing():
        revoking = asyncio.create_task(ClientTable(other).revoke("ck-2", 5))
        done, _ = await asyncio.wait({revoking}, timeout=0.2)
        assert not done
    assert await revoking


async def test_the_keys_of_before_open_no_longer_than_was_said(either: Store) -> None:
    table = ClientTable(either)
    await table.create(client(), Secret("d1", "ck-1", 1, expires_at=3))
    await table.rotate(Secret("d2", "ck-1", 2), until=5)
    await table.rotate(Secret("d3", "ck-1", 3), until=7)
    _, hashes = await table.load()
    assert {each.digest: each.expires_at for each in hashes} == {"d1": 3, "d2": 7, "d3": None}


async def test_a_client_is_revoked_once(either: Store) -> None:
    table = ClientTable(either)
    await table.create(client(), Secret("d1", "ck-1", 1))
    await table.revoke("ck-1", 10)
    await table.revoke("ck-1", 20)
    ([found], _) = await table.load()
    assert found.revoked_at == 10


async def test_what_a_client_spent_is_the_sum_of_its_days(either: Store) -> None:
    table = ClientTable(either)
    day = 86_400_000
    calls = [call(client_id="ck-1", timestamp=n * day, cost_nano_usd=n + 1) for n in range(3)]
    await either.write([*calls, call(client_id="ck-2", timestamp=day, cost_nano_usd=100)])
    assert await table.spent("ck-1", "0001-01-01") == 6
    assert await table.spent("ck-1", "1970-01-02") == 5
    assert await table.spent("ck-3", "0001-01-01") == 0
    await either.write(
        [call(client_id="ck-4", timestamp=day, cost_nano_usd=None, cost_source="none")]
    )
    assert await table.spent("ck-4", "0001-01-01") is None


async def test_where_nothing_is_kept_no_key_is(tmp_path: object) -> None:
    nowhere = Store(None)
    await nowhere.open()
    table = ClientTable(nowhere)
    assert not table.kept
    with pytest.raises(StoreError):
        await table.create(client(), Secret("d1", "ck-1", 1))
    await nowhere.close()


async def test_only_what_is_told_of_a_client_changes(either: Store) -> None:
    table = ClientTable(either)
    before = client(tags=("a",), expires_at=9, limits=ClientLimits(rpm=3))
    await table.create(before, Secret("d1", "ck-1", 1))
    fields = {"limits": ClientLimits(tpm=5), "models": ("fast",), "expires_at": None}
    assert await table.change("ck-1", fields, 10)
    assert (await table.load())[0] == [replace(before, **fields)]
