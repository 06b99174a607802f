from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from proxy.store import migrate, schema
from proxy.store.tables import metadata


def _start(path: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-m", "proxy.store.migrate"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    child.stdin.write(f"sqlite+aiosqlite:///{path}")
    child.stdin.close()
    child.stdin = None
    return child


def _ddl(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")
        return {" ".join(sql.split()) for (sql,) in found if "alembic" not in sql}


def test_the_migrated_schema_is_the_tables(migrated: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.db"
    for path in (made, migrated):
        engine = create_engine(f"sqlite:///{path}", poolclass=NullPool)
        with engine.connect() as connection:
            if path == made:
                metadata.create_all(connection)
                connection.commit()
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert compare_metadata(context, metadata) == []
    statements, expected = ({_in_order(sql) for sql in _ddl(path)} for path in (migrated, made))
    assert statements == expected


def _in_order(sql: str) -> str:
    """A statement with its parts sorted: constraints may stand in any order."""
    return "|".join(sorted(part.strip(" ()") for part in sql.split(", ")))


def test_the_head_is_the_newest_revision() -> None:
    script = ScriptDirectory.from_config(migrate.config())
    assert script.get_current_head() == schema.HEAD


def test_space_of_deleted_rows_can_be_given_back(migrated: Path) -> None:
    with closing(sqlite3.connect(migrated)) as connection:
        assert connection.execute("PRAGMA auto_vacuum").fetchone() == (2,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_several_processes_may_migrate_at_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "shared.db"
    children = [_start(path) for _ in range(3)]
    ends = [(child.communicate()[1], child.returncode) for child in children]
    assert ends == [("", 0)] * 3
    assert len(_ddl(path)) > 10


def test_a_newer_database_is_refused_in_one_line(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    child = _start(path)
    said = child.communicate()[1]
    assert child.returncode == schema.NEWER_SCHEMA
    assert "made by a newer version (schema 9999; this one knows up to 0002)" in said
    assert said.count("\n") == 1


def test_what_is_no_database_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "text.db"
    path.write_text("this is no database, and long enough to look like a page of one" * 100)
    child = _start(path)
    said = child.communicate()[1]
    assert child.returncode == 1
    assert said == f"cannot set up the database {path}: file is not a database\n"
