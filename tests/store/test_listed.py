from __future__ import annotations

from proxy.store.engine import Store
from proxy.store.listed import listed
from proxy.types import ModelInfo


async def test_what_the_providers_listed_is_told_with_their_names(store: Store) -> None:
    await store.write([[ModelInfo("lab", "b"), ModelInfo("lab", "a"), ModelInfo("desk", "c")]])
    async with store.reader() as connection:
        assert await listed(connection) == [("desk", "c"), ("lab", "a"), ("lab", "b")]
