from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from proxy.metering import pricing, tokenizer
from proxy.metering.pricing import Prices
from proxy.metering.rates import Rates, Tier
from proxy.relay.forecast import Forecast, Volume, forecast, forecasts, volume
from proxy.relay.inbound import MOST_ANSWERS, parse
from proxy.routing.alias import OUTPUT_TOKENS
from proxy.routing.counters import Counters
from proxy.routing.key import Key
from proxy.routing.keypool import KeyPool
from proxy.types import Operation, Target
from tests.metering import vocabulary

HERE = Target("lab", "m")
MILLION = Volume(1_000_000, "heuristic", 1_000_000, 1_000_000)


class Entry(msgspec.Struct):
    input: float | None = None
    output: float | None = None
    cached_input: float | None = None
    cache_write: float | None = None
    input_audio: float | None = None
    output_audio: float | None = None


def of(operation: Operation = Operation.CHAT, **members: Any) -> Volume:
    return volume(parse(json.dumps({"model": "m", **members}).encode(), operation))


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


# Tokens.


def test_a_prompt_is_guessed_by_its_length_and_its_messages() -> None:
    assert of(messages=said("x" * 400), max_tokens=9) == Volume(107, "heuristic", 9, 9)


@vocabulary.needed
def test_with_the_extra_a_prompt_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "INSTALLED", True)
    found = of(messages=said("Internationalization"), max_tokens=1)
    assert found == Volume(2 + 7, "o200k_base", 1, 1)


def test_without_a_word_an_answer_is_assumed_to_be_ordinary() -> None:
    assert (of(messages=[]).most, of(messages=[]).made) == (None, OUTPUT_TOKENS)
    assert of(messages=[], n=3).made == 3 * OUTPUT_TOKENS


def test_every_choice_may_be_as_long_as_it_may() -> None:
    assert of(messages=[], max_tokens=50, n=4).most == 200
    assert of(messages=[], max_completion_tokens=7, max_tokens=50).most == 50
    assert of(messages=[], max_completion_tokens=7).most == 7


@pytest.mark.parametrize(
    ("members", "most"),
    [
        ({"prompt": "a"}, 10),
        ({"prompt": ["a"]}, 10),
        ({"prompt": ["a", "b", "c"]}, 30),
        ({"prompt": ["a", "b", "c"], "n": 2}, 60),
        ({"prompt": "a", "n": 2, "best_of": 5}, 50),
        ({"prompt": "a", "best_of": 10**9}, 10 * MOST_ANSWERS),
        ({"prompt": "a", "n": 6, "best_of": "many"}, 60),
        ({"prompt": "a", "best_of": "5"}, 50),
        ({"prompt": "a", "max_completion_tokens": 0}, 10),
        ({"prompt": [1, 2, 3]}, 10),
        ({"prompt": [[1, 2], [3]]}, 20),
        ({"prompt": []}, 10),
        ({}, 10),
    ],
)
def test_every_prompt_of_a_completion_has_its_answers(members: dict[str, Any], most: int) -> None:
    assert of(Operation.COMPLETION, max_tokens=10, **members).most == most


def test_no_answer_at_all_is_what_nobody_asks_for() -> None:
    assert of(messages=[], max_tokens=0) == of(messages=[])
    assert of(messages=[], max_completion_tokens=0, max_tokens=5).most == 5


def test_embeddings_make_nothing() -> None:
    assert of(Operation.EMBEDDINGS, input="x" * 40) == Volume(10, "heuristic", None, 0)


def test_of_what_has_no_text_the_whole_body_counts() -> None:
    body = b'{"model": "m", "prompt": [1, 2, 3, 4]}'
    found = volume(parse(body, Operation.COMPLETION))
    assert (found.given, found.counted_by) == (len(body) // 4, "heuristic")


# Dollars.


def prices(free: dict[tuple[str, str | None], bool] | None = None, **table: Entry) -> Prices:
    return Prices({f"lab/{name}": each for name, each in table.items()}, {}, free or {})


def test_both_sides_have_a_cost() -> None:
    found = forecast(prices(m=Entry(0.5, 1.5)), HERE, ["k"], MILLION)
    assert (found.input_nano, found.total_nano) == (500_000_000, 2_000_000_000)
    assert (found.free_keys, found.rates and found.rates.source) == (0, "config")


def test_what_is_not_known_is_none() -> None:
    assert forecast(prices(), HERE, ["k"], MILLION) == Forecast(HERE, None, None, None, 0)


def test_one_side_may_be_known() -> None:
    found = forecast(prices(m=Entry(0.5)), HERE, ["k"], MILLION)
    assert (found.input_nano, found.total_nano) == (500_000_000, None)
    made_nothing = msgspec.structs.replace(MILLION, made=0)
    assert forecast(prices(m=Entry(0.5)), HERE, ["k"], made_nothing).total_nano == 500_000_000


def test_the_dearest_key_counts_and_the_free_ones_are_counted() -> None:
    book = prices({("lab", "gift"): True, ("lab", "trial"): True}, m=Entry(1, 1))
    found = forecast(book, HERE, ["gift", "paid", "trial"], MILLION)
    assert (found.total_nano, found.free_keys) == (2_000_000_000, 2)
    assert forecast(book, HERE, ["gift"], MILLION).total_nano == 0
    unknown = forecast(prices({("lab", "gift"): True}), HERE, ["gift", "paid"], MILLION)
    assert (unknown.total_nano, unknown.free_keys) == (None, 1)


async def test_the_catalogue_is_asked_and_its_tiers_count(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    listed = Rates(input=10**9, output=10**9, tiers=(Tier(above=200, input=2 * 10**9, output=0),))

    async def look_up(pairs: Any) -> list[Rates | None]:
        asked.extend(pairs)
        return [listed for _ in pairs]

    monkeypatch.setattr(pricing, "look_up", look_up)
    pool = KeyPool("lab", [Key("none", None, "none")], Counters(None, float), chance=float)
    book = Prices({}, {"lab": "https://lab.example"})
    found = await forecasts(book, [HERE], MILLION, {"lab": pool})
    assert asked == [("https://lab.example", "m")]
    assert found[HERE].total_nano == 2 * 10**9
