from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr

from proxy import tariffs
from proxy.metering.pricing import Prices
from proxy.routes import provider
from proxy.schema import KeySettings, ProviderSettings, Settings
from proxy.tariffs import catalogue
from proxy.types import Target, Usage

URL = "http://127.0.0.1:9000/v1"
USED = Usage(input_tokens=1_000_000, output_tokens=0)


@pytest.mark.parametrize(
    ("kind", "url", "reference"),
    [
        ("groq", None, "groq"),
        ("openai", "https://api.example.org/v1", "https://api.example.org/v1"),
        ("openai", URL, None),
    ],
)
def test_the_catalogue_knows_a_provider_by_its_id_or_its_address(
    kind: Any, url: str | None, reference: str | None
) -> None:
    values = KeySettings(name="k", value=SecretStr("v"), quota_group="k")
    assert catalogue(provider("x", ProviderSettings(type=kind, base_url=url, keys=[values]))) == (
        reference
    )


def priced(providers: dict[str, Any], table: dict[str, Any] | None = None) -> Prices:
    settings = Settings(providers=providers, prices=table or {})
    prices = Prices({}, {})
    serving = {name: provider(name, each) for name, each in settings.providers.items()}
    tariffs.configure(prices, settings, serving)
    return prices


def cost(prices: Prices, name: str, key: str | None) -> int | None:
    quote = prices.quote(name, "m", USED, key)
    return None if quote is None else quote.cost_nano_usd


def test_a_free_key_costs_nothing_whatever_the_table_says() -> None:
    keys = [{"name": "free", "value": "a", "free_tier": True}, {"name": "paid", "value": "b"}]
    prices = priced({"groq": {"keys": keys}}, {"groq/m": {"input": 2, "output": 0}})
    assert cost(prices, "groq", "free") == 0
    assert cost(prices, "groq", "paid") == 2_000_000_000
    assert cost(prices, "groq", None) == 2_000_000_000


def test_a_free_provider_is_free_but_for_a_key_that_is_not_and_what_has_a_price() -> None:
    keys = [{"name": "free", "value": "a"}, {"name": "paid", "value": "b", "free_tier": False}]
    block = {"keys": keys, "free_tier": True}
    prices = priced({"groq": block})
    assert cost(prices, "groq", "free") == cost(prices, "groq", None) == 0
    assert cost(prices, "groq", "paid") is None  # for the catalogue to say
    assert cost(priced({"groq": block}, {"groq/m": {"input": 2, "output": 0}}), "groq", "free") == (
        2_000_000_000
    )


def test_an_ollama_is_free_under_any_name() -> None:
    prices = priced({"desk": {"type": "ollama"}, "lab": {"type": "openai", "base_url": URL}})
    assert cost(prices, "desk", "none") == 0
    assert cost(prices, "lab", "none") is None


def test_a_call_is_estimated_with_the_dearest_key() -> None:
    def estimate(free_tier: bool, *keys: bool | None) -> int | None:
        named = [{"name": f"k{n}", "value": "v", "free_tier": key} for n, key in enumerate(keys)]
        block = {"type": "openai", "base_url": URL, "free_tier": free_tier, "keys": named}
        prices = priced({"lab": block}, {"lab/m": {"input": 2, "output": 0}})
        return prices.estimate(Target("lab", "m"), 1_000_000, 0)

    assert estimate(False, True) == estimate(True, True, True) == 0
    assert estimate(False, True, None) == estimate(False, True, False) == 2 * 10**9
    block = {"type": "openai", "base_url": URL, "free_tier": True}
    paid = {"name": "paid", "value": "v", "free_tier": False}
    gift = {"name": "gift", "value": "v"}
    assert priced({"lab": {**block, "keys": [gift]}}).estimate(Target("lab", "m"), 9, 9) == 0
    both = priced({"lab": {**block, "keys": [gift, paid]}})
    assert both.estimate(Target("lab", "m"), 9, 9) is None
