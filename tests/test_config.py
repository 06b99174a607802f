from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from proxy.config import load, master_key
from proxy.errors import ConfigError
from proxy.schema import Alias, Settings

LAB = "providers: {lab: {type: openai, base_url: 'http://127.0.0.1:9000/v1'}}\n"
EXAMPLE = Path(__file__).parents[1] / "config" / "tollkeeper.example.yaml"

CONTRACT = """
server: {host: 127.0.0.1, port: 8000, max_body: 20MiB, drain: 8s}
auth:
  master_key: ${TOLLKEEPER_MASTER_KEY:-}
providers:
  groq:
    keys:
      - {name: org-a, value: "${GROQ_API_KEY_1}", quota_group: org-a, weight: 1}
      - {name: org-b, value: "${GROQ_API_KEY_2}", quota_group: org-b, weight: 1}
  lab:
    type: openai
    base_url: http://127.0.0.1:9000/v1
    keys: [{name: k1, value: sk-1}]
    timeouts: {connect: 5, first_byte: 120, idle: 120}
  ollama: {base_url: "http://127.0.0.1:11434/v1"}
models:
  fast:
    targets: [groq/llama-3.1-8b-instant, gemini/gemini-2.5-flash-lite]
    strategy: fallback
    rewrite_model: false
prices:
  lab/json: {input: 0.50, output: 1.50}
telemetry:
  enabled: true
  database_url: sqlite+aiosqlite:///./data/tollkeeper.db
  privacy_level: metadata
  retention_days: 30
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def settings(
    text: str = "",
    environ: Mapping[str, str] | None = None,
    **server: Any,
) -> Settings:
    """Load ``text`` as the file t.yaml; "" is no file."""
    file = Path("t.yaml") if text else None
    if file is not None:
        file.write_text(text)
    return load(file, {"server": server}, environ or {})


def mistakes(text: str = "", environ: Mapping[str, str] | None = None, **server: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        settings(text, environ, **server)
    return caught.value.mistakes


def named(alias: Alias) -> list[str]:
    """What an alias goes to."""
    return [each.target for each in alias.targets]


def test_arguments_beat_variables_beat_the_file_beat_the_defaults() -> None:
    text = "server: {host: 127.0.0.2, port: 1, drain: 1s}\n"
    environ = {"TOLLKEEPER_SERVER__PORT": "2", "TOLLKEEPER_SERVER__HOST": "127.0.0.3"}
    server = settings(text, environ, host="127.0.0.4").server
    assert (server.host, server.port, server.drain, server.peek) == ("127.0.0.4", 2, 1.0, 2.0)


def test_the_file_is_the_named_one_else_the_variable_s_else_the_default_one() -> None:
    Path("config").mkdir()
    for number, name in enumerate(["named.yaml", "variable.yaml", "config/tollkeeper.yaml"], 1):
        Path(name).write_text(f"server: {{port: {number}}}\n")
    environ = {"TOLLKEEPER_CONFIG": "variable.yaml"}
    assert load(Path("named.yaml"), {}, environ).server.port == 1
    assert load(None, {}, environ).server.port == 2
    assert load(None, {}, {}).server.port == 3
    assert load(None, {}, {"TOLLKEEPER_CONFIG": ""}).file == Path("config/tollkeeper.yaml")


def test_a_file_that_was_named_must_exist() -> None:
    assert mistakes(environ={"TOLLKEEPER_CONFIG": "gone.yaml"}) == ["gone.yaml: no such file"]


def test_the_process_s_environment_is_read_where_none_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TOLLKEEPER_SERVER__PORT", "4321")
    assert load().server.port == 4321


def test_variables_reach_every_depth_and_may_be_json() -> None:
    environ = {
        "TOLLKEEPER_PROVIDERS__LAB__TYPE": "openai",
        "TOLLKEEPER_PROVIDERS__LAB__BASE_URL": "http://h/v1",
        "TOLLKEEPER_PROVIDERS__LAB__TIMEOUTS__CONNECT": "500ms",
        "TOLLKEEPER_PROVIDERS__LAB__KEYS": '[{"name": "k", "value": "v"}]',
        "TOLLKEEPER_MODELS": json.dumps({"Fast-1.0": {"targets": ["lab/x"]}}),
        "TOLLKEEPER_TELEMETRY__DATABASE_URL": "postgresql+asyncpg://h/d",
        "TOLLKEEPER_TELEMETRY__ENABLED": "false",
        "TOLLKEEPER_SERVER__MAX_BODY": "1MiB",
        "TOLLKEEPER_SERVER__DRAIN": "",
    }
    found = settings(environ=environ)
    lab = found.providers["lab"]
    assert (lab.base_url, lab.timeouts.connect, lab.keys[0].name) == ("http://h/v1", 0.5, "k")
    assert named(found.models["Fast-1.0"]) == ["lab/x"]
    assert found.telemetry.database_url == "postgresql+asyncpg://h/d"
    assert not found.telemetry.enabled
    assert (found.server.max_body, found.server.drain) == (1024**2, 8.0)


def test_variables_change_one_member_of_what_the_file_says() -> None:
    lab = settings(LAB, {"TOLLKEEPER_PROVIDERS__LAB__INCLUDE_USAGE": "no"}).providers["lab"]
    assert (lab.include_usage, lab.base_url) == (False, "http://127.0.0.1:9000/v1")


@pytest.mark.parametrize(
    ("text", "environ", "key"),
    [
        ("", {"TOLLKEEPER_MASTER_KEY": "a"}, "a"),
        ("", {"TOLLKEEPER_AUTH__MASTER_KEY": "b", "TOLLKEEPER_MASTER_KEY": "a"}, "b"),
        ("auth: {master_key: c}\n", {"TOLLKEEPER_MASTER_KEY": "a"}, "a"),
        ("auth: {master_key: c}\n", {"TOLLKEEPER_MASTER_KEY": ""}, "c"),
        ("auth: {master_key: '${X:-}'}\n", {}, None),
        ("auth:\n  master_key:\n", {}, None),
        ("auth: {master_key: ' '}\n", {}, None),
    ],
)
def test_the_master_key_comes_from_its_variables_or_the_file(
    text: str, environ: dict[str, str], key: str | None
) -> None:
    assert master_key(settings(text, environ)) == (key, False)


def test_without_a_file_the_environment_switches_providers_on() -> None:
    found = settings(
        environ={"GROQ_API_KEY_2": "k", "OLLAMA_HOST": "box", "CLOUDFLARE_API_TOKEN": "t"}
    )
    assert list(found.providers) == ["groq", "ollama"]
    assert found.providers["groq"].keys[0].quota_group == "key-2"
    assert found.warnings == ("CLOUDFLARE_ACCOUNT_ID: is not set; cloudflare is left out",)
    assert found.file is None


def test_with_a_file_only_what_it_names_counts() -> None:
    found = settings(LAB, {"GROQ_API_KEY": "k", "OLLAMA_HOST": "box"})
    assert list(found.providers) == ["lab"]
    assert found.file == Path("t.yaml")


def test_an_unset_key_is_left_out_with_a_warning() -> None:
    text = """
