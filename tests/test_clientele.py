from __future__ import annotations

from pathlib import Path

import pytest

from proxy import clientele
from proxy.clock import now_ms
from proxy.errors import ConfigError
from proxy.keys import new_client
from proxy.schema import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(telemetry={"database_url": f"sqlite+aiosqlite:///{tmp_path}/t.db"})


async def test_what_is_made_is_listed_and_its_key_is_not(settings: Settings) -> None:
    assert await clientele.listed(settings) == "no client has a key of its own"
    ends = now_ms() + 60_000
    ann = new_client(
        "ann", models=["fast"], providers=["groq"], expires_at=ends, limits={"rpm": 60}
    )
    said = await clientele.create(settings, ann)
    bob = new_client("bob\n\x1b[31m")
    await clientele.create(settings, bob)
    key = said.splitlines()[1]
    assert key.startswith("tk-")
    await clientele.revoke(settings, bob.id)
    listed = await clientele.listed(settings)
    assert key not in listed
    first, second = listed.splitlines()
    assert first.startswith(f"{ann.id}  ann  until ")
    assert first.endswith("  fast groq/*  rpm=60")
    assert second == f"{bob.id}  'bob\\n\\x1b[31m'  revoked  everything"
    assert "tk-" in await clientele.rotate(settings, ann.id, 0)


async def test_who_is_not_there_is_said(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="no client ck-0"):
        await clientele.revoke(settings, "ck-0")
    with pytest.raises(ConfigError, match="no client ck-0"):
        await clientele.rotate(settings, "ck-0", 0)


async def test_without_a_database_no_key_is_kept() -> None:
    with pytest.raises(ConfigError, match="switched off"):
        await clientele.listed(Settings(telemetry={"enabled": False}))
