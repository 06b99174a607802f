from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from decimal import Decimal

import msgspec
import pytest

from proxy.metering import pricing
from proxy.metering.pricing import Free, Pair, Prices, Quote
from proxy.metering.rates import Rates, Tier
from proxy.types import Target, Usage

LLAMA = Rates(input=590_000_000, output=790_000_000)
UNPRICED = Quote(None, "none", None)
USED = Usage(input_tokens=1000, output_tokens=500)


class Entry(msgspec.Struct):
    input: Decimal | float | None = None
    output: Decimal | float | None = None
    cached_input: Decimal | float | None = None
    cache_write: Decimal | float | None = None
    input_audio: Decimal | float | None = None
    output_audio: Decimal | float | None = None


FREE = Quote(0, "config", "config")


def configured(cost: int, listed: int | None = None) -> Quote:
    """A quote of the table, whatever its version."""
    return Quote(cost, "config", None, listed)


class Book(Prices):
    """Prices whose quotes by the table leave the digest out, which has a test of its own."""

    def quote(
        self, provider: str, model: str, usage: Usage | None, key: str | None = None
    ) -> Quote | None:
        quote = super().quote(provider, model, usage, key)
        if quote is None or not (quote.price_version or "").startswith("config "):
            return quote
        return msgspec.structs.replace(quote, price_version=None)


class Catalogue:
    """Stands in for the child process; ``fails`` is raised instead of an answer."""

    def __init__(self, listed: dict[Pair, Rates]) -> None:
        self.listed = listed
        self.asked: list[list[Pair]] = []
        self.fails: Exception | None = None
        self.running = 0

    async def look_up(self, pairs: Sequence[Pair]) -> list[Rates | None]:
        self.asked.append(list(pairs))
        self.running += 1
        assert self.running == 1
        await asyncio.sleep(0)
        self.running -= 1
        if self.fails is not None:
            raise self.fails
        return [self.listed.get(pair) for pair in pairs]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def catalogue(monkeypatch: pytest.MonkeyPatch) -> Catalogue:
    it = Catalogue({("groq", "llama"): LLAMA})
    monkeypatch.setattr(pricing, "look_up", it.look_up)
    return it


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    it = Clock()
    monkeypatch.setattr(pricing, "monotonic", it)
    return it


def prices(
    table: dict[str, Entry] | None = None,
    references: dict[str, str | None] | None = None,
    free: Free = {("ollama", None): True},  # noqa: B006
) -> Prices:
    return Book(table or {}, references or {"groq": "groq", "lab": None, "ollama": None}, free)


async def test_the_providers_own_word_beats_everything() -> None:
    book = prices({"groq/llama": Entry(input=1, output=1)})
    usage = Usage(input_tokens=1, output_tokens=1, cost_nano_usd=42)
    assert book.quote("groq", "llama", usage) == Quote(42, "provider", None)
    assert book.quote("ollama", "x", Usage(cost_nano_usd=0)) == Quote(0, "provider", None)


async def test_a_negative_cost_of_a_provider_is_not_believed() -> None:
    usage = msgspec.structs.replace(USED, cost_nano_usd=-1)
    assert prices().quote("ollama", "x", usage) == FREE


async def test_the_users_table_beats_free_and_the_catalogue(catalogue: Catalogue) -> None:
    book = prices(
        {"groq/llama": Entry(input=0.5, output=1.5), "ollama/*": Entry(input=0.1, output=0)}
    )
    assert book.quote("groq", "llama", USED) == configured(1_250_000)
    await book.resolve([("groq", "llama"), ("ollama", "x")])
    assert catalogue.asked == [[("groq", "llama")]]  # what it would cost by the list
    assert book.quote("groq", "llama", USED) == configured(1_250_000, 985_000)
    assert book.quote("ollama", "x", USED) == configured(100_000)


async def test_a_free_provider_costs_nothing_without_asking() -> None:
    assert prices().quote("ollama", "llama3.2", USED) == FREE
    assert prices().quote("ollama", "llama3.2", Usage(output_tokens=1)) == FREE


