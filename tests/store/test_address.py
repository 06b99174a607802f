from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from proxy.store.address import (
    StoreError,
    clear,
    file,
    make_folder,
    parse,
    reason,
    shown,
)


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


def test_a_file_is_the_same_under_another_name_and_another_under_the_same(tmp_path: Path) -> None:
    one, two = (parse(f"sqlite+aiosqlite:///{tmp_path}/{name}.db") for name in ("one", "two"))
    assert file(one) is None
    (tmp_path / "one.db").touch()
    first = file(one)
    assert first is not None
    (tmp_path / "one.db").rename(tmp_path / "two.db")
    (tmp_path / "one.db").touch()
    assert (file(two), file(one) == first) == (first, False)
    assert file(parse("postgresql+asyncpg://db.example/calls")) is None


def test_of_what_lies_beside_only_what_was_there_before_is_cleared(tmp_path: Path) -> None:
    address = parse(f"sqlite+aiosqlite:///{tmp_path}/x.db")
    database = tmp_path / "x.db"
    database.touch()
    old, new = tmp_path / "x.db-wal", tmp_path / "x.db-shm"
    old.touch()
    new.touch()
    remains = {"-wal": file(address, "-wal"), "-shm": (0, 0), "-journal": None}
    clear(address, remains)
    assert old.exists(), "it may belong to what is there"
    database.unlink()
    for _ in range(2):
        clear(address, remains)
        assert not old.exists()
        assert new.exists()


def test_a_file_that_cannot_be_seen_is_not_taken_for_gone(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot see"):
        file(parse(f"sqlite+aiosqlite:///{tmp_path}/{'x' * 300}.db"))
