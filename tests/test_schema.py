from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from pydantic import ValidationError

from proxy.schema import Alias, ProviderSettings, Settings

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


@pytest.mark.parametrize(
    ("members", "limit"),
    [
        ({}, None),
        ({"privacy_level": "full"}, 262_144),
        ({"privacy_level": "full", "content_max_bytes": "1KiB"}, 1024),
        ({"privacy_level": "full", "enabled": False}, None),
        ({"privacy_level": "none"}, None),
    ],
)
def test_contents_are_kept_where_that_was_said(members: dict[str, Any], limit: int | None) -> None:
    assert Settings(telemetry=members).telemetry.content_limit == limit


def test_secrets_are_in_no_repr_and_listed_for_redaction() -> None:
    settings = Settings(
        auth={"master_key": f"{SECRET}-m"},
        providers={"groq": {"keys": [{"value": f"{SECRET}-k"}]}},
        telemetry={"database_url": f"postgresql+asyncpg://u:{SECRET}%2Fd@h/d"},
        state={"url": f"redis://:{SECRET}%2Fr@h:6379/0"},
    )
    shown = (settings, settings.providers, settings.telemetry, settings.state)
    for text in [f(each) for each in shown for f in (repr, str)]:
        assert SECRET not in text
    assert settings.secrets() == [f"{SECRET}-m", f"{SECRET}-k", f"{SECRET}/d", f"{SECRET}/r"]


def test_settings_cannot_be_changed() -> None:
    settings = Settings()
    with pytest.raises(ValidationError):
        settings.server.port = 1  # type: ignore[misc]


# Keys, limits and strategies.


def test_a_provider_takes_its_least_busy_key_and_has_no_limits_by_itself() -> None:
    lab = provider(keys=[{"value": "a"}])
    assert lab.strategy == "least_busy"
    assert (lab.limits.groups, lab.limits.models) == ({}, {})
    assert set(lab.keys[0].limits.model_dump().values()) == {None}


def test_limits_are_of_a_key_a_group_or_a_model() -> None:
    lab = provider(
        keys=[{"name": "a", "value": "v", "limits": {"rpm": 30, "tpd": "500000"}}],
        limits={"groups": {"a": {"concurrency": 2}}, "models": {"big-*": {"rpd": 50, "tpm": 6000}}},
    )
    assert (lab.keys[0].limits.rpm, lab.keys[0].limits.tpd) == (30, 500_000)
    assert lab.limits.groups["a"].concurrency == 2
    assert (lab.limits.models["big-*"].rpd, lab.limits.models["big-*"].tpm) == (50, 6000)


@pytest.mark.parametrize("strategy", ["sticky", "fallback", "weighted", "round_robin"])
def test_a_strategy_is_known_to_keys_and_targets(strategy: str) -> None:
    assert provider(strategy=strategy).strategy == strategy
    assert alias(["lab/x"], strategy=strategy).strategy == strategy


def test_by_cost_only_targets_can_be_ordered() -> None:
    assert alias(["lab/x"], strategy="lowest_cost").strategy == "lowest_cost"
    with pytest.raises(ValidationError):
        provider(strategy="lowest_cost")


def alias(targets: list[Any], **members: Any) -> Alias:
    return Settings(models={"fast": {"targets": targets, **members}}).models["fast"]


def test_a_target_is_plain_text_or_has_a_tier_and_a_weight() -> None:
    found = alias(["lab/x", {"target": "lab/y"}, {"target": "a/b/c", "tier": 2, "weight": 0.5}])
    assert [(each.target, each.tier, each.weight) for each in found.targets] == [
        ("lab/x", 1, 1.0),
        ("lab/y", 1, 1.0),
        ("a/b/c", 2, 0.5),
    ]
    assert (found.strategy, found.context_window_fallbacks, found.content_filter_fallbacks) == (
        *("fallback", [], []),
    )


def test_an_alias_has_targets_for_what_is_too_long_and_for_what_is_refused() -> None:
    found = alias(
        ["lab/x"], context_window_fallbacks=["lab/long"], content_filter_fallbacks=["lab/free"]
    )
    assert found.context_window_fallbacks == ["lab/long"]
    assert found.content_filter_fallbacks == ["lab/free"]


def test_failures_are_met_as_the_contract_says_by_themselves() -> None:
    routing = Settings().routing
    assert (routing.max_wait, routing.max_cooldown, routing.probe) == (1.0, 86_400.0, 0.0)
    assert (routing.retry_budget.ratio, routing.retry_budget.minimum) == (0.2, 10)
    breaker = routing.breaker
    assert (breaker.failures, breaker.rate, breaker.minimum) == (5, 0.5, 20)
    assert (breaker.window, breaker.open_for, breaker.longest) == (30.0, 10.0, 300.0)
    given = {"max_wait": "0s", "max_cooldown": "2h", "breaker": {"failures": 0}, "probe": "1m"}
    routing = Settings(routing=given).routing
    assert (routing.max_wait, routing.max_cooldown, routing.probe) == (0.0, 7200.0, 60.0)
    assert (routing.breaker.failures, routing.breaker.window) == (0, 30.0)


def test_nothing_is_shared_unless_there_is_an_address() -> None:
    assert (Settings().state.url, Settings().state.prefix) == (None, "tollkeeper")
    assert Settings(state={"url": ""}).state.url is None
    shared = Settings(state={"url": "rediss://h:1/2", "prefix": "blue"}).state
    assert (shared.url, shared.prefix) == ("rediss://h:1/2", "blue")
