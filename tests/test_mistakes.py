from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from proxy.document import dotted
from proxy.mistakes import nearest, tell
from proxy.schema import Settings

LAB = {"type": "openai", "base_url": "http://h"}
STRATEGIES = "'fallback', 'weighted', 'round_robin', 'least_busy', 'lowest_latency'"
DURATION = "must be a duration such as 8s, 500ms or 2m, or a number of seconds"


def told(**sections: Any) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        Settings(**sections)
    return [f"{dotted(at)}: {words}" for at, words in tell(caught.value, Settings)]


def key(**members: Any) -> dict[str, Any]:
    return {"providers": {"groq": {"keys": [{"value": "v", **members}]}}}


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        (key(weight=-1), "providers.groq.keys[0].weight: must be greater than 0 (got -1)"),
        (key(weight="x"), "providers.groq.keys[0].weight: must be a number"),
        (key(weight=float("inf")), "providers.groq.keys[0].weight: must be a finite number"),
        (
            key(weigth=1),
            "providers.groq.keys[0].weigth: is not a setting; did you mean weight?"
            " accepted: free_tier, limits, name, quota_group, value, weight",
        ),
        (key(value=1), "providers.groq.keys[0].value: must be text (put it in quotes)"),
        (
            key(value="two words"),
            "providers.groq.keys[0].value: holds a blank or a character that no HTTP header"
            " can carry",
        ),
        (
            key(name="-"),
            "providers.groq.keys[0].name: must be at most 64 letters, digits and . _ @ -,"
            " no mark first",
        ),
        (
            {"providers": {"groq": {"keys": [{"name": "a", "value": "x"}] * 2}}},
            "providers.groq.keys: each key needs a name of its own (twice: a)",
        ),
        ({"providers": {"groq": {}}}, "providers.groq: type groq needs keys"),
        (
            {"providers": {"cloudflare": {}}},
            "providers.cloudflare: type cloudflare needs account_id and keys",
        ),
        ({"providers": {"lab": {"type": "openai"}}}, "providers.lab: type openai needs base_url"),
        (
            {"providers": {"lab": {"type": "openai", "base_url": "http://x", "api": "native"}}},
            "providers.lab: api: native is for type ollama; accepted here: openai",
        ),
        (
            {"providers": {"ollama": {"api": "own"}}},
            "providers.ollama.api: must be 'openai' or 'native'",
        ),
        (
            {"providers": {"lab": {}}},
            "providers.lab.type: is missing; accepted:"
            " groq, gemini, openrouter, ollama, cloudflare, openai, demo",
        ),
        (
            {"providers": {"Lab": LAB}},
            "providers.Lab: must be named in at most 64 small letters, digits, _ and -",
        ),
        ({"server": {"port": 65536}}, "server.port: must be at most 65535 (got 65536)"),
        ({"server": {"port": True}}, "server.port: must be a number"),
        ({"server": {"workers": 0}}, "server.workers: must be at least 1 (got 0)"),
        (
            {"server": {"log_level": "loud"}},
            "server.log_level: must be 'debug', 'info', 'warning' or 'error'",
        ),
        ({"server": []}, "server: must be a mapping"),
        (
            {"serve": {}},
            "serve: is not a setting; did you mean server? accepted: auth, budgets,"
            " limits, models, prices, providers, routing, server, state, telemetry",
        ),
        ({"models": {"a": {"targets": []}}}, "models.a.targets: must not be empty"),
        ({"models": {"a": {}}}, "models.a.targets: is missing"),
        ({"models": {"a": {"targets": ["x"]}}}, "models.a.targets[0]: must be PROVIDER/MODEL"),
        (
            {"models": {"a": {"targets": ["lab/"]}}},
            "models.a.targets[0]: must be PROVIDER/MODEL",
        ),
        (
            {"models": {"a": {"targets": ["lab/x"], "strategy": "random"}}},
            f"models.a.strategy: must be {STRATEGIES}, 'lowest_cost' or 'sticky'",
        ),
        (
            {"models": {"a": {"targets": [{"target": "x"}]}}},
            "models.a.targets[0].target: must be PROVIDER/MODEL",
        ),
        ({"models": {"a": {"targets": [{"tier": 1}]}}}, "models.a.targets[0].target: is missing"),
        (
            {"models": {"a": {"targets": [None]}}},
            "models.a.targets[0]: must be PROVIDER/MODEL, or a mapping with target, tier and"
            " weight",
        ),
        ({"models": {"a": {"targets": "lab/x"}}}, "models.a.targets: must be a list"),
        (
            {"models": {"a": {"targets": [{"target": "lab/x", "weight": 0}]}}},
            "models.a.targets[0].weight: must be greater than 0 (got 0)",
        ),
        (
            {"models": {"a": {"targets": [{"target": "lab/x", "tier": 1.5}]}}},
            "models.a.targets[0].tier: must be a whole number",
        ),
        (
            {"models": {"a": {"targets": ["lab/x"], "context_window_fallbacks": ["x"]}}},
            "models.a.context_window_fallbacks[0]: must be PROVIDER/MODEL",
        ),
        (
            {"providers": {"lab": {**LAB, "strategy": "lowest_cost"}}},
            f"providers.lab.strategy: must be {STRATEGIES} or 'sticky'",
        ),
        (
            key(limits={"rpm": 0}),
            "providers.groq.keys[0].limits.rpm: must be greater than 0 (got 0)",
        ),
        (
            key(limits={"rph": 1}),
            "providers.groq.keys[0].limits.rph: is not a setting; did you mean rpm?"
            " accepted: concurrency, rpd, rpm, tpd, tpm",
        ),
        (
            {"providers": {"lab": {**LAB, "limits": {"models": {"big-*": {"tpm": "many"}}}}}},
            "providers.lab.limits.models.big-*.tpm: must be a whole number",
        ),
        (
            {"providers": {"lab": {**LAB, "limits": {"keys": {}}}}},
            "providers.lab.limits.keys: is not a setting; accepted: groups, models",
        ),
        ({"routing": {"max_wait": "-1s"}}, f"routing.max_wait: {DURATION}"),
        ({"routing": {"max_wait": -1}}, "routing.max_wait: must be at least 0 (got -1)"),
        (
            {"routing": {"retry_budget": {"ratio": 20}}},
            "routing.retry_budget.ratio: must be at most 1 (got 20)",
        ),
        (
            {"routing": {"breaker": {"failure": 1}}},
            "routing.breaker.failure: is not a setting; did you mean failures?"
            " accepted: failures, longest, minimum, open_for, rate, window",
        ),
        (
            {"routing": {"breaker": {"open_for": 0}}},
            "routing.breaker.open_for: must be greater than 0 (got 0)",
        ),
        (
            {"state": {"url": "h:6379"}},
            "state.url: must be an address such as redis://:PASSWORD@127.0.0.1:6379/0",
        ),
        (
            {"state": {"prefix": "a b"}},
            "state.prefix: must be at most 64 letters, digits and . _ @ -, no mark first",
        ),
        (
            {"prices": {"lab/x": {"input": -1, "output": 0}}},
            "prices.lab/x.input: must be at least 0 (got -1)",
        ),
        (
            {"prices": {"lab/x": {"input": float("nan"), "output": 0}}},
            "prices.lab/x.input: must be a finite number",
        ),
        (
            {"prices": {"lab/x": {"input": "x", "output": 0}}},
            "prices.lab/x.input: must be a number",
        ),
        (
            {"prices": {"x": {"input": 1, "output": 1}}},
            "prices: must be named PROVIDER/MODEL (not so: x)",
        ),
        (
            {"telemetry": {"privacy_level": "full", "content_days": 0}},
            "telemetry.content_days: must be at least 1 (got 0)",
        ),
        (
            {"telemetry": {"privacy_level": "some"}},
            "telemetry.privacy_level: must be 'metadata', 'full' or 'none'",
        ),
        (
            {"telemetry": {"tps_windows": [1, 0]}},
            "telemetry.tps_windows[1]: must be at least 1 (got 0)",
        ),
        (
            {"telemetry": {"retention_days": -1}},
            "telemetry.retention_days: must be at least 0 (got -1)",
        ),
        (
            {"telemetry": {"database_url": "postgresql://h/d"}},
            "telemetry.database_url: must start with sqlite+aiosqlite:// or postgresql+asyncpg://",
        ),
        ({"telemetry": {"enabled": "maybe"}}, "telemetry.enabled: must be true or false"),
    ],
)
def test_each_mistake_is_told_in_plain_words(sections: dict[str, Any], line: str) -> None:
    assert told(**sections) == [line]


