from __future__ import annotations

from typing import Any

import pytest

from proxy.providers import DIALECTS
from proxy.providers.base import Dialect, Provider, listed
from tests.providers.cases import NOW
from tests.transcripts import body


def test_every_dialect_is_found_by_its_name() -> None:
    assert list(DIALECTS) == ["openai", "groq", "gemini", "openrouter", "ollama", "cloudflare"]
    assert all(dialect.name == name for name, dialect in DIALECTS.items())


def test_a_secret_travels_as_a_bearer_and_none_as_nothing() -> None:
    dialect = Dialect()
    assert dialect.headers("sk-1") == [(b"authorization", b"Bearer sk-1")]
    assert dialect.headers(None) == []


def test_what_is_not_configured_comes_from_the_dialect() -> None:
    ollama = Provider.of("desk", DIALECTS["ollama"])
    assert (ollama.connect, ollama.first_byte, ollama.idle) == (5.0, 600.0, 120.0)
    groq = Provider.of("g", DIALECTS["groq"], connect=1, first_byte=2, idle=3, include_usage=True)
    assert (groq.connect, groq.first_byte, groq.idle, groq.include_usage) == (1, 2, 3, True)


def test_a_list_of_nothing_is_empty() -> None:
    assert listed("desk", {"object": "list", "data": None}) == []


@pytest.mark.parametrize("answer", [None, [], "x", {}, {"models": []}])
def test_what_is_no_list_is_an_error(answer: Any) -> None:
    with pytest.raises(ValueError, match="no model list"):
        listed("desk", answer)


def test_sizes_are_read_from_wherever_a_server_puts_them() -> None:
    models = listed(
        "lab",
        {
            "data": [
                {"id": "groq", "context_window": 8192, "max_completion_tokens": 4096},
                {"id": "vllm", "max_model_len": 32_768},
                {"id": "llama.cpp", "meta": {"n_ctx_train": 2048, "n_params": 1_000_000}},
                {"id": "studio", "max_context_length": 4096, "type": "llm"},
                {"id": "bare"},
                {"id": ""},
                {"id": 5},
                "noise",
            ]
        },
    )
    assert [model.name for model in models] == ["groq", "vllm", "llama.cpp", "studio", "bare"]
    assert [model.context_length for model in models] == [8192, 32_768, 2048, 4096, None]
    assert models[0].max_output_tokens == 4096
    assert models[2].parameters == 1_000_000
    assert models[3].type == "llm"


def test_a_fault_knows_who_said_how_long() -> None:
    """Midnight is our own arithmetic, even where a short wait stands beside the exhausted day."""
    openai, gemini = DIALECTS["openai"], DIALECTS["gemini"]
    retry_after = [(b"retry-after", b"7")]
    assert openai.classify(429, retry_after, b"", NOW).hint == "header"
    assert openai.classify(429, [], b'{"error":"try again in 7s"}', NOW).hint == "body"
    assert openai.classify(429, [], b"", NOW).hint is None
    day = gemini.classify(429, [], body("T8"), NOW)
    assert (day.hint, day.probe_after) == (None, 36.429760048)


@pytest.mark.parametrize(
    ("address", "is_local"),
    [
        ("http://127.0.0.1:11434/v1", True),
        ("http://localhost:9000/v1", True),
        ("http://[::1]:9000/v1", True),
        ("http://10.0.0.5:11434/v1", False),
        ("https://api.groq.com/openai/v1", False),
    ],
)
def test_where_a_provider_runs_is_told_by_its_address(address: str, is_local: bool) -> None:
    assert Provider.of("lab", DIALECTS["openai"], base_url=address).is_local is is_local
