from __future__ import annotations

from typing import Any

import pytest

from proxy.store import compare, groups
from proxy.store.engine import Store
from tests.store.rows import anything, call, failed


async def compared(store: Store, by: str, **filters: Any) -> list[dict[str, Any]]:
    async with store.reader() as connection:
        return await compare.compared(connection, by, anything(**filters))


async def test_each_figure_is_told_beside_the_best(either: Store) -> None:
    slow = {"total_duration_ms": 3000.0, "time_to_first_token_ms": 50.0, "tokens_per_second": 25.0}
    await either.write(
        [
            *[call(total_duration_ms=1000.0) for _ in range(3)],
            call(provider="gemini", model="flash", **slow),
            failed(provider="gemini", model="flash", total_duration_ms=3000.0),
        ]
    )
    groq, gemini = await compared(either, "provider")
    assert (groq["provider"], gemini["provider"]) == ("groq", "gemini")
    assert (gemini["requests"], gemini["latency_ms"]["p50"]) == (2, 3000.0)
    assert groq["ratio"] == {
        "success_rate": 1.0,
        "latency_ms": {"avg": 1.0, "p50": 1.0, "p95": 1.0, "p99": 1.0},
        "ttft_ms": {"avg": 4.0, "p50": 4.0, "p95": 4.0, "p99": 4.0},
        "tokens_per_second": {"avg": 1.0, "p50": 1.0, "p95": 1.0, "p99": 1.0},
    }
    assert gemini["ratio"] == {
        "success_rate": 0.5,
        "latency_ms": {"avg": 3.0, "p50": 3.0, "p95": 3.0, "p99": 3.0},
        "ttft_ms": {"avg": 1.0, "p50": 1.0, "p95": 1.0, "p99": 1.0},
        "tokens_per_second": {"avg": 0.25, "p50": 0.25, "p95": 0.25, "p99": 0.25},
    }


async def test_a_model_at_two_providers_is_compared_with_itself(either: Store) -> None:
    refused = call(provider="", model="llama", key_id=None, status="rejected")
    await either.write([call(), call(), call(provider="lab"), call(model="qwen"), refused])
    found = await compared(either, "model", model=("llama",))
    assert [(row["provider"], row["model"]) for row in found] == [
        ("groq", "llama"),
        ("lab", "llama"),
    ]


async def test_one_alone_is_the_best_and_none_are_none(either: Store) -> None:
    assert await compared(either, "provider") == []
    await either.write([failed(total_duration_ms=500.0)])
    (row,) = await compared(either, "provider")
    assert row["ratio"]["latency_ms"] == {"avg": 1.0, "p50": 1.0, "p95": 1.0, "p99": 1.0}
    assert row["ratio"]["ttft_ms"] == {"avg": None, "p50": None, "p95": None, "p99": None}
    assert row["ratio"]["success_rate"] == 1.0  # all are at 0, and none is better


@pytest.mark.parametrize(
    ("rates", "ratios"),
    [
        ([0.5, 1.0], [0.5, 1.0]),
        ([None, 0.5], [None, 1.0]),
        ([None, None], [None, None]),
        ([0.0, 0.0], [1.0, 1.0]),
    ],
)
def test_the_most_is_the_best_rate(rates: list[float | None], ratios: list[float | None]) -> None:
    rows = [groups.NOTHING | {"success_rate": rate} for rate in rates]
    found = [row["ratio"]["success_rate"] for row in compare.beside_the_best(rows)]
    assert found == ratios


def test_nothing_is_a_multiple_of_zero() -> None:
    rows = [groups.NOTHING | {"latency_ms": dict.fromkeys(groups.NO_VALUES, v)} for v in (0.0, 2.0)]
    found = [row["ratio"]["latency_ms"]["p50"] for row in compare.beside_the_best(rows)]
    assert found == [1.0, None]


def test_the_blank_has_the_members_of_a_row() -> None:
    (row,) = compare.beside_the_best([groups.NOTHING])
    assert row["ratio"] == compare.NO_RATIOS
