from __future__ import annotations

import pytest

from proxy.discovery import discover, ollama_url


def test_an_empty_environment_switches_nothing_on() -> None:
    assert discover({"HOME": "/root", "GROQ_API_KEY": "", "OLLAMA_HOST": " "}) == ({}, [])


def test_keys_are_found_over_any_gap_in_the_order_of_their_numbers() -> None:
    environ = {f"GROQ_API_KEY_{number}": f"k{number}" for number in (12, 2, 7)}
    providers, warnings = discover(environ)
    assert providers == {
        "groq": {
            "keys": [
                {"name": "key-2", "value": "k2"},
                {"name": "key-7", "value": "k7"},
                {"name": "key-12", "value": "k12"},
            ]
        }
    }
    assert warnings == []


def test_the_key_without_a_number_is_the_first() -> None:
    assert discover({"GEMINI_API_KEY": "k"})[0]["gemini"]["keys"] == [
        {"name": "key-1", "value": "k"}
    ]
    both = {"GEMINI_API_KEY": "k", "GEMINI_API_KEY_1": "k1"}
    names = [key["name"] for key in discover(both)[0]["gemini"]["keys"]]
    assert names == ["key", "key-1"]


def test_other_variables_that_look_alike_are_not_keys() -> None:
    environ = {"GROQ_API_KEY_X": "k", "GROQ_API_KEY_01": "k", "MY_GROQ_API_KEY": "k"}
    assert discover(environ) == ({}, [])


def test_blanks_around_a_key_are_taken_off() -> None:
    assert discover({"OPENROUTER_API_KEY": " k\n"})[0]["openrouter"]["keys"][0]["value"] == "k"


def test_cloudflare_needs_its_account_too() -> None:
    providers, warnings = discover({"CLOUDFLARE_API_TOKEN_3": "t"})
    assert providers == {}
    assert warnings == ["CLOUDFLARE_ACCOUNT_ID: is not set; cloudflare is left out"]
    providers, warnings = discover({"CLOUDFLARE_API_TOKEN": "t", "CLOUDFLARE_ACCOUNT_ID": "a"})
    assert providers["cloudflare"] == {
        "account_id": "a",
        "keys": [{"name": "key-1", "value": "t"}],
    }
    assert warnings == []


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("box", "http://box:11434/v1"),
        ("box:8080", "http://box:8080/v1"),
        (":8080", "http://127.0.0.1:8080/v1"),
        ("0.0.0.0", "http://127.0.0.1:11434/v1"),
        ("0.0.0.0:1", "http://127.0.0.1:1/v1"),
        ("[::]:1", "http://[::1]:1/v1"),
        ("[fe80::1]", "http://[fe80::1]:11434/v1"),
        ("http://box", "http://box:80/v1"),
        ("https://box", "https://box:443/v1"),
        ("https://box:8443/ollama/", "https://box:8443/ollama/v1"),
        ("http://box:1/v1", "http://box:1/v1"),
        ("box:99999", None),
        ("ftp://box", None),
        ("http://user:word@box", None),
        ("two words", None),
    ],
)
def test_ollama_host_is_read_as_ollama_reads_it(host: str, url: str | None) -> None:
    assert ollama_url(host) == url


def test_ollama_host_switches_ollama_on() -> None:
    assert discover({"OLLAMA_HOST": "box"})[0] == {"ollama": {"base_url": "http://box:11434/v1"}}
    providers, warnings = discover({"OLLAMA_HOST": "two words"})
    assert providers == {}
    assert warnings == ["OLLAMA_HOST: is no host, host:port or URL; ollama is left out"]
