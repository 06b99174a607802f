from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.store.costs import day, unpriced
from proxy.store.engine import Store
from tests.store.rows import call, failed, rows

NOON = 1_735_732_800_000  # 2025-01-01T12:00:00Z


async def test_one_row_a_day_and_key_even_without_agent(store: Store, path: Path) -> None:
    for _ in range(5):
        await store.write([call(timestamp=NOON)])
    (row,) = rows(path, "SELECT * FROM daily_costs")
    assert row == {
        "date": "2025-01-01",
        "provider": "groq",
        "model_name": "llama",
        "agent_name": "",
        "tool_name": "",
        "client_id": "",
        "invocations": 5,
        "successes": 5,
        "failures": 0,
        "input_tokens": 5000,
        "output_tokens": 2500,
        "total_tokens": 7500,
        "total_cost_usd": 0.004925,
        "unpriced_calls": 0,
    }


async def test_dollars_add_up_exactly(store: Store, path: Path) -> None:
    for _ in range(30):
        await store.write([call(timestamp=NOON, cost_nano_usd=100_000_001)])
    (row,) = rows(path, "SELECT total_cost_usd FROM daily_costs")
    assert row["total_cost_usd"] == 3.00000003


async def test_a_failed_attempt_costs_but_is_no_invocation(store: Store, path: Path) -> None:
    first = failed(request_id="r", is_final=False, cost_nano_usd=5, total_tokens=3, timestamp=NOON)
    await store.write([first, call(request_id="r", attempt=2, timestamp=NOON)])
    (row,) = rows(path, "SELECT * FROM daily_costs")
    assert (row["invocations"], row["successes"], row["failures"]) == (1, 1, 0)
    assert row["total_cost_usd"] == 0.000985005
    assert row["total_tokens"] == 1503


def test_what_has_no_price_is_known() -> None:
    assert unpriced(call(cost_nano_usd=None))
    assert unpriced(failed(total_tokens=1))
    assert not unpriced(failed())
    assert not unpriced(call(cost_nano_usd=0))


def test_days_are_utc() -> None:
    assert day(NOON + 43_199_999) == "2025-01-01"
    assert day(NOON + 43_200_000) == "2025-01-02"


CALLS = st.builds(
    lambda make, **values: make(**values),
    st.sampled_from((call, failed)),
    timestamp=st.integers(NOON - 10**8, NOON + 10**8),
    provider=st.sampled_from(("groq", "gemini")),
    agent_name=st.sampled_from((None, "aider")),
    is_final=st.booleans(),
    cost_nano_usd=st.none() | st.integers(0, 10**10),
    output_tokens=st.none() | st.integers(0, 10**6),
)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(batch=st.lists(CALLS, max_size=20))
async def test_the_sums_are_those_of_the_rows(store: Store, path: Path, batch: list) -> None:
    await store.write(batch)
    summed = rows(
        path,
        """
        SELECT date(timestamp / 1000, 'unixepoch') AS date, provider, model AS model_name,
          coalesce(agent_name, '') AS agent_name, sum(is_final) AS invocations,
          sum(is_final AND success) AS successes,
          sum(is_final AND status IN ('error', 'timeout')) AS failures,
          coalesce(sum(output_tokens), 0) AS output_tokens,
          coalesce(sum(round(cost_estimate_usd * 1e9)), 0) AS nano
        FROM api_calls GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
        """,
    )
    kept = rows(
        path,
        """
        SELECT date, provider, model_name, agent_name, invocations, successes, failures,
          output_tokens, round(total_cost_usd * 1e9) AS nano
        FROM daily_costs ORDER BY 1, 2, 3, 4
        """,
    )
    assert kept == summed