@pytest.mark.parametrize(
    "sections",
    [
        {"auth": {"master_key": "canary canary"}},
        {"auth": {"master_key": ["canary"]}},
        {"auth": "canary"},
        {"server": {"port": "canary", "log_level": "canary", "max_body": "canary"}},
        {"providers": {"groq": "canary"}},
        {"providers": {"groq": {"keys": "canary"}}},
        {"providers": {"groq": {"keys": ["canary"]}}},
        {"providers": {"groq": {"keys": [{"value": "v", "weight": "canary"}]}}},
        {"providers": {"groq": {"keys": [{"value": "v", "name": "canary canary"}]}}},
        {"providers": {"cloudflare": {"account_id": "canary canary", "keys": []}}},
        {"providers": {"lab": {"type": "canary", "base_url": "http://canary@h"}}},
        {"providers": {"lab": {**LAB, "timeouts": {"idle": "canary"}}}},
        {"providers": {"lab": {**LAB, "include_usage": "canary"}}},
        {"telemetry": {"database_url": "postgresql://u:canary@h/d", "enabled": "canary"}},
        {"prices": {"a/b": {"input": "canary", "output": 1}}},
        {"state": {"url": "redis://:canary@h:x"}},
        {"state": {"url": ["canary"], "prefix": "canary canary"}},
        {"state": "canary"},
        {"routing": {"max_wait": "canary", "retry_budget": "canary"}},
        {"models": {"a": {"targets": ["canary", {"target": "canary", "tier": "canary"}]}}},
        {"providers": {"lab": {**LAB, "strategy": "canary", "limits": {"groups": "canary"}}}},
    ],
)
def test_no_line_quotes_what_may_be_a_secret(sections: dict[str, Any]) -> None:
    assert "canary" not in "\n".join(told(**sections))


def test_the_nearest_name_is_guessed_only_where_one_is_near() -> None:
    assert nearest("weigth", ["weight", "name"]) == "did you mean weight? accepted: name, weight"
    assert nearest("zzz", ["weight", "name"]) == "accepted: name, weight"
