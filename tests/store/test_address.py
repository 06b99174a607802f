from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from proxy.store.address import StoreError, make_folder, parse, reason, shown


def test_home_is_expanded_and_paths_are_absolute(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert shown(parse("sqlite+aiosqlite:///~/a/b.db")) == f"{tmp_path}/a/b.db"
    assert shown(parse("sqlite+aiosqlite:///./data/b.db")) == f"{tmp_path}/data/b.db"


def test_a_password_is_not_shown() -> None:
    address = parse("postgresql+asyncpg://me:hunter2@db.example/calls")
    assert "hunter2" not in shown(address)
    assert "db.example" in shown(address)


@pytest.mark.parametrize(
    "url",
    ["nonsense", "mysql://localhost/x", "sqlite+aiosqlite://", "sqlite+aiosqlite:///:memory:"],
)
def test_what_is_no_database_of_ours_is_refused(url: str) -> None:
    with pytest.raises(StoreError, match="database"):
        parse(url)


def test_missing_folders_are_made(tmp_path: Path) -> None:
    make_folder(parse(f"sqlite+aiosqlite:///{tmp_path}/one/two/x.db"))
    assert (tmp_path / "one/two").is_dir()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"cannot create the folder .*file"):
        make_folder(parse(f"sqlite+aiosqlite:///{tmp_path}/file/x.db"))


def test_a_reason_is_one_line_without_the_statement() -> None:
    error = OperationalError("SELECT secret", {"secret": 1}, Exception("locked\nDETAIL: a row"))
    assert reason(error) == "locked"
