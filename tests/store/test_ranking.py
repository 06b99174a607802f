from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete

from proxy.clock import now_ms
from proxy.store import coverage, ranking
from proxy.store.engine import Store
from proxy.store.filters import Filters
from proxy.store.groups import whole
from proxy.store.metrics import NO_CALLS
from proxy.store.ranking import DIMENSIONS, ORDERS, ranked
from proxy.store.rollups import CALLERS, DAY, GRAINS
from proxy.store.tables import api_calls, rollup_series
from proxy.tags import written
from proxy.types import CallRecord
from tests.store.rows import anything, call, failed

NOW = now_ms()
SUMMED = [name for name in NO_CALLS if name != "success_rate"]


@pytest.fixture(params=["rows", "rollups"])
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the answer comes from, for the dimensions that rollups know."""
    if request.param == "rollups":
        monkeypatch.setattr(coverage, "FEW", -1)
    return str(request.param)


async def ranking_of(
    store: Store, *by: str, order: str = "cost_usd", top: int = 10, **filters: Any
) -> list[dict[str, Any]]:
    window = anything(**{"start": NOW - 2 * DAY, "end": NOW + DAY, **filters})
    async with store.reader() as connection:
        return await ranked(connection, window, by, order, top)


def spent(group: dict[str, Any], *by: str) -> tuple[Any, ...]:
    return (*(group[name] for name in by), group["other"], group["requests"], group["cost_usd"])


def by_ann(**more: Any) -> CallRecord:
    return call(**{"client_id": "ann", "cost_nano_usd": 3_000_000_000, **more})


async def test_the_dearest_groups_come_first_and_the_rest_is_one(
    either: Store, source: str
) -> None:
    bo = [call(client_id="bo", cost_nano_usd=1_000_000_000) for _ in range(2)]
    await either.write([by_ann(), *bo, call(client_id="cy", cost_nano_usd=5), call(), failed()])
    found = await ranking_of(either, "client", top=2)
    assert [spent(group, "client") for group in found] == [
        ("ann", False, 1, 3.0),
        ("bo", False, 2, 2.0),
        (None, True, 3, 0.000985005),
    ]
    found = await ranking_of(either, "client", order="requests", top=3)
    assert [group["client"] for group in found if not group["other"]] == ["bo", None, "ann"]
    assert [group["requests"] for group in found] == [2, 2, 1, 1]
    assert len(await ranking_of(either, "client", top=4)) == 4


async def test_calls_of_nobody_are_a_group_beside_those_of_somebody(
    either: Store, source: str
) -> None:
    await either.write(
        [
            call(agent_name="planner", total_duration_ms=100.0),
            call(tool_name="search", total_duration_ms=200.0),
            call(total_duration_ms=300.0),
            call(total_duration_ms=500.0, provider="gemini"),
        ]
    )
    found = await ranking_of(either, "agent", "provider", order="requests")
    shares = {(g["agent"], g["provider"]): (g["requests"], g["latency_ms"]["avg"]) for g in found}
    assert shares == {
        (None, "groq"): (2, 250.0),
        ("planner", "groq"): (1, 100.0),
        (None, "gemini"): (1, 500.0),
    }


async def test_what_calls_of_nobody_cost_is_unknown_where_no_price_is(
    either: Store, source: str
) -> None:
    await either.write([by_ann(), call(cost_nano_usd=None)])
    found = await ranking_of(either, "client")
    assert [(group["client"], group["cost_usd"]) for group in found] == [("ann", 3.0), (None, None)]


async def test_what_is_free_for_somebody_is_not_for_nobody(either: Store, source: str) -> None:
    await either.write([by_ann(cost_nano_usd=0), call(cost_nano_usd=None)])
    found = await ranking_of(either, "client")
    assert [(group["client"], group["cost_usd"]) for group in found] == [("ann", 0.0), (None, None)]


async def test_a_filter_for_somebody_leaves_nobody_out(either: Store, source: str) -> None:
    await either.write([by_ann(agent_name="planner"), call(agent_name="planner"), call(), by_ann()])
    found = await ranking_of(either, "client", agent=("planner",))
    assert [(group["client"], group["requests"]) for group in found] == [("ann", 1), (None, 1)]


async def test_a_call_is_in_the_group_of_each_of_its_tags(either: Store) -> None:
    await either.write(
        [
            by_ann(tags=written(("eu", "batch"))),
            by_ann(tags=written(("eu",))),
            call(tags=written(("rare",)), total_duration_ms=50.0),
            call(total_duration_ms=70.0),
        ]
    )
    found = await ranking_of(either, "tag", "client", order="requests", top=2)
    assert [spent(group, "tag", "client")[:4] for group in found] == [
        ("eu", "ann", False, 2),
        ("batch", "ann", False, 1),
        (None, None, True, 2),
    ]
    assert found[-1]["latency_ms"]["p50"] == 60.0
    found = await ranking_of(either, "tag", order="requests", tag=("eu",))
    assert [(group["tag"], group["requests"]) for group in found] == [("eu", 2), ("batch", 1)]


@pytest.mark.parametrize("name", ["user", "session"])
async def test_what_only_rows_know_is_asked_of_rows(either: Store, source: str, name: str) -> None:
    column = DIMENSIONS[name]
    await either.write([call(**{column: each}) for each in ("a", "b", "a", None)])
    found = await ranking_of(either, name, order="requests", top=1)
    assert [(group[name], group["requests"]) for group in found] == [("a", 2), (None, 2)]
    assert (await ranking_of(either, name, **{name: ("b",)}))[0]["requests"] == 1


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", DIMENSIONS)
async def test_a_blank_has_the_members_of_a_group(store: Store, name: str, order: str) -> None:
    await store.write([failed()])
    (group,) = await ranking_of(store, name, order=order)
    assert list(ranking.blank([name])) == list(group)


async def test_of_no_calls_there_are_no_groups(either: Store, source: str) -> None:
    assert await ranking_of(either, "client", "model") == []


NAMES = st.sampled_from([None, "a", "b", "c"])
CALLS = st.lists(
    st.fixed_dictionaries(
        {
            "client_id": NAMES,
            "agent_name": NAMES,
            "user_id": NAMES,
            "provider": st.sampled_from(["groq", "gemini", ""]),
            "key_id": NAMES,
            "status": st.sampled_from(["success", "error", "timeout", "cancelled", "rejected"]),
            "is_final": st.booleans(),
            "attempt": st.integers(1, 3),
            "total_tokens": st.none() | st.integers(0, 10**6),
            "cost_nano_usd": st.none() | st.integers(0, 10**12),
            "total_duration_ms": st.none() | st.floats(0, 1e6),
            "timestamp": st.integers(NOW - DAY, NOW),
        }
    ),
    max_size=12,
)


def known(groups: list[dict[str, Any]], name: str) -> Any:
    return round(sum(group[name] or 0 for group in groups), 9)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    calls=CALLS,
    by=st.lists(
        st.sampled_from(["client", "agent", "user", "provider", "key", "status"]),
        min_size=1,
        max_size=2,
        unique=True,
    ),
    top=st.integers(1, 4),
    order=st.sampled_from([*ORDERS]),
)
async def test_the_groups_and_the_rest_are_all_calls(
    store: Store, source: str, calls: list[dict[str, Any]], by: list[str], top: int, order: str
) -> None:
    async with (await store.writer()).begin() as connection:
        for table in (api_calls, *(grain.table for grain in GRAINS), rollup_series):
            await connection.execute(delete(table))
    await store.write([call(**each) for each in calls])
    window = Filters(start=NOW - 2 * DAY, end=NOW + DAY)
    async with store.reader() as connection:
        found = await ranked(connection, window, by, order, top)
        totals = (await whole(connection, window))["totals"]
    for name in SUMMED:
        assert known(found, name) == known([totals], name)
    alone = [group for group in found if not group["other"]]
    assert len(alone) <= top
    assert [group["other"] for group in found] == [False] * len(alone) + [True] * (
        len(found) - len(alone)
    )
    values = [group[order] or 0 for group in alone]
    assert values == sorted(values, reverse=True)
    places = [tuple(group[name] for name in by) for group in alone]
    assert len(set(places)) == len(places)
    for place, group in zip(places, alone, strict=True):
        mine = [each for each in calls if tuple(each.get(DIMENSIONS[name]) for name in by) == place]
        assert group["attempts"] == len(mine)


def test_the_dimensions_of_callers_can_be_grouped_by() -> None:
    assert set(CALLERS) <= set(DIMENSIONS.values())
