"""The catalogue through the real child process, and what the serving side does when it fails."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import msgspec
import pytest

from proxy.metering import pricing
from proxy.metering.pricing import Prices, Quote, look_up
from proxy.metering.rates import Rates, Tier, cost
from proxy.types import Usage

ROOT = Path(__file__).parents[2]
PAIRS = [
    ("groq", "llama-3.3-70b-versatile"),
    ("https://api.groq.com/openai/v1", "llama-3.3-70b-versatile"),
    ("google", "gemini-2.5-pro"),
    ("google", "models/gemini-2.5-pro"),
    ("https://generativelanguage.googleapis.com/v1beta/openai", "gemini-2.5-flash"),
    ("google", "gemma-3-27b-it"),
    ("openrouter", "openai/gpt-4o-mini"),
    ("openrouter", "meta-llama/llama-3.3-70b-instruct"),
    ("openrouter", "meta-llama/llama-3.3-70b-instruct:free"),
    ("https://openrouter.ai/api/v1", "nobody/has-listed-this:free"),
    ("groq", "nobody/has-listed-this:free"),
    ("cloudflare", "@cf/meta/llama-3.1-8b-instruct"),
    ("cloudflare", "@cf/baai/bge-m3"),
    ("groq", "no-such-model"),
    ("no-such-provider", "gpt-4o"),
    ("https://example.com/v1", "gpt-4o"),
    ("", ""),
    ("groq", "whisper-large-v3"),
    ("perplexity", "sonar"),
    ("cerebras", "qwen-3-coder-480b"),
    ("openai", "gpt-realtime"),
    ("google", "gemini-2.5-flash-image"),
    ("openrouter", "perplexity/sonar-deep-research"),
]
Answers = dict[tuple[str, str], Rates | None]
USED = Usage(input_tokens=1000, output_tokens=500)


@pytest.fixture(scope="module")
def answers() -> Answers:
    return dict(zip(PAIRS, asyncio.run(look_up(PAIRS)), strict=True))


def known(answers: Answers, reference: str, model: str) -> Rates:
    rates = answers[reference, model]
    assert rates is not None
    return rates


@pytest.mark.parametrize("reference", ["groq", "https://api.groq.com/openai/v1"])
def test_groq_by_name_and_by_address(answers: Answers, reference: str) -> None:
    rates = known(answers, reference, "llama-3.3-70b-versatile")
    assert (rates.input, rates.output) == (590_000_000, 790_000_000)
    assert cost(USED, rates) == 985_000


@pytest.mark.parametrize("model", ["gemini-2.5-pro", "models/gemini-2.5-pro"])
def test_gemini_has_tiers_with_and_without_its_prefix(answers: Answers, model: str) -> None:
    rates = known(answers, "google", model)
    assert (rates.input, rates.output) == (1_250_000_000, 10_000_000_000)
    assert rates.cache_read == 125_000_000
    long = Tier(above=200_000, input=2_500_000_000, output=15_000_000_000, cache_read=250_000_000)
    assert rates.tiers == (long,)


def test_gemini_by_address(answers: Answers) -> None:
    rates = known(
        answers, "https://generativelanguage.googleapis.com/v1beta/openai", "gemini-2.5-flash"
    )
    assert (rates.input, rates.output) == (300_000_000, 2_500_000_000)


def test_sound_images_and_reasoning_have_rates_where_they_are_listed(answers: Answers) -> None:
    sound = known(answers, "openai", "gpt-realtime")
    assert sound.input_audio is not None
    assert sound.output_audio is not None
    assert sound.input_audio > (sound.input or 0)
    image = known(answers, "google", "gemini-2.5-flash-image")
    assert (image.output, image.output_image) == (2_500_000_000, 30_000_000_000)
    research = known(answers, "openrouter", "perplexity/sonar-deep-research")
    assert (research.output, research.reasoning) == (8_000_000_000, 3_000_000_000)


def test_openrouter_and_cloudflare(answers: Answers) -> None:
    mini = known(answers, "openrouter", "openai/gpt-4o-mini")
    assert (mini.input, mini.output, mini.cache_read) == (150_000_000, 600_000_000, 75_000_000)
    llama = known(answers, "cloudflare", "@cf/meta/llama-3.1-8b-instruct")
    assert (llama.input, llama.output) == (282_000_000, 827_000_000)


def test_an_embedding_model_costs_its_input(answers: Answers) -> None:
    rates = known(answers, "cloudflare", "@cf/baai/bge-m3")
    assert rates.output is None
    assert cost(Usage(input_tokens=1000), rates) == 12_000


@pytest.mark.parametrize(
    "pair",
    [
        ("openrouter", "meta-llama/llama-3.3-70b-instruct:free"),
        ("https://openrouter.ai/api/v1", "nobody/has-listed-this:free"),
        ("google", "gemma-3-27b-it"),
    ],
)
def test_a_free_model_costs_nothing(answers: Answers, pair: tuple[str, str]) -> None:
    assert cost(USED, known(answers, *pair)) == 0


@pytest.mark.parametrize(
    "pair",
    [
        ("groq", "no-such-model"),
        ("groq", "nobody/has-listed-this:free"),
        ("no-such-provider", "gpt-4o"),
        ("https://example.com/v1", "gpt-4o"),
        ("", ""),
    ],
)
def test_what_is_not_listed_is_null(answers: Answers, pair: tuple[str, str]) -> None:
    assert answers[pair] is None


@pytest.mark.parametrize(
    "pair",
    [("groq", "whisper-large-v3"), ("perplexity", "sonar"), ("cerebras", "qwen-3-coder-480b")],
)
def test_what_tokens_do_not_tell_is_null(answers: Answers, pair: tuple[str, str]) -> None:
    assert answers[pair] is None


def test_the_version_names_the_release_and_the_day_of_a_dated_price(answers: Answers) -> None:
    release = f"genai-prices {version('genai-prices')}"
    assert known(answers, "groq", "llama-3.3-70b-versatile").version == release
    dated = known(answers, "openrouter", "meta-llama/llama-3.3-70b-instruct").version
    assert dated is not None
    assert dated.startswith(f"{release}, 20")


def test_every_answer_is_from_the_catalogue(answers: Answers) -> None:
    assert {rates.source for rates in answers.values() if rates} == {"catalog"}


def test_the_command_reads_one_line_and_writes_one() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "proxy.metering.catalog"],
        input=b'[["groq","no-such-model"],["openrouter","a/b:free"]]\nnot read\n',
        capture_output=True,
        cwd=ROOT,
        check=True,
        timeout=30,
    )
    assert done.stdout.count(b"\n") == 1
    nothing, free = msgspec.json.decode(done.stdout)
    assert nothing is None
    assert (free["input"], free["output"]) == (0, 0)


def stand_in(folder: Path, script: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("echo one >&2; echo two >&2; exit 3", "status 3: two"),
        ("echo 'not json'", "JSON is malformed"),
        ("echo '[]'", "0 answers to 1"),
        ('echo \'[{"input": "x"}]\'', "Expected `int | null`"),
    ],
)
async def test_a_failing_child_raises_nothing(
    script: str,
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path, script))
    book = Prices({}, {"groq": "groq"})
    await book.resolve([("groq", "llama")])
    assert complaint in caplog.text
    assert book.quote("groq", "llama", USED) == Quote(None, "none", None)


async def test_a_missing_child_raises_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nowhere"))
    book = Prices({}, {"groq": "groq"})
    await book.resolve([("groq", "llama")])
    assert book.quote("groq", "llama", USED) == Quote(None, "none", None)


async def test_a_child_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "executable", stand_in(tmp_path, f"echo $$ > {tmp_path}/pid; exec sleep 60")
    )
    monkeypatch.setattr(pricing, "_CHILD_LIMIT", 1.0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(10):
            await look_up([("groq", "llama")])
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


async def test_a_folder_named_proxy_where_we_were_started_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "proxy").mkdir()
    (tmp_path / "proxy" / "__init__.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    assert await look_up([("groq", "no-such-model")]) == [None]


def test_the_serving_side_never_loads_the_catalogue() -> None:
    script = """
import asyncio, sys
import proxy.metering.estimate
from proxy.metering.pricing import Prices

async def main():
    prices = Prices({}, {"groq": "groq"})
    await prices.resolve([("groq", "llama-3.3-70b-versatile")])
    assert prices.rates("groq", "llama-3.3-70b-versatile") is not None

asyncio.run(main())
loaded = {"genai_prices", "proxy.metering.catalog", "httpx2", "pydantic"} & set(sys.modules)
sys.exit(f"loaded: {loaded}" if loaded else 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