@pytest.mark.parametrize("given", [0, 10, 100, 101, 201, 10**6])
@pytest.mark.parametrize("made", [0, 7, 10**6])
async def test_an_estimate_is_what_such_a_call_would_cost(
    given: int, made: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = prices({"lab/*": Entry(input=0.5, output=1.5)})
    tiers = (Tier(above=100, input=30, output=40), Tier(above=200, input=50, output=60))
    rates = Rates(input=10, output=20, tiers=tiers)
    book._listed["groq", "llama"] = rates, pricing.monotonic() + 60
    usage = Usage(input_tokens=given, output_tokens=made, total_tokens=given + made)
    for target in (Target("groq", "llama"), Target("lab", "x"), Target("ollama", "x")):
        quote = book.quote(target.provider, target.model, usage)
        assert quote is not None
        assert book.estimate(target, given, made) == quote.cost_nano_usd
    assert book.estimate(Target("never-heard-of", "x"), given, made) is None
    later = pricing.monotonic() + 61
    monkeypatch.setattr(pricing, "monotonic", lambda: later)
    assert book.estimate(Target("groq", "llama"), given, made) is None


async def test_a_provider_without_reference_has_no_price() -> None:
    assert prices().quote("lab", "llama", USED) == UNPRICED
    assert prices().quote("never-heard-of", "llama", USED) == UNPRICED


@pytest.mark.parametrize("usage", [None, Usage(), Usage(cached_tokens=5)])
async def test_no_tokens_have_no_price(usage: Usage | None) -> None:
    book = prices({"groq/llama": Entry(input=1, output=1)})
    assert book.quote("groq", "llama", usage) == UNPRICED
    assert book.quote("ollama", "llama", usage) == UNPRICED
    assert book.quote("groq", "not-asked-yet", usage) == UNPRICED


async def test_a_price_that_does_not_cover_the_call_is_none(catalogue: Catalogue) -> None:
    book = prices({"groq/llama": Entry(input=1)})
    assert book.quote("groq", "llama", USED) == UNPRICED


async def test_the_exact_name_beats_globs_and_the_longest_glob_wins() -> None:
    book = prices(
        {
            "*": Entry(input=1, output=0),
            "lab/*": Entry(input=2, output=0),
            "lab/qwen*": Entry(input=3, output=0),
            "lab/qwen": Entry(input=4, output=0),
            "lab/[ab]?": Entry(input=5, output=0),
        }
    )

    def price(provider: str, model: str) -> int | None:
        quote = book.quote(provider, model, Usage(input_tokens=1000, output_tokens=0))
        assert quote is not None
        return quote.cost_nano_usd

    assert price("lab", "qwen") == 4_000_000
    assert price("lab", "qwen-2.5/x") == 3_000_000
    assert price("lab", "a1") == 5_000_000
    assert price("lab", "Qwen") == 2_000_000
    assert price("groq", "qwen") == 1_000_000


async def test_a_table_means_a_model_with_and_without_the_models_prefix() -> None:
    book = prices({"gemini/a": Entry(output=1), "gemini/models/b": Entry(output=1)})
    usage = Usage(input_tokens=0, output_tokens=10)
    for model in ("a", "models/a", "b", "models/b"):
        assert book.quote("gemini", model, usage) == configured(10_000)


async def test_the_table_has_cache_rates() -> None:
    book = prices({"lab/m": Entry(input=10, output=0, cached_input=1, cache_write=12.5)})
    usage = Usage(input_tokens=30, cached_tokens=10, cache_write_tokens=10, output_tokens=0)
    assert book.quote("lab", "m", usage) == configured(235_000)


async def test_a_model_is_unknown_until_the_catalogue_was_asked(catalogue: Catalogue) -> None:
    book = prices(references={"groq-eu": "groq"})
    catalogue.listed["groq", "llama"] = msgspec.structs.replace(LLAMA, version="v1")
    assert book.quote("groq-eu", "llama", USED) is None
    assert book.rates("groq-eu", "llama") is None
    await book.resolve([("groq-eu", "llama")])
    assert catalogue.asked == [[("groq", "llama")]]
    assert book.quote("groq-eu", "llama", USED) == Quote(985_000, "catalog", "v1", 985_000)
    rates = book.rates("groq-eu", "llama")
    assert rates is not None
    assert rates.input == 590_000_000


async def test_the_catalogue_is_asked_once_for_known_and_unknown_models(
    catalogue: Catalogue,
) -> None:
    book = prices()
    pairs = [("groq", "llama"), ("groq", "nothing"), ("groq", "llama"), ("lab", "x")]
    await asyncio.gather(*(book.resolve(pairs) for _ in range(5)))
    await book.resolve([])
    assert catalogue.asked == [[("groq", "llama"), ("groq", "nothing")]]
    assert book.quote("groq", "nothing", USED) == UNPRICED


async def test_those_who_wait_for_the_catalogue_are_asked_for_together(
    catalogue: Catalogue,
) -> None:
    book = prices()
    await asyncio.gather(*(book.resolve([("groq", name)]) for name in ("llama", "a", "b", "c")))
    assert catalogue.asked == [[("groq", "llama")], [("groq", "a"), ("groq", "b"), ("groq", "c")]]


async def test_who_waits_is_asked_for_though_who_asked_for_all_gave_up(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking = asyncio.Event()

    async def never(pairs: Sequence[Pair]) -> list[Rates | None]:
        asking.set()
        await asyncio.Event().wait()
        return []

    book = prices()
    monkeypatch.setattr(pricing, "look_up", never)
    first, second, third = (
        asyncio.ensure_future(book.resolve([("groq", name)])) for name in ("x", "y", "llama")
    )
    await asking.wait()
    asking.clear()
    first.cancel()
    await asking.wait()
    monkeypatch.setattr(pricing, "look_up", catalogue.look_up)
    second.cancel()
    assert await third
    assert book.quote("groq", "llama", USED) == Quote(985_000, "catalog", None, 985_000)


def test_the_level_of_a_call_is_that_of_its_input() -> None:
    rates = Rates(input=1, tiers=(Tier(above=10, input=2), Tier(above=20, input=3)))
    assert [rates.level(tokens).input for tokens in (0, 10, 11, 20, 21)] == [1, 1, 2, 2, 3]


def test_a_key_may_have_rates_of_its_own() -> None:
    book = prices({"lab/*": Entry(input=1, output=2)}, free={("lab", "gift"): True})
    mine, gift = book.rates("lab", "m"), book.rates("lab", "m", "gift")
    assert mine is not None
    assert gift is not None
    assert (mine.input, gift.input) == (1_000_000_000, 0)


async def test_prices_that_are_configured_anew_hold_at_once(catalogue: Catalogue) -> None:
    book = prices({"lab/*": Entry(input=1, output=1)})
    await book.resolve([("groq", "llama"), ("lab", "x")])
    assert book.quote("lab", "x", USED) == configured(1_500_000)
    table = {"groq/llama": Entry(input=2, output=2), "lab/y": Entry(input=3, output=3)}
    book.configure(table, {"groq": "groq", "lab": None, "eu": "groq"}, {("desk", None): True})
    assert book.quote("groq", "llama", USED) == configured(3_000_000)
    assert book.quote("lab", "x", USED) == UNPRICED
    assert book.quote("lab", "y", USED) == configured(4_500_000)
    assert book.quote("desk", "z", USED) == FREE
    assert book.quote("eu", "llama", USED) is None  # the catalogue has yet to be asked
    await book.resolve([("eu", "llama")])
    assert book.quote("eu", "llama", USED) == Quote(985_000, "catalog", LLAMA.version, 985_000)


async def test_a_failure_is_no_price_for_a_minute(
    catalogue: Catalogue, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    book = prices()
    catalogue.fails = OSError("no such child")
    with caplog.at_level(logging.WARNING):
        await book.resolve([("groq", "llama")])
    assert "no such child" in caplog.text
    assert book.quote("groq", "llama", USED) == UNPRICED
    clock.now += 59
    await book.resolve([("groq", "llama")])
    assert len(catalogue.asked) == 1
    clock.now += 2
    assert book.quote("groq", "llama", USED) is None
    catalogue.fails = None
    await book.resolve([("groq", "llama")])
    assert book.quote("groq", "llama", USED) == Quote(985_000, "catalog", None, 985_000)


async def test_rates_are_asked_again_after_an_hour_all_in_one(
    catalogue: Catalogue, clock: Clock
) -> None:
    book = prices()
    catalogue.listed["groq", "gpt"] = LLAMA
    await book.resolve([("groq", "llama"), ("groq", "gpt"), ("groq", "nothing")])
    clock.now += 3601
    assert book.quote("groq", "llama", USED) is None
    assert book.rates("groq", "llama") == LLAMA
    catalogue.listed["groq", "gpt"] = msgspec.structs.replace(LLAMA, output=0)
    await book.resolve([("groq", "llama")])
    assert catalogue.asked[1:] == [[("groq", "llama"), ("groq", "gpt")]]
    assert book.quote("groq", "gpt", USED) == Quote(590_000, "catalog", None, 590_000)


async def test_old_rates_outlive_a_failure(catalogue: Catalogue, clock: Clock) -> None:
    book = prices()
    await book.resolve([("groq", "llama")])
    clock.now += 3601
    catalogue.fails = ValueError("nonsense")
    await book.resolve([("groq", "llama")])
    assert book.quote("groq", "llama", USED) == Quote(985_000, "catalog", None, 985_000)


async def test_only_so_many_models_are_remembered(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pricing, "_CAPACITY", 3)
    book = prices()
    await book.resolve([("groq", f"m{number}") for number in range(4)])
    assert book.quote("groq", "m0", USED) is None
    assert book.quote("groq", "m3", USED) == UNPRICED


# What it costs by the list.


async def test_a_free_model_has_the_list_price_of_the_one_that_is_paid(
    catalogue: Catalogue,
) -> None:
    catalogue.listed["openrouter", "x:free"] = Rates(input=0, output=0, version="v1")
    catalogue.listed["openrouter", "x"] = LLAMA
    catalogue.listed["openrouter", "y:free"] = Rates(input=0, output=0, version="v1")
    book = prices(references={"openrouter": "openrouter"})
    told = msgspec.structs.replace(USED, cost_nano_usd=0)
    assert book.quote("openrouter", "x:free", told) == Quote(0, "provider", None)
    await book.resolve([("openrouter", "x:free"), ("openrouter", "y:free")])
    assert book.quote("openrouter", "x:free", told) == Quote(0, "provider", None, 985_000)
    assert book.quote("openrouter", "x:free", USED) == Quote(0, "catalog", "v1", 985_000)
    assert book.quote("openrouter", "y:free", USED) == Quote(0, "catalog", "v1")


async def test_what_is_paid_otherwise_still_has_its_list_price(catalogue: Catalogue) -> None:
    book = prices(
        {"groq/llama": Entry(input=1, output=1)},
        free={("groq", "gift"): True, ("ollama", None): True},
    )
    await book.resolve([("groq", "llama"), ("ollama", "llama")])
    assert book.quote("groq", "llama", USED) == configured(1_500_000, 985_000)
    free = Quote(0, "config", "config", 985_000)
    assert book.quote("groq", "llama", USED, "gift") == free
    assert book.quote("ollama", "llama", USED) == FREE  # listed nowhere


async def test_a_free_tier_of_a_model_that_is_not_listed_has_no_list_price(
    catalogue: Catalogue,
) -> None:
    book = prices(free={("groq", None): True})
    await book.resolve([("groq", "nothing")])
    assert book.quote("groq", "nothing", USED) == FREE


async def test_a_list_price_goes_out_of_date_as_others_do(
    catalogue: Catalogue, clock: Clock
) -> None:
    book = prices({"groq/llama": Entry(input=1, output=1)})
    await book.resolve([("groq", "llama")])
    clock.now += 3601
    assert book.quote("groq", "llama", USED) == configured(1_500_000)
    await book.resolve([("groq", "llama")])
    assert book.quote("groq", "llama", USED) == configured(1_500_000, 985_000)


async def test_a_failure_of_the_catalogue_is_told(catalogue: Catalogue, clock: Clock) -> None:
    book = prices()
    catalogue.fails = OSError("no such child")
    assert await book.resolve([("groq", "llama")]) is False
    catalogue.fails = None
    clock.now += 61
    assert await book.resolve([("groq", "llama")]) is True
    assert await book.resolve([("groq", "llama")]) is True


def version(**rates: float) -> str | None:
    quote = Prices({"lab/m": Entry(**rates)}, {}).quote("lab", "m", USED)
    assert quote is not None
    return quote.price_version


async def test_the_version_of_a_price_of_the_table_is_a_digest_of_it() -> None:
    assert version(input=1, output=2) == version(input=1.0, output=Decimal(2))
    assert version(input=1, output=2) != version(input=1, output=2, input_audio=3)
    assert (version(input=1, output=2) or "").startswith("config ")


@pytest.mark.parametrize(
    ("given_tokens", "expected"), [(0, 0), (None, None)], ids=["told as 0", "not told"]
)
async def test_no_tokens_cost_nothing_and_unknown_tokens_are_not_priced(
    given_tokens: int | None, expected: int | None
) -> None:
    book = prices({"lab/m": Entry(input=1, output=1)})
    usage = Usage(input_tokens=given_tokens, output_tokens=0)
    quote = book.quote("lab", "m", usage)
    assert quote is not None
    assert quote.cost_nano_usd == expected
    assert quote.cost_source == ("none" if expected is None else "config")
