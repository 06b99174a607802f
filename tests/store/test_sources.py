from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import literal, select

from proxy.store import sources, tally
from proxy.store.columns import FLOAT
from proxy.store.coverage import Piece
from proxy.store.engine import Store
from proxy.store.rollups import DAY
from proxy.store.sources import COUNTS, SUMS, Among, Asked
from proxy.store.tables import api_calls, rollups_day, rollups_hour
from tests.store.rows import anything, call, failed, plan

NOON = 1_735_732_800_000


@pytest.mark.parametrize(
    "value", [0.0, 0.0004, 0.0005, 0.0015, 0.0625, 1.0625, 990.5, 0.1 + 0.2, 1e9, 1e300, -5.0]
)
async def test_a_value_has_the_same_thousandths_everywhere(either: Store, value: float) -> None:
    async with either.reader() as connection:
        found = await connection.scalar(select(sources.thousandths(literal(value, FLOAT))))
    assert found == tally.thousandths(value)


async def told(store: Store, piece: Piece, **asked: Any) -> list[dict[str, Any]]:
    async with store.reader() as connection:
        found = await connection.execute(sources.sums(piece, Asked(anything(), **asked)))
        return [
            {
                name: int(value) if isinstance(value, Decimal) else value
                for name, value in row.items()
            }
            for row in found.mappings()
        ]


async def test_rows_and_rollups_tell_the_same(either: Store) -> None:
    await either.write([call(), call(cost_nano_usd=None), failed("rate_limit", key_id=None)])
    for by in ((), ("provider", "key_id"), ("error_reason",)):
        rows, rolled = [
            await told(either, Piece(table, 0, 4_000_000_000_000), by=by)
            for table in (api_calls, rollups_day)
        ]
        assert list(rows[0]) == [*by, *COUNTS, *SUMS]
        assert sorted(rows, key=repr) == sorted(rolled, key=repr)


async def test_a_group_is_among_others_or_not_whether_or_not_it_has_a_name(either: Store) -> None:
    await either.write([call(key_id=name, agent_name="a") for name in ("x", "", None, "y")])
    by, piece = ("key_id", "agent_name"), Piece(api_calls, 0, 4_000_000_000_000)
    for names in (["x"], [""], [None], ["x", None], ["x", "", None, "y"]):
        for inside in (True, False):
            among = Among(by, [(name, "a") for name in names], inside)
            found = await told(either, piece, by=by, among=among)
            keys = {group["key_id"] for group in found}
            assert keys == ({*names} if inside else {"x", "", None, "y"} - {*names})


def test_the_calls_of_nobody_are_the_service_without_its_callers() -> None:
    asked = Asked(anything(), ("model", "client_id", "key_id"))
    assert asked.scope == "caller"
    assert asked.anonymous == Asked(anything(), ["model", "key_id"])
    assert asked.nameless(("m", "ann", "k")) == asked.nameless(("m", "k")) == ("m", None, "k")
    assert Asked(anything(), ("model",)).anonymous is None
    assert asked._replace(filters=anything(agent=("planner",))).anonymous is None


async def test_all_calls_together_are_found_by_the_key(store: Store) -> None:
    await store.write([call()])
    query = sources.sums(Piece(rollups_hour, NOON, NOON + 2 * DAY), Asked(anything()))
    async with store.reader() as connection:
        steps = await plan(connection, query)
    assert "USING PRIMARY KEY (start=? AND series_id=?)" in steps
