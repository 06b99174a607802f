"""The JSON itself; what it means stands in ``tests/scenarios/test_estimates.py``."""

from __future__ import annotations

import pytest

from proxy.relay.inbound import MOST_ANSWERS, MOST_OUTPUT
from tests.gateway import Gateway

NUMBERS = ("input_price_per_mtok", "output_price_per_mtok", "input_cost_usd", "total_usd")


async def test_a_bare_model_is_found_by_the_lists_and_embeddings_make_nothing(
    gateway: Gateway,
) -> None:
    body = {"model": "json", "input": "x" * 4000, "max_tokens": 10}
    found = (await gateway.client.post("/v1/cost-estimate", json=body)).json()
    assert (found["input_tokens"], found["assumed_output_tokens"]) == (1000, 0)
    (target,) = found["targets"]
    assert [target[name] for name in NUMBERS] == [0.5, 1.5, 0.0005, 0.0005]
    assert target["output_cost_usd"] == 0


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_it_is_posted(gateway: Gateway, method: str) -> None:
    answer = await gateway.client.request(method, "/v1/cost-estimate")
    assert answer.status_code == 405


async def test_a_body_that_is_too_large_is_413(gateway: Gateway) -> None:
    answer = await gateway.client.post("/v1/cost-estimate", content=b" " * (20 * 1024 * 1024 + 1))
    assert answer.status_code == 413


async def test_absurd_counts_still_have_a_price(gateway: Gateway) -> None:
    body = {"model": "lab/json", "messages": [], "max_tokens": 2**80, "n": 2**62}
    answer = await gateway.client.post("/v1/cost-estimate", json=body)
    assert answer.json()["max_output_tokens"] == MOST_OUTPUT * MOST_ANSWERS
    assert answer.json()["targets"][0]["total_usd"] > 1000
