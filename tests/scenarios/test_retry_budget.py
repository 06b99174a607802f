"""An outage is not multiplied: retries are a share of the requests."""

from __future__ import annotations

import asyncio
from collections import Counter

from tests.gateway import lab
from tests.scenarios.views import Start
from tests.upstream import Upstream, error

REQUESTS = 40
BUDGET = 10
"""The least in ten seconds; a fifth of the requests is fewer."""


async def test_an_outage_costs_the_upstreams_a_few_retries_and_no_more(
    upstream: Upstream, start: Start
) -> None:
    upstream.by_key["sk-one-1111"] = error(500, "one is down")
    upstream.by_key["sk-two-2222"] = error(500, "two is down")
    providers = {"one": lab(upstream.url, "sk-one-1111"), "two": lab(upstream.url, "sk-two-2222")}
    routing = {"breaker": {"failures": 0}}  # else that would stop them before the budget does
    models = {"best": {"targets": ["one/m", "two/m"]}}
    gateway = await start({"providers": providers, "models": models, "routing": routing})
    answers = await asyncio.gather(*[gateway.chat("best") for _ in range(REQUESTS)])
    assert len(upstream.calls) == REQUESTS + BUDGET
    told = Counter((got.status_code, got.headers["x-tollkeeper-provider"]) for got in answers)
    assert told == {(502, "one"): REQUESTS - BUDGET, (502, "two"): BUDGET}
    for got in answers:
        provider = got.headers["x-tollkeeper-provider"]
        assert f"{provider}/m" in got.json()["error"]["message"]
        assert f"{provider} is down" in got.json()["error"]["message"]
    rows = await gateway.rows(REQUESTS + BUDGET)
    assert sum(row["is_final"] for row in rows) == REQUESTS
    assert {row["error_reason"] for row in rows} == {"server_error"}


async def test_the_share_of_the_requests_counts_where_it_is_more_than_the_least(
    upstream: Upstream, start: Start
) -> None:
    upstream.script = error(500, "down")
    provider = lab(upstream.url, "sk-1111", "sk-2222")
    routing = {"breaker": {"failures": 0}, "retry_budget": {"minimum": 2}}
    gateway = await start({"providers": {"lab": provider}, "routing": routing})
    await asyncio.gather(*[gateway.chat("lab/m") for _ in range(REQUESTS)])
    assert 2 < len(upstream.calls) - REQUESTS <= REQUESTS / 5


async def test_refusals_of_keys_are_retried_within_the_budget_too(
    upstream: Upstream, start: Start
) -> None:
    """Ten keys that all fail: a single request may not ask each of them."""
    upstream.script = error(500, "down")
    secrets = [f"sk-number-{number}" for number in range(10)]
    routing = {"breaker": {"failures": 0}, "retry_budget": {"minimum": 3}}
    gateway = await start({"providers": {"lab": lab(upstream.url, *secrets)}, "routing": routing})
    assert (await gateway.chat("lab/m")).status_code == 502
    assert len(upstream.calls) == 1 + 3
    assert (await gateway.chat("lab/m")).status_code == 502
    assert len(upstream.calls) == 2 + 3
