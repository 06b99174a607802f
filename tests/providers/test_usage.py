from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.metering.rates import Rates, cost
from proxy.providers import DIALECTS
from proxy.providers.usage import count
from proxy.types import Usage

OPENAI = {
    "prompt_tokens": 2006,
    "completion_tokens": 300,
    "total_tokens": 2306,
    "prompt_tokens_details": {"cached_tokens": 1920, "audio_tokens": 0},
    "completion_tokens_details": {
        "reasoning_tokens": 192,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}
AUDIO = {
    "prompt_tokens": 126,
    "completion_tokens": 233,
    "total_tokens": 359,
    "prompt_tokens_details": {"text_tokens": 11, "audio_tokens": 115, "image_tokens": 0},
    "completion_tokens_details": {"text_tokens": 41, "audio_tokens": 192},
}
GROQ = {
    "queue_time": 0.037493756,
    "prompt_tokens": 4641,
    "prompt_time": 0.165,
    "completion_tokens": 1817,
    "completion_time": 3.9,
    "total_tokens": 6458,
    "total_time": 4.065,
    "prompt_tokens_details": {"cached_tokens": 4608},
    "completion_tokens_details": {"reasoning_tokens": 1500},
}
OPENROUTER = {
    "prompt_tokens": 10339,
    "completion_tokens": 60,
    "total_tokens": 10399,
    "cost": 0.0012,
    "is_byok": False,
    "prompt_tokens_details": {
        "cached_tokens": 10318,
        "cache_write_tokens": 0,
        "audio_tokens": 7,
        "video_tokens": 0,
    },
    "cost_details": {"upstream_inference_cost": None},
    "completion_tokens_details": {"reasoning_tokens": 0, "image_tokens": 9, "audio_tokens": 0},
}
DEEPSEEK = {
    "prompt_tokens": 900,
    "completion_tokens": 100,
    "total_tokens": 1000,
    "prompt_tokens_details": {"cached_tokens": 640},
    "completion_tokens_details": {"reasoning_tokens": 80},
    "prompt_cache_hit_tokens": 640,
    "prompt_cache_miss_tokens": 260,
}
ANTHROPIC = {
    "input_tokens": 21,
    "cache_creation_input_tokens": 10,
    "cache_read_input_tokens": 20,
    "output_tokens": 393,
}
LITELLM = {  # inside, under Anthropic's names and OpenAI's
    "prompt_tokens": 2095,
    "completion_tokens": 393,
    "total_tokens": 2488,
    "prompt_tokens_details": {"cached_tokens": 1000, "cache_creation_tokens": 1070},
    "cache_creation_input_tokens": 1070,
    "cache_read_input_tokens": 1000,
}
BESIDE = {  # an OpenAI-compatible server in front of Anthropic's counts
    "prompt_tokens": 25,
    "completion_tokens": 393,
    "total_tokens": 2488,
    "cache_creation_input_tokens": 70,
    "cache_read_input_tokens": 2000,
}
XAI = {  # reasoning beside the output
    "prompt_tokens": 32,
    "completion_tokens": 9,
    "total_tokens": 135,
    "prompt_tokens_details": {"text_tokens": 32, "audio_tokens": 0, "cached_tokens": 6},
    "completion_tokens_details": {"reasoning_tokens": 94, "audio_tokens": 0},
}
MOONSHOT = {"prompt_tokens": 50, "completion_tokens": 5, "total_tokens": 55, "cached_tokens": 40}

CASES: list[tuple[str, str, dict[str, Any], tuple[int | None, ...]]] = [
    # dialect, what, usage, (input, output, total, cached, cache write, reasoning)
    ("openai", "inside", OPENAI, (2006, 300, 2306, 1920, None, 192)),
    ("openai", "sound", AUDIO, (126, 233, 359, None, None, None)),
    ("groq", "inside", GROQ, (4641, 1817, 6458, 4608, None, 1500)),
    ("openrouter", "inside", OPENROUTER, (10339, 60, 10399, 10318, 0, 0)),
    ("openai", "DeepSeek: hit and miss", DEEPSEEK, (900, 100, 1000, 640, None, 80)),
    (
        "openai",
        "DeepSeek without a sum",
        {"prompt_cache_hit_tokens": 640, "prompt_cache_miss_tokens": 260, "completion_tokens": 1},
        (900, 1, 901, 640, None, None),
    ),
    ("openai", "Anthropic: beside", ANTHROPIC, (51, 393, 444, 20, 10, None)),
    ("openai", "a gateway: inside", LITELLM, (2095, 393, 2488, 1000, 1070, None)),
    ("openai", "a gateway: beside", BESIDE, (2095, 393, 2488, 2000, 70, None)),
    ("openai", "xAI: reasoning beside", XAI, (32, 103, 135, 6, None, 94)),
    ("openai", "Moonshot: at the top", MOONSHOT, (50, 5, 55, 40, None, None)),
    (
        "openai",
        "more cached than prompt, and no total: beside",
        {"prompt_tokens": 5, "completion_tokens": 1, "cached_tokens": 90},
        (95, 1, 96, 90, None, None),
    ),
    (
        "openai",
        "more cached than prompt, but the total says inside",
        {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6, "cached_tokens": 90},
        (5, 1, 6, 5, None, None),
    ),
    (
        "openai",
        "cached and reasoning beside",
        {
            "prompt_tokens": 5,
            "completion_tokens": 1,
            "total_tokens": 99,
            "cached_tokens": 90,
            "completion_tokens_details": {"reasoning_tokens": 3},
        },
        (95, 4, 99, 90, None, 3),
    ),
    (
        "openai",
        "a total that nothing adds up to",
        {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 70, "cached_tokens": 90},
        (5, 1, 70, 5, None, None),
    ),
    (
        "openrouter",
        "more reasoning than output",
        {
            "prompt_tokens": 7,
            "completion_tokens": 10,
            "total_tokens": 17,
            "completion_tokens_details": {"reasoning_tokens": 11},
        },
        (7, 10, 17, None, None, 10),
    ),
    (
        "gemini",
        "thoughts as many as cached",
        {
            "prompt_tokens": 100,
            "completion_tokens": 10,
            "total_tokens": 160,
            "prompt_tokens_details": {"cached_tokens": 50},
        },
        (100, 60, 160, 50, None, 50),
    ),
    (
        "gemini",
        "thoughts that it names",
        {
            "prompt_tokens": 1469,
            "completion_tokens": 744,
            "total_tokens": 2496,
            "completion_tokens_details": {"reasoning_tokens": 283, "audio_tokens": None},
            "prompt_tokens_details": {"audio_tokens": None, "cached_tokens": 1024},
        },
        (1469, 1027, 2496, 1024, None, 283),
    ),
    (
        "gemini",
        "no thoughts",
        {
            "prompt_tokens": 3,
            "completion_tokens": 4,
            "total_tokens": 7,
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
        (3, 4, 7, None, None, 0),
    ),
    (
        "ollama",
        "the three alone",
        {"prompt_tokens": 26, "completion_tokens": 298, "total_tokens": 324},
        (26, 298, 324, None, None, None),
    ),
    (
        "cloudflare",
        "zeros",
        {
            "prompt_tokens": 0,
            "completion_tokens": 0,
            "total_tokens": 0,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
        (0, 0, 0, 0, None, None),
    ),
    ("openai", "embeddings", {"prompt_tokens": 8, "total_tokens": 8}, (8, 0, 8) + (None,) * 3),
    ("openai", "half a word", {"completion_tokens": 4}, (None, 4, None) + (None,) * 3),
]


@pytest.mark.parametrize(("dialect", "what", "raw", "expected"), CASES, ids=[c[1] for c in CASES])
def test_every_convention_becomes_the_inclusive_one(
    dialect: str, what: str, raw: dict[str, Any], expected: tuple[int | None, ...]
) -> None:
    usage = DIALECTS[dialect].usage(raw)
    assert (
        usage.input_tokens,
        usage.output_tokens,
        usage.total_tokens,
        usage.cached_tokens,
        usage.cache_write_tokens,
        usage.reasoning_tokens,
    ) == expected


def test_shares_of_sound_and_images_are_kept() -> None:
    usage = count(AUDIO)
    assert (usage.input_audio_tokens, usage.output_audio_tokens) == (115, 192)
    assert (usage.input_image_tokens, usage.output_image_tokens) == (0, None)
    usage = count(OPENROUTER)
    assert (usage.input_audio_tokens, usage.output_audio_tokens) == (7, 0)
    assert (usage.input_image_tokens, usage.output_image_tokens) == (None, 9)


@pytest.mark.parametrize(
    ("details", "cached"),
    [
        ({"cached_tokens": 0}, 0),
        ({"cached_tokens": None}, None),
        ({}, None),
        (None, None),
        (3, None),
    ],
)
def test_a_zero_is_told_and_null_is_not(details: Any, cached: int | None) -> None:
    raw = {"prompt_tokens": 0, "completion_tokens": None, "prompt_tokens_details": details}
    usage = count(raw)
    assert (usage.input_tokens, usage.output_tokens, usage.cached_tokens) == (0, None, cached)


def test_null_under_one_name_leaves_room_for_another() -> None:
    assert count({"prompt_tokens": None, "input_tokens": 5}).input_tokens == 5
    assert count({"prompt_tokens": 0, "input_tokens": 5}).input_tokens == 0


def test_usage_that_tells_nothing_is_unknown() -> None:
    assert count({}) == Usage()
    assert count({"prompt_tokens": None, "prompt_tokens_details": 3, "cost": "1"}) == Usage()


def test_what_no_call_can_have_is_unknown() -> None:
    told = {"prompt_tokens": 4e15, "completion_tokens": 7, "total_tokens": 2**63}
    assert count(told) == Usage(output_tokens=7)


@pytest.mark.parametrize(
    ("cost", "nano"),
    [
        (0.00001305, 13_050),
        (1e-9, 1),
        (5e-10, 1),
        (1.005, 1_005_000_000),
        (0, 0),
        (None, None),
        (-1, None),
        (1_000_000, 10**15),
        (1_000_001, None),
        (float("inf"), None),
        (True, None),
    ],
)
def test_a_cost_is_counted_in_nano_dollars(cost: Any, nano: int | None) -> None:
    assert count({"cost": cost}).cost_nano_usd == nano


@pytest.mark.parametrize(
    ("own_key", "charged", "nano"),
    [
        (True, 0.019, 19_950_000),
        (True, 0, 950_000),
        (True, None, 950_000),
        (True, "0.019", 950_000),
        (True, 1_000_000, 10**15),
        (False, 0.00095, 950_000),
        (None, 0.019, 950_000),
    ],
)
def test_what_a_key_of_ones_own_is_charged_is_part_of_the_cost(
    own_key: bool | None, charged: Any, nano: int
) -> None:
    details = {"upstream_inference_cost": charged}
    told = {"cost": 0.00095, "is_byok": own_key, "cost_details": details}
    assert count(told).cost_nano_usd == nano


counts = st.none() | st.integers(-5, 1000)
details = st.none() | st.dictionaries(
    st.sampled_from(
        ["cached_tokens", "cache_write_tokens", "reasoning_tokens", "audio_tokens", "image_tokens"]
    ),
    counts,
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "prompt_tokens": counts,
            "input_tokens": counts,
            "completion_tokens": counts,
            "total_tokens": counts,
            "prompt_tokens_details": details,
            "completion_tokens_details": details,
            "cache_read_input_tokens": counts,
            "cache_creation_input_tokens": counts,
        },
    ),
    st.sampled_from(list(DIALECTS.values())),
)
def test_whatever_is_said_shares_are_inside_their_wholes_and_no_price_is_below_zero(
    raw: dict[str, Any], dialect: Any
) -> None:
    usage = dialect.usage(raw)
    whole = usage.input_tokens
    if whole is not None:
        assert (usage.cached_tokens or 0) + (usage.cache_write_tokens or 0) <= whole
        assert (usage.input_audio_tokens or 0) <= whole
    if usage.output_tokens is not None:
        assert (usage.reasoning_tokens or 0) <= usage.output_tokens
    rates = Rates(input=9, output=9, cache_read=1, cache_write=12, input_audio=50, reasoning=5)
    price = cost(usage, rates)
    assert price is None or price >= 0


@pytest.mark.parametrize("total", [0, 5, 14])
def test_a_total_that_is_less_than_its_parts_is_added_up_anew(total: int) -> None:
    found = count({"prompt_tokens": 5, "completion_tokens": 10, "total_tokens": total})
    assert (found.input_tokens, found.output_tokens, found.total_tokens) == (5, 10, 15)
