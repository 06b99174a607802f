from __future__ import annotations

from pathlib import Path

import pytest

from proxy.clock import now_ms
from proxy.reasons import FAILURES
from proxy.store import records
from proxy.store.engine import Store
from proxy.store.tables import provider_health
from tests.store.rows import call, failed, read, rows


async def health(path: Path) -> dict:
    (row,) = rows(path, "SELECT * FROM provider_health")
    return row


async def test_three_failures_are_ill_and_one_success_is_well(store: Store, path: Path) -> None:
    now = now_ms()
    await store.write([call(timestamp=now - 9000, http_status=200)])
    await store.write([failed("server_error", timestamp=now - 8000 + i) for i in range(3)])
    row = await health(path)
    assert (row["consecutive_failures"], row["is_healthy"]) == (3, 0)
    assert (row["failure_rate"], row["sample_count"], row["window_seconds"]) == (0.75, 4, 300)
    assert row["last_success_time"] == now - 9000 + 1000
    assert row["last_failure_time"] == row["last_check_time"] == now - 8000 + 2 + 1000
    assert (row["last_error_reason"], row["last_http_status"]) == ("server_error", 500)
    await store.write([call(timestamp=now)])
    row = await health(path)
    assert (row["consecutive_failures"], row["is_healthy"]) == (0, 1)
    assert row["failure_rate"] == 0.6
    assert row["last_success_time"] == now + 1000


@pytest.mark.parametrize(
    "reason", ["rate_limit", "authentication", "invalid_request", "client_closed", "credit"]
)
async def test_what_the_provider_does_not_answer_for_counts_neither_way(
    store: Store, path: Path, reason: str
) -> None:
    await store.write([failed()])
    await store.write([failed(reason)])
    row = await health(path)
    assert (row["consecutive_failures"], row["sample_count"]) == (1, 1)


@pytest.mark.parametrize("reason", sorted(FAILURES))
async def test_what_it_does_answer_for_counts(store: Store, path: Path, reason: str) -> None:
    await store.write([failed(reason)])
    assert (await health(path))["consecutive_failures"] == 1


async def test_latency_moves_towards_the_newest(store: Store, path: Path) -> None:
    await store.write([call(response_time_ms=100.0, time_to_first_token_ms=None)])
    await store.write([call(response_time_ms=200.0, time_to_first_token_ms=50.0)])
    row = await health(path)
    assert row["avg_latency_ms"] == pytest.approx(120.0)
    assert row["avg_ttft_ms"] == 50.0


async def test_a_restart_goes_on_with_what_was_known(store: Store, path: Path) -> None:
    await store.write([call(), failed(), failed()])
    again = Store(f"sqlite+aiosqlite:///{path}")
    await again.write([failed()])
    await again.close()
    row = await health(path)
    assert (row["consecutive_failures"], row["is_healthy"]) == (3, 0)
    assert (row["sample_count"], row["failure_rate"]) == (4, 0.75)
    assert row["avg_latency_ms"] == 990.5


async def test_outcomes_leave_the_window(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = now_ms()
    await store.write([failed(timestamp=now - 400_000), failed(timestamp=now), call(timestamp=now)])
    row = await health(path)
    assert (row["sample_count"], row["failure_rate"]) == (2, 0.5)
    monkeypatch.setattr(records, "now_ms", lambda: now + 400_000)
    await store.write([call(timestamp=now + 399_000)])
    row = await health(path)
    assert (row["sample_count"], row["failure_rate"]) == (1, 0.0)


async def test_all_who_write_count_together(either: Store, other: Store) -> None:
    for _ in range(3):
        await either.write([failed()])
        await other.write([failed(model="other"), failed()])
    first, second = await read(either, provider_health, "model")
    assert (first["model"], first["consecutive_failures"], first["sample_count"]) == ("llama", 6, 6)
    assert (second["model"], second["sample_count"]) == ("other", 3)
