"""Processes that share a database find the same folder, whatever they call it."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.places import state_folder


def test_a_file_has_its_folder_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = tmp_path / "data" / "calls.db.state"
    for path in ("./data/calls.db", "~/data/calls.db", f"{tmp_path}/data/calls.db?timeout=5"):
        assert state_folder(f"sqlite+aiosqlite:///{path}") == expected
    assert not expected.exists()


def test_a_server_has_one_by_where_it_is_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    urls = [
        "postgresql+asyncpg://db:5432/calls",
        "postgresql+asyncpg://me:secret@db:5432/calls",
        "postgresql+asyncpg://you:a/b@c@db:5432/calls?ssl=require&password=d",
    ]
    [folder] = {state_folder(url) for url in urls}
    assert folder.parent == tmp_path / "data"
    assert folder.name.startswith("state-")
    assert len(folder.name) == len("state-") + 12


def test_another_server_or_database_has_another() -> None:
    urls = [
        "postgresql+asyncpg://db:5432/calls",
        "postgresql+asyncpg://db:5433/calls",
        "postgresql+asyncpg://db:5432/other",
        "postgresql+asyncpg:///calls?host=/run/one",
        "postgresql+asyncpg:///calls?host=/run/two",
    ]
    assert len({state_folder(url) for url in urls}) == len(urls)
