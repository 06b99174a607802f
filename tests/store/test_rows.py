from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from proxy.clock import now_ms
from proxy.errors import ErrorReason
from proxy.store.engine import Store
from proxy.store.rows import COLUMNS, THOUSANDTHS, WORDS, kept, row
from proxy.store.sets import COST_SOURCES, STATUSES, USAGE_SOURCES
from tests.store.rows import call, rows

CLOSED = {
    "status": STATUSES,
    "error_reason": tuple(ErrorReason),
    "usage_source": USAGE_SOURCES,
    "cost_source": COST_SOURCES,
}


def put(connection: sqlite3.Connection, *calls: Any) -> None:
    columns = kept(calls)
    places = ", ".join("?" * len(columns))
    statement = f"INSERT INTO api_calls ({', '.join(columns)}) VALUES ({places})"
    connection.executemany(statement, list(zip(*columns.values(), strict=True)))


def shown(path: Path, *calls: Any) -> list[tuple[Any, ...]]:
    """The calls as another connection sees them, in the order of ``COLUMNS``."""
    with closing(sqlite3.connect(path)) as connection:
        put(connection, *calls)
        found = connection.execute(f"SELECT {', '.join(COLUMNS)} FROM api_calls ORDER BY id")
        return found.fetchall()  # and nothing of it stays


@pytest.mark.parametrize("column", WORDS)
def test_every_word_is_shown_and_a_number_is_kept(path: Path, column: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        for word in WORDS[column]:
            put(connection, call(request_id=word, **{column: word}))
        sql = f"SELECT request_id, {column}, typeof({column}_kept) FROM api_calls ORDER BY id"
        found = connection.execute(sql).fetchall()
    assert found == [(word, word, "integer") for word in WORDS[column]]


@pytest.mark.parametrize("column", sorted(WORDS))
@pytest.mark.parametrize("word", ["", "0", "4", "Stop", "/v1/Chat/completions", "'", "\N{SNOWMAN}"])
def test_any_other_word_is_shown_too(path: Path, column: str, word: str) -> None:
    record = call(**{column: word})
    assert shown(path, record) == [row(record)]


@pytest.mark.parametrize("column", CLOSED)
@pytest.mark.parametrize("word", ["wonderful", "0", ""])
async def test_a_closed_set_lets_no_other_word_in(
    store: Store, path: Path, column: str, word: str
) -> None:
    await store.write([call(**{column: word})])
    assert (store.refused, rows(path, "SELECT * FROM api_calls")) == (1, [])


@pytest.mark.parametrize("asked", [None, "llama", "groq/llama", "fast", "0", "1", "groq/llama/x"])
def test_the_model_that_was_asked_for_is_shown(path: Path, asked: str | None) -> None:
    record = call(requested_model=asked)
    assert shown(path, record) == [row(record)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(
        st.none() | st.floats(allow_nan=False) | st.integers(0, 10**9).map(lambda n: n / 1000),
        min_size=len(THOUSANDTHS),
        max_size=len(THOUSANDTHS),
    ),
    st.none() | st.integers(0, 10**15),
)
@example([0.0, 0.1 + 0.2, -0.001, 990.5, 1e12, 1e22, 5e-324, *[None] * 14], 0)
def test_every_number_is_shown_as_it_was(
    path: Path, values: list[float | None], cost: int | None
) -> None:
    record = call(
        **dict(zip(THOUSANDTHS, values, strict=True)),
        cost_nano_usd=cost,
        list_cost_nano_usd=cost,
    )
    assert shown(path, record) == [row(record)]


def test_a_duration_is_kept_in_microseconds() -> None:
    record = call(ttfb_ms=990.125, queue_time_ms=1 / 3)
    columns = kept([record])
    assert repr(columns["ttfb_ms_kept"]) == "[990125]"
    assert columns["queue_time_ms_kept"] == [1 / 3]


def test_a_column_that_no_call_fills_is_left_out() -> None:
    with_seed, without = call(seed=7), call(seed=None)
    assert "seed" not in kept([without, without])
    assert kept([without, with_seed])["seed"] == (None, 7)


PLAIN = {
    "requested_model": "groq/llama-3.1-8b-instant",
    "model": "llama-3.1-8b-instant",
    "account": "org-a",
    "is_stream": False,
    "finish_reason": "stop",
    **dict.fromkeys(("time_to_first_token_ms", "tokens_per_second")),
    **dict.fromkeys(("queue_time_ms", "overhead_ms", "overhead_before_ms"), 0.104),
    **dict.fromkeys(("overhead_after_ms", "processing_time_ms", "ttfb_ms"), 812.309),
    "list_cost_nano_usd": 985_000,
    "price_version": "genai-prices 0.2.3",
    **{"message_count": 3, "prompt_length": 4000, "response_length": 2000},
}
RICH = {
    **PLAIN,
    **dict.fromkeys(THOUSANDTHS, 812.309),
    **dict.fromkeys(("temperature", "top_p", "frequency_penalty", "presence_penalty"), 0.7),
    **dict.fromkeys(("top_k", "stop_count", "tool_count", "n", "stall_count"), 3),
    **{"max_tokens": 1024, "seed": 2**31 - 1, "reasoning_effort": "low", "chunk_count": 500},
    **dict.fromkeys(("cached_tokens", "cache_write_tokens", "reasoning_tokens"), 300),
    "is_stream": True,
    "tokens_per_second": 100 / 3,
    "model_version": "fp_f757f4b0bf",
    "upstream_request_id": "req_01k7x0d6n8e7g8k9v1r5m6n7p8",
    **{"client_id": "master", "agent_name": "researcher", "tool_name": "search"},
    "session_id": "0b5ce6e8-5f0a-4a0c-9f5d-6d2a4f0c1b7e",
    "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
}
KNOWN = {**RICH, "user_id": "u-18273645", "tags": '["team-a","nightly"]'}


@pytest.mark.parametrize(("what", "most"), [(PLAIN, 350), (RICH, 600), (KNOWN, 650)])
async def test_a_call_takes_little_room(
    store: Store, path: Path, what: dict[str, Any], most: int
) -> None:
    """Its indexes and rollups included."""

    def size() -> int:
        [row] = rows(
            path, "SELECT page_count * page_size AS size FROM pragma_page_count, pragma_page_size"
        )
        return int(row["size"])

    now = now_ms()
    before = size()
    for batch in range(40):
        await store.write([call(timestamp=now + batch * 100 + n, **what) for n in range(100)])
    assert (size() - before) / 4000 < most


def test_what_programs_ask_for_most_is_seen_by_every_kind_of_program(path: Path) -> None:
    """Computed columns are not shown by ``PRAGMA table_info``, which many go by."""
    seen = {row["name"]: row["type"] for row in rows(path, "PRAGMA table_info(api_calls)")}
    for name in ("status", "error_reason", "usage_source", "cost_source", "key_id", "metadata"):
        assert seen[name] == "TEXT"
    for name in ("response_time_ms", "total_duration_ms", "time_to_first_token_ms"):
        assert seen[name] == seen["tokens_per_second"] == seen["cost_estimate_usd"] == "REAL"
