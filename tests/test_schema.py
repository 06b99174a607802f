from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from pydantic import ValidationError

from proxy.schema import ProviderSettings, ServerSettings, Settings, is_loopback

SECRET = "sk-canary-7f3a"


def provider(**members: Any) -> ProviderSettings:
    return Settings(
        providers={"p": {"type": "openai", "base_url": "http://h/v1", **members}}
    ).providers["p"]


def test_the_defaults_are_those_of_the_contract() -> None:
    settings = Settings()
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 8000)
    assert settings.server.max_body == 20 * 1024**2
    assert settings.server.drain == 8.0
    assert settings.telemetry.database_url == "sqlite+aiosqlite:///./data/tollkeeper.db"
    assert settings.telemetry.retention_days == 30
    assert settings.telemetry.keeps
    assert settings.auth.master_key is None


def test_the_environment_is_not_read_behind_the_caller_s_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TOLLKEEPER_SERVER__PORT", "1")
    assert Settings().server.port == 8000


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("8s", 8), ("500ms", 0.5), ("1.5m", 90), ("2h", 7200), ("3", 3), (4, 4), (0.25, 0.25)],
)
def test_durations_are_seconds(text: Any, seconds: float) -> None:
    assert ServerSettings(drain=text).drain == seconds


@pytest.mark.parametrize("text", ["", "soon", "8 days", "-1s", True, None, [], "1e3", -1, "nan"])
def test_what_is_no_duration_is_refused(text: Any) -> None:
    with pytest.raises(ValidationError):
        ServerSettings(body_timeout=text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("20MiB", 20 * 1024**2),
        ("20 mib", 20 * 1024**2),
        ("500kB", 500_000),
        ("1.5GiB", 3 * 1024**3 // 2),
        ("64K", 64_000),
        ("1048576", 1024**2),
        (1048576, 1024**2),
        ("10B", 10),
    ],
)
def test_sizes_are_bytes(text: Any, size: int) -> None:
    assert ServerSettings(max_body=text).max_body == size


@pytest.mark.parametrize("text", ["", "lots", "20 MB/s", "-1", 0, True, 1.5, "1TiB"])
def test_what_is_no_size_is_refused(text: Any) -> None:
    with pytest.raises(ValidationError):
        ServerSettings(max_body=text)


def test_a_provider_known_by_name_needs_no_type() -> None:
    settings = Settings(providers={"groq": {"keys": [{"value": "k"}]}, "ollama": None})
    assert settings.providers["groq"].type == "groq"
    assert settings.providers["ollama"].type == "ollama"
    assert settings.providers["ollama"].base_url is None


def test_a_known_name_may_stand_for_another_type() -> None:
    settings = Settings(providers={"groq": {"type": "openai", "base_url": "http://h"}})
    assert settings.providers["groq"].type == "openai"


def test_keys_have_names_groups_and_weights_by_themselves() -> None:
    keys = provider(keys=[{"value": "a"}, {"name": "b", "value": "b"}, {"value": "c"}]).keys
    assert [(key.name, key.quota_group, key.weight) for key in keys] == [
        ("key-1", "key-1", 1.0),
        ("b", "b", 1.0),
        ("key-3", "key-3", 1.0),
    ]
    [key] = provider(keys=[{"name": "a", "value": "v", "quota_group": "org", "weight": 2}]).keys
    assert (key.quota_group, key.weight) == ("org", 2.0)


def test_blanks_around_a_secret_are_taken_off() -> None:
    assert provider(keys=[{"value": f" {SECRET}\n"}]).keys[0].value.get_secret_value() == SECRET


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("http://127.0.0.1:9000/v1/", "http://127.0.0.1:9000/v1"),
        ("https://h/a/b///", "https://h/a/b"),
        (" http://[::1]:1 ", "http://[::1]:1"),
    ],
)
def test_a_base_url_loses_the_slash_at_its_end(given: str, kept: str) -> None:
    assert provider(base_url=given).base_url == kept


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h:9000",
        "ftp://h",
        "http://",
        "http://h:99999",
        "http://u:p@h",
        "http://h/?key=x",
        "http://h/#x",
        "http://a b/",
        "//h/v1",
    ],
)
def test_a_base_url_is_a_plain_web_address(url: str) -> None:
    with pytest.raises(ValidationError):
        provider(base_url=url)


def test_prices_are_exact_decimals() -> None:
    settings = Settings(prices={"lab/*": {"input": 0.1, "output": "1.50"}})
    price = settings.prices["lab/*"]
    assert (price.input, price.output) == (Decimal("0.1"), Decimal("1.50"))
    assert price.cached_input is None


def test_timeouts_are_the_dialect_s_where_nothing_is_said() -> None:
    assert provider().timeouts.first_byte is None
    timeouts = provider(timeouts={"connect": "500ms", "first_byte": 120}).timeouts
    assert (timeouts.connect, timeouts.first_byte, timeouts.idle) == (0.5, 120.0, 120.0)


@pytest.mark.parametrize(
    ("members", "keeps"),
    [({}, True), ({"enabled": False}, False), ({"privacy_level": "none"}, False)],
)
def test_nothing_is_kept_where_telemetry_is_off(members: dict[str, Any], keeps: bool) -> None:
    assert Settings(telemetry=members).telemetry.keeps is keeps


def test_secrets_are_in_no_repr_and_listed_for_redaction() -> None:
    settings = Settings(
        auth={"master_key": f"{SECRET}-m"},
        providers={"groq": {"keys": [{"value": f"{SECRET}-k"}]}},
        telemetry={"database_url": f"postgresql+asyncpg://u:{SECRET}%2Fd@h/d"},
    )
    for text in (repr(settings), str(settings), f"{settings.providers}", repr(settings.telemetry)):
        assert SECRET not in text
    assert settings.secrets() == [f"{SECRET}-m", f"{SECRET}-k", f"{SECRET}/d"]


def test_settings_cannot_be_changed() -> None:
    settings = Settings()
    with pytest.raises(ValidationError):
        settings.server.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("LOCALHOST.", True),
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.2", False),
        ("localhost.example.org", False),
        ("", False),
    ],
)
def test_loopback_is_what_only_this_machine_reaches(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
