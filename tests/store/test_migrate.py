from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from proxy.clock import now_ms
from proxy.store import breakers, migrate, records, rests, schema
from proxy.store.engine import Store
from proxy.store.tables import (
    api_calls,
    metadata,
    provider_health,
    rate_limits,
    rollup_series,
    rollups_day,
    rollups_hour,
    rollups_minute,
)
from proxy.types import BreakerRecord, CallRecord, CooldownRecord
from tests.store.rows import call, failed, read


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
        found = connection.execute(
            "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL AND type != 'view'"
        )
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


async def _upgraded(url: str, revision: str, *statements: str) -> None:
    """A database at an old revision, with rows in it."""
    engine = create_async_engine(url, poolclass=NullPool)

    def upgrade(connection: Connection) -> None:
        settings = migrate.config()
        settings.attributes["connection"] = connection
        command.upgrade(settings, revision)
        for statement in statements:
            connection.execute(text(statement))

    async with engine.begin() as connection:
        await connection.run_sync(upgrade)
    await engine.dispose()


async def test_a_database_of_the_first_revision_goes_on_with_its_rows(empty: str) -> None:
    at = "'2026-11-20 12:00:00+00'" if empty.startswith("postgresql") else "1795176000000"
    limits = "provider, key_id, limit_type, cooldown_until, source, last_updated"
    figures = "is_healthy, failure_rate, window_seconds, sample_count, consecutive_failures"
    await _upgraded(
        empty,
        "0001",
        f"INSERT INTO rate_limits ({limits}) VALUES"
        f" ('groq', 'a', 'cooldown', {at}, 'local', {at}),"
        f" ('groq', 'a', 'requests', NULL, 'header', {at})",
        f"INSERT INTO provider_health (provider, model, {figures}, updated_at)"
        f" VALUES ('groq', 'llama', true, 0.25, 300, 4, 0, {at})",
        "INSERT INTO api_calls (request_id, attempt, is_final, timestamp, finished_at, endpoint,"
        " provider, model, is_stream, status, usage_source, cost_source, privacy_level)"
        f" VALUES ('old', 1, true, {at}, {at}, '/v1', 'groq', 'llama', false, 'success', 'none',"
        " 'none', 'metadata')",
    )
    store = Store(empty)
    await store.open()
    assert await schema.revision(await store.writer()) == schema.HEAD
    # Cool-downs of before cannot be told apart, and are gone; the rest is as it was.
    [limit] = await read(store, rate_limits)
    assert (limit["limit_type"], limit["probe_at"]) == ("requests", None)
    assert limit["last_updated"] == 1_795_176_000_000
    [health] = await read(store, provider_health)
    assert (health["state"], health["open_until"], health["openings"]) == ("closed", None, 0)
    assert (health["failure_rate"], health["sample_count"]) == (0.25, 4)
    rest = CooldownRecord("groq", "llama", "a", "org", 20, "rate_limit", 1, 10, probe_at=15)
    turn = BreakerRecord("groq", "llama", "closed", "open", "timeout", 20, 1, 10)
    await store.write([call(request_id="new"), rest, turn])
    async with store.reader() as connection:
        assert await rests.load_cooldowns(connection, 0) == [rest]
        [kept] = await breakers.load(connection)
    assert (kept.to_state, kept.until, kept.openings) == ("open", 20, 1)
    calls = await read(store, api_calls, "timestamp")
    assert sorted(row["request_id"] for row in calls) == ["new", "old"]
    await store.close()


def _inserted(url: str, record: CallRecord) -> str:
    """The statement that writes a call's row, in the words of revision 0004."""

    def literal(name: str, value: object) -> str:
        if name in ("timestamp", "finished_at") and url.startswith("postgresql"):
            return f"to_timestamp({value} / 1000.0)"
        return f"'{value}'" if isinstance(value, str) else str(value)

    values = dict(zip(records.COLUMNS, records.row(record), strict=True))
    known = {name: literal(name, value) for name, value in values.items() if value is not None}
    return f"INSERT INTO api_calls ({', '.join(known)}) VALUES ({', '.join(known.values())})"


async def test_calls_of_before_the_rollups_are_counted_in_them(empty: str, either: Store) -> None:
    now, day = now_ms(), 86_400_000
    calls = [
        call(timestamp=now - round(ago * day), model=model, cost_nano_usd=n or None)
        for n, ago in enumerate((0, 0, 0.01, 0.02, 1, 1.04, 2.5, 40, 40, 399, 600))
        for model in ("llama", "qwen")
    ]
    calls += [failed(timestamp=now - 41 * day), failed("rate_limit", is_final=False)]
    await _upgraded(empty, "0004", *(_inserted(empty, each) for each in reversed(calls)))
    old = Store(empty)
    await old.open()
    await either.write(calls)
    for table in (rollup_series, rollups_minute, rollups_hour, rollups_day):
        key = [column.name for column in table.primary_key]
        filled, written = await read(old, table, *key), await read(either, table, *key)
        assert filled == written
        assert filled
    await old.close()


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
    assert f"newer version (schema 9999; this one knows up to {schema.HEAD})" in said
    assert said.count("\n") == 1


def test_what_is_no_database_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "text.db"
    path.write_text("this is no database, and long enough to look like a page of one" * 100)
    child = _start(path)
    said = child.communicate()[1]
    assert child.returncode == 1
    assert said == f"cannot set up the database {path}: file is not a database\n"
