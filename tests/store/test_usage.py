from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from proxy.store.engine import Store
from proxy.store.usage import Used, UsedBy, used, used_by
from tests.store.rows import call, failed, plan

NOW = 1_735_732_800_000
MINUTE, DAY = 60, 86_400


@pytest.fixture
def store(either: Store) -> Store:
    return either


async def found(store: Store, seconds: int) -> list[Used]:
    async with store.reader() as connection:
        return list(await used(connection, seconds, NOW))


def made(ago: float, **changes: Any) -> Any:
    """A call that began so many seconds ago."""
    values = {"key_id": "a", "account": "org", "timestamp": NOW - round(ago * 1000)}
    return call(**{**values, **changes})


async def test_calls_of_one_second_are_one_count(store: Store) -> None:
    await store.write([made(10.0), made(9.5), made(9.1), made(8.9)])
    assert await found(store, MINUTE) == [
        Used("groq", "a", "org", "llama", NOW - 10_000, 3, 4500),
        Used("groq", "a", "org", "llama", NOW - 8900, 1, 1500),
    ]


async def test_a_sum_that_no_integer_of_the_database_holds_is_told(store: Store) -> None:
    await store.write([made(10.0, total_tokens=2**62), made(9.5, total_tokens=2**62)])
    assert [use.tokens for use in await found(store, MINUTE)] == [2**63]


async def test_calls_of_one_minute_are_one_count_of_a_day(store: Store) -> None:
    await store.write([made(3600.0), made(3541.0), made(3539.0), made(86_399.0)])
    assert await found(store, DAY) == [
        Used("groq", "a", "org", "llama", NOW - 86_399_000, 1, 1500),
        Used("groq", "a", "org", "llama", NOW - 3_600_000, 2, 3000),
        Used("groq", "a", "org", "llama", NOW - 3_539_000, 1, 1500),
    ]


@pytest.mark.parametrize(("seconds", "count"), [(MINUTE, 1), (DAY, 2)])
async def test_what_is_older_than_the_window_does_not_count(
    store: Store, seconds: int, count: int
) -> None:
    await store.write([made(60.0), made(60.1), made(86_400.1)])
    assert sum(use.requests for use in await found(store, seconds)) == count


async def test_a_key_that_was_not_let_in_used_up_nothing(store: Store) -> None:
    refused = made(5.0, status="error", error_reason="authentication", total_tokens=None)
    await store.write([refused, made(5.0)])
    assert [use.requests for use in await found(store, MINUTE)] == [1]


async def test_providers_keys_groups_and_models_are_told_apart_and_the_oldest_comes_first(
    store: Store,
) -> None:
    await store.write(
        [
            made(5.0),
            made(5.0, model="other"),
            made(6.0, key_id="b", account="org-b"),
            made(7.0, key_id=None, account=None),
            made(5.0, provider="lab"),
        ]
    )
    uses = await found(store, MINUTE)
    assert [use.timestamp for use in uses] == [NOW - 7000, NOW - 6000, *[NOW - 5000] * 3]
    assert [(use.key_id, use.account) for use in uses[:2]] == [(None, None), ("b", "org-b")]
    assert {(use.provider, use.model) for use in uses[2:]} == {
        *(("groq", "llama"), ("groq", "other"), ("lab", "llama")),
    }


async def test_an_attempt_that_failed_was_a_call_and_a_refused_request_was_none(
    store: Store,
) -> None:
    refused = failed("rate_limit", timestamp=NOW - 5000, key_id="a", account="org")
    never = made(5.0, status="rejected", error_reason="no_keys", key_id=None, account=None)
    await store.write([refused, never])
    assert await found(store, MINUTE) == [Used("groq", "a", "org", "llama", NOW - 5000, 1, 0)]


async def test_only_the_rows_of_the_window_are_looked_at(path: Path) -> None:
    """On SQLite; PostgreSQL plans by what the table holds."""
    store = Store(f"sqlite+aiosqlite:///{path}")
    await store.open()
    async with store.reader() as connection:

        class Watched:
            """The connection, which remembers what it was asked."""

            dialect = connection.dialect
            statement: Any = None

            async def execute(self, statement: Any) -> Any:
                self.statement = statement
                return await connection.execute(statement)

        watched = Watched()
        await used(watched, DAY, NOW)  # type: ignore[arg-type]
        steps = await plan(connection, watched.statement)
    assert "SEARCH api_calls USING INDEX ix_api_calls_timestamp (timestamp>?)" in steps
    await store.close()


async def test_a_clients_requests_are_counted_once_and_their_tokens_all(store: Store) -> None:
    await store.write(
        [
            made(10.0, client_id="ck-1", request_id="r", is_final=False, total_tokens=5),
            made(9.9, client_id="ck-1", request_id="r", attempt=2, total_tokens=7),
            made(30.0, client_id="ck-2", total_tokens=None),
            made(5.0, client_id="ck-1", status="rejected", total_tokens=None),
            made(5.0, client_id="ck-3"),
            made(5.0),
            made(61.0, client_id="ck-1"),
        ]
    )
    async with store.reader() as connection:
        found = list(await used_by(connection, "client", ["ck-1", "ck-2"], MINUTE, NOW))
        hour = await used_by(connection, "client", ["ck-1"], 3600, NOW)
    assert found == [
        UsedBy("ck-2", NOW - 30_000, 1, 0),
        UsedBy("ck-1", NOW - 10_000, 1, 12),
    ]
    assert sum(use.requests for use in hour) == 2


async def test_what_no_gateway_sent_is_not_counted(store: Store) -> None:
    await store.write(
        [
            made(5, request_id="a", user_id="ann", endpoint="/track/inference"),
            made(5, request_id="b", user_id="ann", endpoint="python"),
            made(5, request_id="c", user_id="ann", status="cancelled", response_time_ms=None),
            made(5, request_id="d", user_id="ann", status="cancelled", response_time_ms=3.0),
        ]
    )
    async with store.reader() as connection:
        found = await used_by(connection, "user", ["ann"], MINUTE, NOW)
    assert [use.requests for use in found] == [1]


async def test_users_and_tags_are_counted_by_their_names(store: Store) -> None:
    await store.write(
        [
            made(30, request_id="a", user_id="ann", tags='["x","y"]', total_tokens=5),
            made(20, request_id="b", user_id="bo", tags='["y"]', total_tokens=7),
            made(10, request_id="c", user_id="ann", total_tokens=9),
            made(70, request_id="d", user_id="ann", tags='["x"]'),
        ]
    )
    async with store.reader() as connection:
        users = await used_by(connection, "user", ["ann", "cy"], MINUTE, NOW)
        tags = await used_by(connection, "tag", ["x", "y", "z"], MINUTE, NOW)
    assert users == [UsedBy("ann", NOW - 30_000, 1, 5), UsedBy("ann", NOW - 10_000, 1, 9)]
    assert sorted(tags) == [
        UsedBy("x", NOW - 30_000, 1, 5),
        UsedBy("y", NOW - 30_000, 1, 5),
        UsedBy("y", NOW - 20_000, 1, 7),
    ]
