from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select, true

from proxy.store.engine import Store
from proxy.store.tables import api_calls
from proxy.store.tags import each, tagged
from proxy.tags import written
from tests.store.rows import call

LISTS: dict[str, tuple[str, ...]] = {
    "a": ("x", "y"),
    "b": ('say "x"', "\\", "[z]"),
    "c": (),
    "d": ("\N{SNOWMAN}", "x"),
}


async def found(store: Store, query: Any) -> list[tuple[Any, ...]]:
    await store.write([call(request_id=name, tags=written(tags)) for name, tags in LISTS.items()])
    async with store.reader() as connection:
        return [tuple(row) for row in await connection.execute(query)]


async def test_a_list_is_a_row_for_each_of_its_tags(either: Store) -> None:
    tag = each(api_calls.c.tags)
    query = select(api_calls.c.request_id, tag.c.value).select_from(api_calls).join(tag, true())
    every = [(name, tag) for name, tags in LISTS.items() for tag in tags]
    assert sorted(await found(either, query)) == sorted(every)


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (["x"], ["a", "d"]),
        (["y", "[z]"], ["a", "b"]),
        (["say"], []),
        (["\\"], ["b"]),
        (["\N{SNOWMAN}"], ["d"]),
        ([""], []),
    ],
)
async def test_a_row_is_found_by_any_of_its_tags(
    either: Store, wanted: list[str], names: list[str]
) -> None:
    query = select(api_calls.c.request_id).where(tagged(api_calls.c.tags, wanted))
    assert sorted(await found(either, query)) == [(name,) for name in names]
