from __future__ import annotations

from pathlib import Path

import pytest

from proxy.clock import now_ms
from proxy.store import records
from proxy.store.engine import Store
from proxy.store.tables import tps_metrics
from tests.store.rows import call, failed, read, rows

HOUR = 1_735_732_800_000  # 2025-01-01T12:00:00Z
MINUTE = 60_000


async def windows(path: Path, minutes: int) -> list[dict]:
    return rows(
        path,
        f"SELECT * FROM tps_metrics WHERE window_minutes = {minutes} ORDER BY window_start",
    )


def at(minute: float, speed: float | None = 100.0, **changes: object) -> object:
    return call(timestamp=HOUR + int(minute * MINUTE), tokens_per_second=speed, **changes)


async def test_ten_calls_of_a_minute_make_one_row_with_their_mean(store: Store, path: Path) -> None:
    speeds = [10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 100.0]
    await store.write([at(7.5, speed, output_tokens=6) for speed in speeds])
    (row,) = await windows(path, 1)
    assert (row["window_start"], row["sample_count"]) == (HOUR + 7 * MINUTE, 10)
    assert row["tps"] == pytest.approx(55.0)
    assert row["tps_p50"] == pytest.approx(55.0, rel=0.02)
    assert row["tps_p95"] == pytest.approx(95.5, rel=0.02)
    assert (row["tps_min"], row["tps_max"]) == (10.0, 100.0)
    assert (row["output_tokens"], row["aggregate_tps"]) == (60, 1.0)
    assert row["avg_ttft_ms"] == 200.0
    assert row["p95_ttft_ms"] == 200.0


async def test_windows_are_aligned_to_the_clock(store: Store, path: Path) -> None:
    await store.write([at(14.9), at(15.1)])
    starts = {
        size: [r["window_start"] for r in await windows(path, size)] for size in (1, 5, 15, 60)
    }
    assert starts == {
        1: [HOUR + 14 * MINUTE, HOUR + 15 * MINUTE],
        5: [HOUR + 10 * MINUTE, HOUR + 15 * MINUTE],
        15: [HOUR, HOUR + 15 * MINUTE],
        60: [HOUR],
    }


async def test_windows_are_as_long_as_was_asked_for(path: Path) -> None:
    store = Store(f"sqlite+aiosqlite:///{path}", tps_windows=[30, 2, 30])
    await store.write([at(13.5, 10.0), at(12, 30.0), at(40)])
    await store.write([at(13.6, 20.0)])
    await store.close()
    found = rows(path, "SELECT * FROM tps_metrics ORDER BY window_minutes, window_start")
    columns = ("window_minutes", "window_start", "tps", "sample_count")
    assert [tuple(row[name] for name in columns) for row in found] == [
        (2, HOUR + 12 * MINUTE, 20.0, 3),
        (2, HOUR + 40 * MINUTE, 100.0, 1),
        (30, HOUR, 20.0, 3),
        (30, HOUR + 30 * MINUTE, 100.0, 1),
    ]


async def test_the_running_window_goes_on(store: Store, path: Path) -> None:
    await store.write([at(1, 10.0)])
    await store.write([at(2, 20.0), at(3, 30.0)])
    (row,) = await windows(path, 60)
    assert (row["sample_count"], row["tps"]) == (3, pytest.approx(20.0))


async def test_a_restart_continues_the_window(store: Store, path: Path) -> None:
    await store.write([at(1, 10.0), at(1, None, output_tokens=40)])
    again = Store(f"sqlite+aiosqlite:///{path}")
    await again.write([at(1, 20.0)])
    await again.write([at(1, 30.0)])
    await again.close()
    (row,) = await windows(path, 1)
    assert (row["sample_count"], row["tps"]) == (3, pytest.approx(20.0))
    assert row["output_tokens"] == 500 * 3 + 40


async def test_a_late_call_finds_its_window_though_it_was_let_go(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.write([at(0, 10.0)])
    monkeypatch.setattr(records, "now_ms", lambda: now_ms() + 4_000_000)
    await store.write([at(600, 50.0)])
    names = [row["name"] for row in rows(path, "SELECT name FROM running_figures")]
    assert not [name for name in names if f'"tps","groq","llama",1,{HOUR}]' in name]
    await store.write([at(0, 30.0)])
    row = (await windows(path, 1))[0]
    assert (row["sample_count"], row["tps"]) == (2, pytest.approx(20.0))


async def test_without_a_speed_there_is_no_row(store: Store, path: Path) -> None:
    await store.write([at(0, None), failed()])
    assert await windows(path, 60) == []


async def test_models_are_kept_apart(store: Store, path: Path) -> None:
    await store.write([at(0), at(0, model="other"), at(0, provider="lab")])
    assert len(await windows(path, 60)) == 3


async def test_all_who_write_count_together(either: Store, other: Store) -> None:
    for speed in (10.0, 20.0, 30.0):
        await either.write([at(1, speed)])
        await other.write([at(2, speed), at(1, speed + 40)])
    windows = await read(either, tps_metrics, "window_minutes", "window_start")
    figures = [(w["sample_count"], w["tps"], w["tps_min"], w["output_tokens"]) for w in windows]
    minute, whole = (6, pytest.approx(40.0), 10.0, 3000), (9, pytest.approx(100 / 3), 10.0, 4500)
    assert figures == [minute, (3, pytest.approx(20.0), 10.0, 1500), whole, whole, whole]