providers:
  groq: {keys: [{name: a, value: "${A}"}, {name: b, value: "${B}"}, {name: c, value: "${C}"}]}
"""
    found = settings(text, {"B": "canary", "C": ""})
    assert [key.name for key in found.providers["groq"].keys] == ["b"]
    assert found.warnings == (
        "t.yaml: providers.groq.keys[0]: key a is left out: A is not set",
        "t.yaml: providers.groq.keys[2]: key c is left out: its value is empty",
    )


def test_what_cannot_work_without_its_keys_is_left_out_with_a_warning() -> None:
    text = """
providers:
  groq: {keys: [{name: a, value: "${A}"}]}
  lab: {type: openai, base_url: http://h, keys: [{value: "${A}"}]}
models:
  both: {targets: [groq/x, lab/y]}
  gone: {targets: [groq/x]}
  known: {targets: [gemini/x, lab/y]}
"""
    found = settings(text)
    assert list(found.providers) == ["lab"]
    assert found.providers["lab"].keys == []
    assert {name: named(alias) for name, alias in found.models.items()} == {
        "both": ["lab/y"],
        "known": ["lab/y"],
    }
    assert found.warnings[1:] == (
        "t.yaml: providers.groq: is left out: it has no key",
        "t.yaml: providers.lab.keys[0]: key key-1 is left out: A is not set",
        "t.yaml: models.both: groq/x is left out with its provider",
        "t.yaml: models.gone: groq/x is left out with its provider",
        "t.yaml: models.gone: is left out: it has no target",
        "t.yaml: models.known: gemini/x is left out with its provider",
    )


def test_a_target_that_is_left_out_is_left_out_of_every_list() -> None:
    text = """
providers:
  groq: {keys: [{name: a, value: "${A}"}]}
  lab: {type: openai, base_url: http://h}
models:
  fast:
    targets: [{target: groq/x, tier: 2}, {target: lab/y, weight: 3}]
    context_window_fallbacks: [lab/long, groq/long]
    content_filter_fallbacks: [groq/free]
"""
    found = settings(text)
    fast = found.models["fast"]
    assert [(each.target, each.tier, each.weight) for each in fast.targets] == [("lab/y", 1, 3.0)]
    assert (fast.context_window_fallbacks, fast.content_filter_fallbacks) == (["lab/long"], [])
    assert [line for line in found.warnings if "models" in line] == [
        f"t.yaml: models.fast: groq/{name} is left out with its provider"
        for name in ("x", "long", "free")
    ]


def test_mistakes_in_lists_of_targets_name_their_place() -> None:
    text = """
models:
  a: {targets: [lab/x, {target: labb/x}], context_window_fallbacks: [lab/y, lob/z]}
  b: {targets: [lab/x], content_filter_fallbacks: [lab, "lob/z"]}
  c: {targets: [fast, "${TARGET}", {tier: 1}, {target: lab, teir: 2}, 5]}
"""
    found = mistakes(LAB + text)
    words = "is no configured provider; did you mean lab? accepted: lab"
    both = "must be PROVIDER/MODEL"
    assert found == [
        "t.yaml: models.c.targets[1]: TARGET is not set; set it, or write ${TARGET:-default}",
        f"t.yaml: models.b.content_filter_fallbacks[0]: {both}",
        f"t.yaml: models.c.targets[0]: {both}",
        "t.yaml: models.c.targets[2].target: is missing",
        f"t.yaml: models.c.targets[3].target: {both}",
        "t.yaml: models.c.targets[3].teir: is not a setting; did you mean tier?"
        " accepted: target, tier, weight",
        f"t.yaml: models.c.targets[4]: {both}, or a mapping with target, tier and weight",
        f"t.yaml: models.a.targets[1]: labb {words}",
        f"t.yaml: models.a.context_window_fallbacks[1]: lob {words}",
    ]


def test_limits_of_a_group_that_no_key_is_in_are_a_mistake() -> None:
    text = """
providers:
  groq:
    keys: [{name: a, value: v, quota_group: org-a}, {name: b, value: "${B}"}]
    limits: {groups: {orga: {rpm: 1}, org-a: {rpm: 2}, b: {rpm: 3}}}
  ollama: {limits: {groups: {none: {concurrency: 1}}}}
"""
    assert mistakes(text) == [
        "t.yaml: providers.groq.limits.groups.orga: is no quota group of a key;"
        " did you mean org-a? accepted: b, org-a"
    ]


def test_variables_reach_the_routing_and_the_shared_state() -> None:
    found = settings(
        LAB + "routing: {breaker: {failures: 3}}\n",
        {
            "TOLLKEEPER_ROUTING__MAX_WAIT": "250ms",
            "TOLLKEEPER_ROUTING__BREAKER__RATE": "0.9",
            "TOLLKEEPER_ROUTING__RETRY_BUDGET__MINIMUM": "0",
            "TOLLKEEPER_STATE__URL": "redis://h",
        },
    )
    breaker = found.routing.breaker
    assert (found.routing.max_wait, breaker.failures, breaker.rate) == (0.25, 3, 0.9)
    assert (found.routing.retry_budget.minimum, found.state.url) == (0, "redis://h")


@pytest.mark.parametrize(
    "url", ["redis://:canary@h:port", "postgres://:canary@h", "redis://u:can[ary@h", "canary"]
)
def test_an_address_of_the_shared_state_is_never_quoted(url: str) -> None:
    words = "must be an address such as redis://:PASSWORD@127.0.0.1:6379/0"
    assert mistakes(f"state: {{url: '{url}'}}\n") == [f"t.yaml: state.url: {words}"]
    environ = {"TOLLKEEPER_STATE__URL": url}
    assert mistakes(environ=environ) == [f"TOLLKEEPER_STATE__URL: {words}"]


def test_an_unset_variable_elsewhere_is_one_mistake() -> None:
    assert mistakes("server: {port: '${PORT}'}\nauth: {master_key: 'x${KEY}'}\n") == [
        "t.yaml: server.port: PORT is not set; set it, or write ${PORT:-default}",
        "t.yaml: auth.master_key: KEY is not set; set it, or write ${KEY:-default}",
    ]


def test_an_unset_variable_is_none_of_our_business_where_the_environment_overrides_it() -> None:
    assert settings("server: {port: '${X}'}\n", {"TOLLKEEPER_SERVER__PORT": "5"}).server.port == 5


def test_mistakes_name_the_file_the_variable_or_the_argument() -> None:
    environ = {
        "TOLLKEEPER_SERVER__PORT": "-1",
        "TOLLKEEPER_PROVIDERS": '{"lab": {"keys": [{"value": "v", "weight": 0}]}}',
        "TOLLKEEPER_MASTER_KEY": "two words",
    }
    assert mistakes(LAB + "server: {peek: x}\n", environ, workers="0") == [
        "TOLLKEEPER_SERVER__PORT: must be at least 0 (got -1)",
        "--workers: must be at least 1 (got 0)",
        "t.yaml: server.peek: must be a duration such as 8s, 500ms or 2m, or a number of seconds",
        "TOLLKEEPER_MASTER_KEY: holds a blank or a character that no HTTP header can carry",
        "TOLLKEEPER_PROVIDERS: lab.keys[0].weight: must be greater than 0 (got 0)",
    ]


@pytest.mark.parametrize("telemetry", ["enabled: false", "privacy_level: none"])
def test_budgets_need_the_database(telemetry: str) -> None:
    text = f"budgets: [{{name: b, limit_usd: 1, period: day}}]\ntelemetry: {{{telemetry}}}\n"
    assert mistakes(LAB + text) == [
        "t.yaml: budgets: need the database, which telemetry (enabled, privacy_level) has off"
    ]


def test_a_budget_is_of_a_provider_that_there_is() -> None:
    text = """
budgets:
  - {name: a, limit_usd: 1, period: day, scope: provider, value: labb}
  - {name: b, limit_usd: 1, period: day, scope: provider, value: lab}
  - {name: c, limit_usd: 1, period: day, scope: user, value: labb}
"""
    assert mistakes(LAB + text) == [
        "t.yaml: budgets[0].value: labb is no configured provider; did you mean lab? accepted: lab"
    ]


def test_a_variable_that_means_nothing_is_a_mistake_or_a_warning() -> None:
    assert mistakes(environ={"TOLLKEEPER_SREVER__PORT": "1"}) == [
        "TOLLKEEPER_SREVER__PORT: is not a setting; did you mean server?"
        " accepted: auth, budgets, limits, models, prices, providers, routing, server, state,"
        " telemetry"
    ]
    assert mistakes(environ={"TOLLKEEPER_SERVER__PROT": "1"})[0].startswith(
        "TOLLKEEPER_SERVER__PROT: is not a setting; did you mean port?"
    )
    found = settings(environ={"TOLLKEEPER_PORT": "tcp://10.0.0.1:8000"})
    assert found.warnings == ("TOLLKEEPER_PORT: is not a setting, and ignored",)


def test_a_variable_that_is_no_json_is_a_mistake_that_does_not_quote_it() -> None:
    environ = {"TOLLKEEPER_PROVIDERS__GROQ__KEYS": "canary", "TOLLKEEPER_MODELS": "{"}
    assert mistakes(environ=environ) == [
        "TOLLKEEPER_MODELS: must be JSON",
        "TOLLKEEPER_PROVIDERS__GROQ__KEYS: must be JSON",
    ]


def test_all_mistakes_are_told_at_once() -> None:
    text = """
server: {host: 0.0.0.0, port: 99999}
providers:
  lab: {type: openai}
  groq: {keys: [{name: a, value: canary, weight: -1}]}
models:
  lab/x: {targets: [lab/x]}
  a: {targets: [groc/x, groq/x]}
  b: {targets: []}
prices: {x: {input: 1, output: 1}, lab/x: {input: -1, output: 1}}
typo: 1
"""
    found = mistakes(text)
    assert [line.split(": ")[1] for line in found] == [
        "server.port",
        "providers.lab",
        "providers.groq.keys[0].weight",
        "models.b.targets",
        "prices.lab/x.input",
        "typo",
        "prices",
        "models.lab/x",
        "models.a.targets[0]",
    ]
    assert found[-1].endswith(
        "groc is no configured provider; did you mean groq? accepted: groq, lab"
    )
    assert "canary" not in "\n".join(found)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "box"])
def test_an_open_gateway_stays_on_this_machine(host: str) -> None:
    [mistake] = mistakes(host=host)
    assert mistake.startswith("--host: refuses to be open to other machines")
    assert settings(environ={"TOLLKEEPER_MASTER_KEY": "k"}, host=host).server.host == host
    assert settings("auth: {master_key_file: key}\n", host=host).server.host == host


def test_the_contract_s_own_example_holds() -> None:
    found = settings(CONTRACT, {"GROQ_API_KEY_1": "a", "GROQ_API_KEY_2": "b"})
    assert list(found.providers) == ["groq", "lab", "ollama"]
    assert named(found.models["fast"]) == ["groq/llama-3.1-8b-instant"]
    assert settings(CONTRACT).providers.keys() == {"lab", "ollama"}


def test_the_annotated_example_holds_with_and_without_keys() -> None:
    keys = dict.fromkeys(
        ["GROQ_API_KEY_1", "GROQ_API_KEY_2", "GEMINI_API_KEY", "OPENROUTER_API_KEY"], "k"
    )
    full = load(EXAMPLE, {}, keys)
    assert list(full.providers) == ["groq", "gemini", "openrouter", "ollama"]
    assert len(full.models["fast"].targets) == 3
    assert full.warnings == ()
    assert list(load(EXAMPLE, {}, {}).providers) == ["ollama"]


def test_the_annotated_example_shows_every_setting_and_its_default() -> None:
    shown = load(EXAMPLE, {}, {})
    assert shown.server == Settings().server
    assert shown.telemetry == Settings().telemetry
    text = EXAMPLE.read_text()
    for part in (Settings().server, Settings().telemetry, Settings().auth):
        for name in type(part).model_fields:
            assert f"{name}:" in text


def test_secrets_are_in_no_repr_of_what_was_loaded() -> None:
    environ = {"GROQ_API_KEY": "sk-canary", "TOLLKEEPER_MASTER_KEY": "tk-canary"}
    found = settings(environ=environ)
    assert "canary" not in found.model_dump_json()
    found = settings(environ={**environ, "TOLLKEEPER_STATE__URL": "redis://:canary@h"})
    assert "canary" not in repr(found)
    assert "canary" not in str(found)


def test_a_master_key_is_made_once_and_readable_by_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "er" / "master.key"
    found = settings(environ={"TOLLKEEPER_AUTH__MASTER_KEY_FILE": str(file)})
    key, made = master_key(found)
    assert made
    assert key is not None
    assert key.startswith("tk-")
    assert len(key) == 3 + 43  # 256 bits in base 64
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["master.key"]
    assert master_key(found) == (key, False)


def test_a_configured_master_key_beats_the_file(tmp_path: Path) -> None:
    environ = {
        "TOLLKEEPER_MASTER_KEY": "k",
        "TOLLKEEPER_AUTH__MASTER_KEY_FILE": str(tmp_path / "key"),
    }
    assert master_key(settings(environ=environ)) == ("k", False)
    assert not (tmp_path / "key").exists()


def test_a_master_key_file_that_cannot_be_used_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "file").write_text("k")
    for name, words in {
        "empty": "holds no master key; delete it, and one is made",
        ".": "the master key cannot be read from it",
        "file/key": "the master key cannot be",
    }.items():
        file = tmp_path / name
        with pytest.raises(ConfigError) as caught:
            master_key(settings(environ={"TOLLKEEPER_AUTH__MASTER_KEY_FILE": str(file)}))
        assert caught.value.mistakes[0].startswith(f"{file}: {words}")


def test_cloudflare_at_an_address_of_its_own_needs_no_account() -> None:
    found = settings(
        "providers: {cloudflare: {base_url: http://127.0.0.1:1/v1, keys: [{value: cf-1}]}}\n"
    )
    assert found.providers["cloudflare"].account_id is None
