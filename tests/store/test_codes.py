from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from proxy.errors import ErrorReason
from proxy.store import codes
from proxy.store.engine import Store
from proxy.store.records import COLUMNS, row
from proxy.store.tables import COST_SOURCES, STATUSES, USAGE_SOURCES
from tests.store.rows import call, rows

CLOSED = {
    "status": STATUSES,
    "error_reason": tuple(ErrorReason),
    "usage_source": USAGE_SOURCES,
    "cost_source": COST_SOURCES,
}
OPEN = codes.WORDS.keys() - CLOSED.keys()
_INSERT = (
    f"INSERT INTO api_calls ({', '.join(codes.COLUMNS)})"
    f" VALUES ({', '.join('?' * len(codes.COLUMNS))})"
)


def shown(path: Path, *calls: Any) -> list[tuple[Any, ...]]:
    """The calls as another connection sees them, in the order of ``COLUMNS``."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executemany(_INSERT, [codes.packed(each) for each in calls])
        found = connection.execute(f"SELECT {', '.join(COLUMNS)} FROM api_calls ORDER BY id")
        return found.fetchall()  # and nothing of it stays


@pytest.mark.parametrize("column", CLOSED)
def test_the_words_of_a_closed_set_are_all_of_it(column: str) -> None:
    assert sorted(codes.WORDS[column]) == sorted(map(str, CLOSED[column]))


@pytest.mark.parametrize("column", codes.WORDS)
def test_every_word_is_shown_and_a_number_is_kept(path: Path, column: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        for word in codes.WORDS[column]:
            made = codes.packed(call(request_id=word, **{column: word}))
            connection.execute(_INSERT, made)
        sql = f"SELECT request_id, {column}, typeof({column}_kept) FROM api_calls ORDER BY id"
        found = connection.execute(sql).fetchall()
    assert found == [(word, word, "integer") for word in codes.WORDS[column]]


@pytest.mark.parametrize("column", sorted(OPEN))
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
        min_size=len(codes.THOUSANDTHS),
        max_size=len(codes.THOUSANDTHS),
    ),
    st.none() | st.integers(0, 10**15),
)
@example([0.0, 0.1 + 0.2, -0.001, 990.5, 1e12, 1e22, 5e-324, *[None] * 17], 0)
def test_every_number_is_shown_as_it_was(
    path: Path, values: list[float | None], cost: int | None
) -> None:
    record = call(
        **dict(zip(codes.THOUSANDTHS, values, strict=True)),
        cost_nano_usd=cost,
        list_cost_nano_usd=cost,
    )
    assert shown(path, record) == [row(record)]


def test_a_duration_is_kept_in_microseconds() -> None:
    record = call(response_time_ms=990.125, total_duration_ms=1 / 3)
    kept = dict(zip(codes.COLUMNS, codes.packed(record), strict=True))
    assert repr(kept["response_time_ms_kept"]) == "990125"
    assert kept["total_duration_ms_kept"] == 1 / 3
