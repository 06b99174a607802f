from __future__ import annotations

import pytest
from sqlalchemy import literal, select

from proxy.store.buckets import bucket
from proxy.store.columns import Instant
from proxy.store.engine import Store


@pytest.mark.parametrize("length", [1000, 60_000, 3_600_000, 86_400_000])
async def test_an_instant_lies_in_its_bucket(either: Store, length: int) -> None:
    at = 1_735_745_145_678
    async with either.reader() as connection:
        found = await connection.scalar(select(bucket(literal(at, Instant), length)))
    assert found == at - at % length
