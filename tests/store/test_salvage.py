from __future__ import annotations

import logging
from pathlib import Path

import pytest

from proxy.store.engine import Store
from proxy.store.salvage import mend
from tests.store.rows import call, rows


async def test_values_no_database_takes_cost_only_themselves(store: Store, path: Path) -> None:
    bad = call(request_id="bad", seed=2**70, finish_reason="half \ud800", output_tokens=7)
    await store.write([call() for _ in range(5)] + [bad] + [call() for _ in range(6)])
    assert len(rows(path, "SELECT * FROM api_calls")) == 12
    (kept,) = rows(path, "SELECT * FROM api_calls WHERE request_id = 'bad'")
    assert (kept["seed"], kept["finish_reason"], kept["output_tokens"]) == (None, "half ?", 7)
    assert store.refused == 0


async def test_a_row_that_cannot_be_is_left_out_and_counted(
    store: Store, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        await store.write([call(), call(status="wonderful"), call()])
    assert len(rows(path, "SELECT * FROM api_calls")) == 2
    assert store.refused == 1
    assert "a CallRecord cannot be stored: CHECK constraint failed" in caplog.text


def test_a_good_record_is_not_copied() -> None:
    record = call()
    assert mend(record) is record
