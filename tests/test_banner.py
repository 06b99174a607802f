from __future__ import annotations

import json
import shlex
from typing import Any

import pytest

from proxy.banner import banner
from proxy.schema import Settings

ADDRESS = "http://127.0.0.1:8000"
KEY = "tk-canary"


def text(made: bool = False, example: str | None = None, **sections: Any) -> str:
    return banner(
        Settings(**sections),
        ADDRESS,
        [("groq", 2), ("lab", 1), ("ollama", 0)],
        example=example,
        key_made=made,
    )


def command(banner: str) -> list[str]:
    """The line to try, as a shell splits it."""
    [line] = [line for line in banner.splitlines() if line.startswith("  curl ")]
    return shlex.split(line)


def test_it_says_where_the_gateway_is_and_what_it_found() -> None:
    said = text()
    assert f"at {ADDRESS}\n" in said
    assert f"export OPENAI_BASE_URL={ADDRESS}/v1 " in said
    assert "groq (2 keys), lab (1 key), ollama (no key)" in said
    assert "database    ./data/tollkeeper.db" in said
    assert "open, to this machine alone" in said


def test_the_demo_is_said_to_be_simulated() -> None:
    assert "demo (simulated" in banner(Settings(), ADDRESS, [("demo", 0)])


def test_the_command_to_try_is_a_whole_shell_command() -> None:
    words = command(text(example="lab/it's"))
    assert words[:2] == ["curl", f"{ADDRESS}/v1/chat/completions"]
    assert json.loads(words[words.index("-d") + 1])["model"] == "lab/it's"
    assert command(text()) == ["curl", f"{ADDRESS}/v1/models"]


def test_a_locked_gateway_s_commands_carry_the_key_by_its_variable() -> None:
    said = text(auth={"master_key": KEY})
    assert KEY not in said
    assert "Authorization: Bearer $TOLLKEEPER_MASTER_KEY" in command(said)
    assert "OPENAI_API_KEY=$TOLLKEEPER_MASTER_KEY" in said


def test_a_key_that_was_made_just_now_is_shown_once() -> None:
    said = text(made=True, auth={"master_key": KEY, "master_key_file": "/data/master.key"})
    assert said.count(KEY) == 1
    assert f"export TOLLKEEPER_MASTER_KEY={KEY}\n" in said
    assert "/data/master.key" in said


def test_that_prompts_are_stored_is_said_loudly() -> None:
    said = text(telemetry={"privacy_level": "full", "content_days": 3})
    assert "\n  PRIVACY     full: PROMPTS AND ANSWERS ARE STORED, for 3 days\n" in said
    for quiet in ({}, {"privacy_level": "full", "enabled": False}):
        assert "PROMPTS" not in text(telemetry=quiet)


@pytest.mark.parametrize(
    ("telemetry", "shown"),
    [
        ({"database_url": "sqlite+aiosqlite:////data/t.db"}, "/data/t.db"),
        (
            {"database_url": "postgresql+asyncpg://user:canary@db:5432/toll?x=canary"},
            "postgresql at db:5432/toll",
        ),
        ({"enabled": False}, "none, nothing is kept"),
        ({"privacy_level": "none"}, "none, nothing is kept"),
    ],
)
def test_the_database_is_named_without_its_password(telemetry: dict[str, Any], shown: str) -> None:
    said = text(telemetry=telemetry)
    assert f"database    {shown}\n" in said
    assert "canary" not in said


def test_it_says_how_many_workers_there_are() -> None:
    assert "workers     3\n" in text(server={"workers": 3})
    assert "workers" not in text()
