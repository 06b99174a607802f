"""What a row says of its tokens and its dollars: how many, who says so, and what the list says."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from proxy.metering import tokenizer
from tests.gateway import Gateway, lab, running
from tests.metering import vocabulary
from tests.upstream import (
    Upstream,
    completion,
    event,
    stream,
    upstream_server,
    words,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).parents[2]
DONE = b"data: [DONE]\n\n"
LLAMA = "llama-3.3-70b-versatile"  # 0.59 and 0.79 dollars a million, cached 0.295
FREE = "meta-llama/llama-3.3-70b-instruct:free"


def config(upstream: Upstream, **more: Any) -> dict[str, Any]:
    def keys(*names: str, **each: Any) -> dict[str, Any]:
        listed = [{"name": name, "value": f"sk-{name}-1", **each} for name in names]
        return {"base_url": upstream.url, "keys": listed}

    return {
        "providers": {
            "lab": lab(upstream.url),
            "groq": keys("paid"),
            "gift": {"type": "groq", **keys("g", free_tier=True)},
            "trial": {"type": "groq", "free_tier": True, **keys("t")},
            "openrouter": keys("or"),
            "ollama": {"base_url": upstream.url},
        },
        "prices": {"lab/json": {"input": 1, "output": 2, "cached_input": 0.5, "input_audio": 10}},
        **more,
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[tuple[Gateway, Upstream]]:
    folder = tmp_path_factory.mktemp("costs")
    async with upstream_server() as upstream, running(folder, config(upstream)) as gateway:
        yield gateway, upstream


@pytest.fixture
def gateway(place: tuple[Gateway, Upstream]) -> Gateway:
    return place[0]


@pytest.fixture
def upstream(place: tuple[Gateway, Upstream]) -> Upstream:
    place[1].reset()
    return place[1]


async def row(gateway: Gateway, model: str, **more: Any) -> dict[str, Any]:
    """The row of one call."""
    got = await gateway.chat(model, **more)
    assert got.status_code == 200, got.text
    return await gateway.attempt(got.headers["x-request-id"])


def money(row: dict[str, Any]) -> tuple[float | None, str, float | None]:
    return row["cost_estimate_usd"], row["cost_source"], row["list_cost_usd"]


def used(prompt: int, output: int, **more: Any) -> dict[str, Any]:
    total = {"total_tokens": prompt + output}
    return {"prompt_tokens": prompt, "completion_tokens": output, **total, **more}


# Who says how many tokens.


async def test_usage_is_the_providers_where_it_tells(gateway: Gateway, upstream: Upstream) -> None:
    upstream.script = completion(prompt=7, output=3)
    told = await row(gateway, "lab/json")
    assert (told["usage_source"], told["total_tokens"]) == ("provider", 10)


async def test_usage_is_drained_where_the_client_left_before_it_came(
    gateway: Gateway, upstream: Upstream
) -> None:
    left = asyncio.Event()

    async def script(exchange: Any) -> None:
        await exchange.head(content_type="text/event-stream", transfer_encoding="chunked")
        await exchange.chunk(event({"content": "a"}))
        await left.wait()
        for part in words("b", prompt=70)[1:]:
            await exchange.chunk(part)
        await exchange.end()

    upstream.script = script
    body = {"model": "lab/json", "stream": True, "messages": []}
    line = await gateway.dial(body, "x-request-id: leaver")
    await line.until(b'"a"')
    await line.hang_up()
    await asyncio.sleep(0.05)
    left.set()
    found = await gateway.attempt("leaver")
    assert (found["usage_source"], found["input_tokens"], found["status"]) == (
        "drained",
        70,
        "cancelled",
    )


async def test_usage_is_estimated_where_nobody_tells_and_none_where_nothing_was_seen(
    gateway: Gateway, upstream: Upstream
) -> None:
    upstream.script = stream([event({"content": "Hello"}), event(finish="stop"), DONE])
    guessed = await row(gateway, "lab/json", stream=True)
    assert guessed["usage_source"] == "estimated"
    assert guessed["cost_estimate_usd"] > 0
    upstream.script = stream([event({"role": "assistant"}), event(finish="stop"), DONE])
    nothing = await row(gateway, "lab/json", stream=True)
    assert (nothing["usage_source"], nothing["output_tokens"]) == ("none", None)
    assert money(nothing) == (None, "none", None)


@vocabulary.needed
async def test_with_the_extra_what_nobody_told_is_counted(
    gateway: Gateway, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "INSTALLED", True)
    said = "Internationalization"  # two tokens; the guess is five
    upstream.script = stream([event({"content": said}), event(finish="stop"), DONE])
    counted = await row(gateway, "lab/json", stream=True)
    assert (counted["usage_source"], counted["output_tokens"]) == ("estimated", 2)
    assert json.loads(counted["metadata"]) == {"estimate": "o200k_base"}
    asked = await row(
        gateway, "lab/json", stream=True, messages=[{"role": "user", "content": said}]
    )
    assert asked["input_tokens"] == 2 + 7  # and what a chat template adds


# Who says how many dollars, and what the list says.


async def test_the_catalogues_cost_is_its_list_cost(gateway: Gateway, upstream: Upstream) -> None:
    upstream.script = completion(prompt=1000, output=500)
    listed = await row(gateway, f"groq/{LLAMA}")
    assert money(listed) == (0.000985, "catalog", 0.000985)
    assert listed["price_version"].startswith("genai-prices ")


async def test_a_configured_price_is_dated_by_its_digest_and_has_no_list_here(
    gateway: Gateway, upstream: Upstream
) -> None:
    upstream.script = completion(prompt=1000, output=500)
    mine = await row(gateway, "lab/json")
    assert money(mine) == (0.002, "config", None)
    assert mine["price_version"].startswith("config ")


@pytest.mark.parametrize("provider", ["gift", "trial"], ids=["a key", "a provider"])
async def test_a_free_tier_costs_nothing_and_says_what_it_would(
    provider: str, gateway: Gateway, upstream: Upstream
) -> None:
    upstream.script = completion(prompt=1000, output=500)
    free = await row(gateway, f"{provider}/{LLAMA}")
    assert money(free) == (0, "config", 0.000985)


async def test_a_free_model_says_what_the_paid_one_costs(
    gateway: Gateway, upstream: Upstream
) -> None:
    upstream.script = completion(prompt=1_000_000, output=0)
    free = await row(gateway, f"openrouter/{FREE}")
    paid = await row(gateway, f"openrouter/{FREE.removesuffix(':free')}")
    assert money(free)[:2] == (0, "catalog")
    assert free["list_cost_usd"] == paid["cost_estimate_usd"] > 0


async def test_a_cost_that_the_provider_told_stands_beside_the_list(
    gateway: Gateway, upstream: Upstream
) -> None:
    upstream.script = completion(usage=used(1_000_000, 0, cost=0.5))
    told = await row(gateway, f"openrouter/{FREE.removesuffix(':free')}")
    assert money(told)[:2] == (0.5, "provider")
    assert told["list_cost_usd"] > 0
    assert told["list_cost_usd"] != 0.5


async def test_an_ollama_costs_nothing_and_is_on_no_list(
    gateway: Gateway, upstream: Upstream
) -> None:
    assert money(await row(gateway, "ollama/llama3.2")) == (0, "config", None)


# Zero, null and absent are three things.


async def test_a_cost_of_zero_is_told_and_null_is_not(gateway: Gateway, upstream: Upstream) -> None:
    upstream.script = completion(usage=used(1000, 500, cost=0))
    assert money(await row(gateway, "lab/json")) == (0, "provider", None)
    upstream.script = completion(usage=used(1000, 500, cost=None))
    assert money(await row(gateway, "lab/json")) == (0.002, "config", None)
    upstream.script = completion(usage=used(1000, 500))
    assert money(await row(gateway, "lab/json")) == (0.002, "config", None)


async def test_tokens_of_zero_are_told_and_null_is_not(
    gateway: Gateway, upstream: Upstream
) -> None:
    upstream.script = completion(
        usage=used(0, 0, prompt_tokens_details={"cached_tokens": 0, "audio_tokens": None})
    )
    zero = await row(gateway, "lab/json")
    assert (zero["input_tokens"], zero["output_tokens"], zero["cached_tokens"]) == (0, 0, 0)
    assert (zero["input_audio_tokens"], zero["usage_source"]) == (None, "provider")
    assert money(zero) == (0, "config", None)
    upstream.script = completion(usage={"prompt_tokens": 9, "completion_tokens": None})
    null = await row(gateway, "lab/json")
    assert (null["input_tokens"], null["output_tokens"]) == (9, None)
    assert money(null) == (None, "none", None)


# Shares.


@pytest.mark.parametrize(
    "told",
    [
        used(1000, 0, prompt_tokens_details={"cached_tokens": 400}),
        {**used(600, 0, prompt_tokens_details={"cached_tokens": 400}), "total_tokens": 1000},
        {"input_tokens": 600, "output_tokens": 0, "cache_read_input_tokens": 400},
        used(1000, 0, prompt_cache_hit_tokens=400, prompt_cache_miss_tokens=600),
    ],
    ids=["inside", "beside", "Anthropic", "DeepSeek"],
)
async def test_cached_tokens_cost_the_same_inside_and_beside(
    told: dict[str, Any], gateway: Gateway, upstream: Upstream
) -> None:
    upstream.script = completion(usage=told)
    found = await row(gateway, "lab/json")
    assert (found["input_tokens"], found["cached_tokens"]) == (1000, 400)
    assert found["cost_estimate_usd"] == pytest.approx((600 * 1 + 400 * 0.5) / 1e6)


async def test_sound_and_images_are_kept_and_sound_has_a_price_of_its_own(
    gateway: Gateway, upstream: Upstream
) -> None:
    upstream.script = completion(
        usage=used(
            1000,
            100,
            prompt_tokens_details={"audio_tokens": 300, "image_tokens": 50},
            completion_tokens_details={"audio_tokens": 20, "image_tokens": 10},
        )
    )
    found = await row(gateway, "lab/json")
    assert (found["input_audio_tokens"], found["output_audio_tokens"]) == (300, 20)
    assert (found["input_image_tokens"], found["output_image_tokens"]) == (50, 10)
    assert found["cost_estimate_usd"] == pytest.approx((700 * 1 + 300 * 10 + 100 * 2) / 1e6)


# Pricing anew.


async def reprice(folder: Path) -> str:
    command = ["-m", "proxy", "reprice", "--since", "1d", "--config", "tollkeeper.yaml"]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        cwd=folder,
        env={"PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, wrong = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0, wrong.decode()
    return said.decode()


async def test_calls_are_priced_anew_while_the_gateway_goes_on(
    place: tuple[Gateway, Upstream], tmp_path: Path
) -> None:
    _, upstream = place
    upstream.reset()
    upstream.by_model["told"] = completion(usage=used(1000, 500, cost=0.25))
    upstream.script = completion(prompt=1000, output=500)
    async with running(tmp_path, config(upstream, prices={})) as own:
        for model in ("lab/new", "lab/new", "lab/told", f"groq/{LLAMA}"):
            await row(own, model)
        assert money((await own.rows(4))[0]) == (None, "none", None)
        file = tmp_path / "tollkeeper.yaml"
        file.write_text(
            file.read_text().replace("prices: {}", "prices: {lab/*: {input: 1, output: 2}}")
        )
        busy = asyncio.Event()

        async def go_on() -> int:
            count = 0
            while not busy.is_set():
                count += (await own.chat("lab/told")).status_code == 200
                await asyncio.sleep(0.02)
            return count

        going = asyncio.ensure_future(go_on())
        said = await reprice(tmp_path)
        busy.set()
        served = await going
        assert "changed: 2, newly priced: 2" in said
        rows = await own.rows(4 + served)
        assert [money(each) for each in rows[:4]] == [
            (0.002, "config", None),
            (0.002, "config", None),
            (0.25, "provider", None),
            (0.000985, "catalog", 0.000985),
        ]
        days = own.select(
            "SELECT sum(total_cost_usd) AS usd, sum(unpriced_calls) AS n FROM daily_costs"
        )
        assert days == [{"usd": pytest.approx(0.004985 + 0.25 * (served + 1)), "n": 0}]
        assert served > 0
        recorder = (await own.client.get("/stats")).json()["recorder"]
        assert (recorder["dropped"], recorder["last_error"]) == (0, None)
