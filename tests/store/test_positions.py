from __future__ import annotations

import pytest

from proxy.clock import now_ms
from proxy.sample import HostSample
from proxy.store.address import StoreError
from proxy.store.engine import Store
from proxy.store.tables import system_metrics
from tests.store.rows import call, read


async def samples(store: Store) -> int:
    return len(await read(store, system_metrics, "timestamp"))


async def test_a_position_moves_with_its_items(either: Store) -> None:
    assert await either.positions() == {}
    await either.write([HostSample(now_ms())], {"a": (0, 100)})
    await either.write([HostSample(now_ms())], {"a": (100, 250), "b": (0, 9)})
    assert await either.positions() == {"a": 250, "b": 9}
    assert await samples(either) == 2


@pytest.mark.parametrize("moves", [{"a": (0, 100)}, {"a": (50, 200)}, {"b": (10, 20)}])
async def test_what_was_taken_in_is_not_taken_in_again(
    either: Store, moves: dict[str, tuple[int, int | None]]
) -> None:
    await either.write([HostSample(now_ms())], {"a": (0, 100)})
    with pytest.raises(StoreError, match="taken in already"):
        await either.write([HostSample(now_ms()), call()], moves)
    assert await either.positions() == {"a": 100}
    assert await samples(either) == 1


async def test_a_segment_that_is_gone_is_forgotten(either: Store) -> None:
    await either.write([], {"a": (0, 100), "b": (0, 5)})
    await either.write([], {"a": (100, None), "never": (7, None)})
    assert await either.positions() == {"b": 5}


async def test_an_item_that_cannot_be_stored_parts_no_batch(either: Store) -> None:
    """All that can be is written in one transaction with the position, or nothing is."""
    batch = [HostSample(now_ms()), call(status="wonderful"), call(seed=2**70)]
    await either.write(batch, {"a": (0, 100)})
    assert (either.refused, await samples(either)) == (1, 1)
    with pytest.raises(StoreError, match="taken in already"):
        await either.write(batch, {"a": (0, 100)})
    assert await samples(either) == 1
