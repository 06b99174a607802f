"""What a call would cost, asked before it is made, and what a client is willing to pay for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.gateway import Gateway, lab, running
from tests.upstream import Upstream, completion, error, upstream_server

pytestmark = pytest.mark.asyncio(loop_scope="module")

MASTER = "tk-master-of-this-house"
LLAMA = "llama-3.3-70b-versatile"  # 0.59 and 0.79 dollars a million
Place = tuple[Gateway, Upstream]
PROMPT = [{"role": "user", "content": "x" * 4 * 993}]  # and 7 tokens of a chat template: 1000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    async with upstream_server() as upstream:
        gift = [{"name": "g", "value": "sk-gift-1", "free_tier": True}, {"value": "sk-paid-1"}]
        config = {
            "auth": {"master_key": MASTER},
            "providers": {
                "lab": lab(upstream.url),
                "dear": lab(upstream.url),
                "new": lab(upstream.url),
                "gift": {"type": "openai", "base_url": upstream.url, "keys": gift},
                "groq": {"base_url": upstream.url, "keys": [{"value": "gsk-1111"}]},
            },
            "models": {
                "fast": {"targets": ["new/json", "dear/json", "lab/json"]},
                "cheap": {"targets": ["dear/json", f"groq/{LLAMA}"], "strategy": "lowest_cost"},
                "turns": {"targets": ["lab/a", "lab/b"], "strategy": "round_robin"},
            },
            "prices": {
                "lab/*": {"input": 1, "output": 2},
                "dear/*": {"input": 10, "output": 20},
                "gift/*": {"input": 1, "output": 2},
            },
        }
        async with running(tmp_path_factory.mktemp("estimates"), config) as gateway:
            yield gateway, upstream


@pytest.fixture
def gateway(place: Place) -> Gateway:
    place[1].reset()
    place[1].script = completion("Hi")
    return place[0]


async def estimate(gateway: Gateway, model: str, **more: Any) -> dict[str, Any]:
    body = {"model": model, "messages": PROMPT, **more}
    answer = await gateway.client.post("/v1/cost-estimate", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def pay(gateway: Gateway, model: str, most: str, **more: Any) -> httpx.Response:
    headers = {"x-max-cost-usd": most}
    return await gateway.chat(model, PROMPT[0]["content"], headers=headers, **more)


async def test_an_estimate_tells_of_each_target_in_the_order_of_the_plan(
    gateway: Gateway, place: Place
) -> None:
    before = gateway.select("SELECT count(*) AS n FROM api_calls")
    found = await estimate(gateway, "fast", max_tokens=500)
    targets = found.pop("targets")
    assert found == {
        "model": "fast",
        "input_tokens": 1000,
        "counted_by": "heuristic",
        "max_output_tokens": 500,
        "assumed_output_tokens": None,
    }
    assert [each["provider"] for each in targets] == ["new", "dear", "lab"]
    assert targets[2] == {
        "provider": "lab",
        "model": "json",
        "input_price_per_mtok": 1.0,
        "output_price_per_mtok": 2.0,
        "input_cost_usd": 0.001,
        "output_cost_usd": 0.001,
        "total_usd": 0.002,
        "cost_source": "config",
        "price_version": targets[2]["price_version"],
        "free_keys": 0,
        "available": True,
    }
    assert targets[2]["price_version"].startswith("config ")
    assert targets[0]["cost_source"] == "none"
    assert {targets[0][name] for name in targets[0] if name.endswith(("usd", "mtok"))} == {None}
    assert place[1].calls == []
    call = await gateway.chat("lab/json")
    await gateway.attempt(call.headers["x-request-id"])
    assert gateway.select("SELECT count(*) AS n FROM api_calls") == [{"n": before[0]["n"] + 1}]


async def test_without_a_bound_the_output_has_no_cost_and_the_total_an_assumption(
    gateway: Gateway,
) -> None:
    found = await estimate(gateway, "lab/json")
    assert (found["max_output_tokens"], found["assumed_output_tokens"]) == (None, 500)
    assert found["targets"][0]["output_cost_usd"] is None
    assert found["targets"][0]["total_usd"] == 0.002


async def test_the_catalogue_is_asked_for_a_model_that_nobody_has_called(gateway: Gateway) -> None:
    found = await estimate(gateway, "cheap", max_tokens=500)
    assert [each["provider"] for each in found["targets"]] == ["groq", "dear"]
    first = found["targets"][0]
    assert (first["total_usd"], first["cost_source"]) == (0.000985, "catalog")
    assert first["price_version"].startswith("genai-prices ")


async def test_free_keys_are_counted_and_the_dearest_is_reckoned_with(gateway: Gateway) -> None:
    (target,) = (await estimate(gateway, "gift/json", max_tokens=500))["targets"]
    assert (target["free_keys"], target["total_usd"]) == (1, 0.002)


async def test_a_target_whose_keys_all_rest_is_told_of_as_such(gateway: Gateway) -> None:
    path = "/admin/providers/new/keys/k1"
    await gateway.client.post(f"{path}/disable")
    found = await estimate(gateway, "fast")
    assert [each["available"] for each in found["targets"]] == [False, True, True]
    await gateway.client.post(f"{path}/enable")


async def test_to_ask_takes_nobodys_turn(gateway: Gateway) -> None:
    orders = [
        [each["model"] for each in (await estimate(gateway, "turns"))["targets"]] for _ in range(3)
    ]
    served = await gateway.chat("turns")
    assert orders == [orders[0]] * 3
    assert served.headers["x-tollkeeper-model"] == orders[0][0]


@pytest.mark.parametrize(
    ("body", "given", "made"),
    [
        ({"prompt": "x" * 400, "max_tokens": 10}, 100, 10),
        ({"input": "x" * 400}, 100, None),
        ({"messages": []}, 3, None),
    ],
    ids=["completion", "embeddings", "chat"],
)
async def test_any_body_that_can_be_relayed_can_be_estimated(
    gateway: Gateway, body: dict[str, Any], given: int, made: int | None
) -> None:
    answer = await gateway.client.post("/v1/cost-estimate", json={"model": "lab/json", **body})
    found = answer.json()
    assert (found["input_tokens"], found["max_output_tokens"]) == (given, made)
    total = given * 1 + (made if made is not None else found["assumed_output_tokens"]) * 2
    assert found["targets"][0]["total_usd"] == pytest.approx(total / 1e6)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, None),
        (b"[]", 400, None),
        (b"\xff", 400, None),
        (b"[" * 100_000, 400, None),
        (b'{"messages": []}', 400, None),
        (b'{"model": "nobody", "messages": []}', 404, "model_not_found"),
    ],
)
async def test_what_cannot_be_relayed_cannot_be_estimated(
    gateway: Gateway, body: bytes, status: int, code: str | None
) -> None:
    answer = await gateway.client.post("/v1/cost-estimate", content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_a_client_sees_the_targets_that_it_may_have(gateway: Gateway) -> None:
    made = await gateway.client.post("/admin/keys", json={"name": "ann", "providers": ["lab"]})
    headers = {"authorization": f"Bearer {made.json()['key']}"}
    seen = {}
    for model in ("fast", "dear/json"):
        body = {"model": model, "messages": []}
        answer = await gateway.client.post("/v1/cost-estimate", json=body, headers=headers)
        seen[model] = answer.status_code, answer.json()
    assert [each["provider"] for each in seen["fast"][1]["targets"]] == ["lab"]
    assert (seen["dear/json"][0], seen["dear/json"][1]["error"]["code"]) == (
        403,
        "model_not_allowed",
    )


# What a client is willing to pay.


async def test_who_is_dearer_and_whose_price_nobody_knows_is_passed_over(
    gateway: Gateway, place: Place
) -> None:
    answer = await pay(gateway, "fast", "0.002", max_tokens=500)
    assert (answer.status_code, answer.headers["x-tollkeeper-provider"]) == (200, "lab")
    [request] = place[1].calls
    assert "x-max-cost-usd" not in request.headers
    assert (await gateway.chat("fast")).headers["x-tollkeeper-provider"] == "new"


async def test_where_all_are_dearer_nobody_is_asked_and_the_refusal_has_a_row(
    gateway: Gateway, place: Place
) -> None:
    answer = await pay(gateway, "fast", "0.001999999", max_tokens=500)
    told = answer.json()["error"]
    assert (answer.status_code, told["code"]) == (402, "max_cost_exceeded")
    assert (told["param"], answer.headers["x-should-retry"]) == ("x-max-cost-usd", "false")
    row = await gateway.attempt(answer.headers["x-request-id"])
    assert (row["status"], row["client_status"], row["key_id"]) == ("rejected", 402, None)
    assert place[1].calls == []


async def test_a_model_without_a_price_is_too_dear_for_any_ceiling(gateway: Gateway) -> None:
    answer = await pay(gateway, "new/json", "999999999")
    assert (answer.status_code, answer.json()["error"]["code"]) == (402, "max_cost_exceeded")


async def test_without_a_bound_the_assumption_decides(gateway: Gateway) -> None:
    assert (await pay(gateway, "lab/json", "0.002")).status_code == 200
    assert (await pay(gateway, "lab/json", "0.0019")).status_code == 402


async def test_the_total_of_an_estimate_is_the_ceiling_that_lets_it_through(
    gateway: Gateway,
) -> None:
    (target,) = (await estimate(gateway, f"groq/{LLAMA}", max_tokens=33))["targets"]
    nano = round(target["total_usd"] * 1e9)
    least = f"{nano // 10**9}.{nano % 10**9:09}"
    less = f"{(nano - 1) // 10**9}.{(nano - 1) % 10**9:09}"
    assert (await pay(gateway, f"groq/{LLAMA}", least, max_tokens=33)).status_code == 200
    assert (await pay(gateway, f"groq/{LLAMA}", less, max_tokens=33)).status_code == 402


@pytest.mark.parametrize("value", ["", "cheap", "-1", "nan", "1e9"])
async def test_a_ceiling_that_is_no_amount_is_refused(
    gateway: Gateway, place: Place, value: str
) -> None:
    answer = await pay(gateway, "lab/json", value)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_max_cost")
    assert place[1].calls == []


async def test_a_failover_stays_below_the_ceiling(gateway: Gateway, place: Place) -> None:
    place[1].by_model["json"] = error(500)
    answer = await pay(gateway, "fast", "0.002", max_tokens=500)
    assert answer.status_code == 502
    rows = await gateway.attempts(answer.headers["x-request-id"])
    assert {row["provider"] for row in rows} == {"lab"}
