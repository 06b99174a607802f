"""What calls would have cost elsewhere, on a real gateway."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from tests.gateway import Gateway, lab
from tests.store.databases import REACHABLE
from tests.upstream import Upstream, completion

Start = Callable[..., Awaitable[Gateway]]


@pytest.mark.parametrize("kind", REACHABLE)
async def test_each_alias_tells_what_its_targets_would_have_cost(
    kind: str, upstream: Upstream, start: Start
) -> None:
    upstream.script = completion(prompt=1000, output=500)
    names = ("lab", "dear", "new")
    gateway = await start(
        {
            "providers": {name: lab(upstream.url) for name in names},
            "models": {
                "fast": {"targets": ["dear/json", "lab/json", "new/json"]},
                "idle": {"targets": ["new/json"]},
            },
            "prices": {
                "lab/*": {"input": 1, "output": 2},
                "dear/*": {"input": 10, "output": 20},
            },
        },
        kind=kind,
    )
    for model in ("fast", "fast", "lab/json", "nobody/json"):
        await gateway.chat(model)
    await gateway.rows(4)
    found = (await gateway.client.get("/stats/savings?period=30d")).json()
    assert [each["alias"] for each in found["data"]] == ["fast", "idle"]
    fast, idle = found["data"]
    assert {name: fast[name] for name in fast if name != "targets"} == {
        "alias": "fast",
        "attempts": 2,
        "input_tokens": 2000,
        "output_tokens": 1000,
        "cost_usd": 0.04,
        "unpriced": 0,
        "cheapest": "lab/json",
        "cheapest_usd": 0.004,
        "dearest": "dear/json",
        "dearest_usd": 0.04,
        "possible_usd": 0.036,
        "saved_usd": 0.0,
    }
    assert [
        (each["provider"], each["served"], each["cost_usd"], each["cost_source"])
        for each in fast["targets"]
    ] == [("dear", 2, 0.04, "config"), ("lab", 0, 0.004, "config"), ("new", 0, None, "none")]
    assert (idle["attempts"], idle["cost_usd"], idle["cheapest_usd"]) == (0, 0.0, 0.0)
    assert found["totals"] == {
        **{name: fast[name] for name in ("attempts", "input_tokens", "output_tokens", "cost_usd")},
        **{name: fast[name] for name in fast if name.endswith("_usd")},
        "unpriced": 0,
    }
    (row,) = gateway.select(
        "SELECT sum(cost_estimate_usd) AS usd FROM api_calls WHERE requested_model = 'fast'"
    )
    assert row["usd"] == pytest.approx(fast["cost_usd"])
    none = await gateway.client.get("/stats/savings?provider=new")
    assert none.json()["totals"]["attempts"] == 0


async def test_it_is_a_list_like_the_others(gateway: Gateway) -> None:
    found = (await gateway.client.get("/stats/savings")).json()
    assert (found["data"], found["next_cursor"]) == ([], None)
    assert found["totals"]["cost_usd"] == 0
    head = await gateway.client.get("/stats/savings", headers={"accept": "text/csv"})
    assert head.text.startswith("alias,attempts,")
    wrong = await gateway.client.get("/stats/savings?period=1y")
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (422, "period")
