from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from proxy.changes import BreakerRecord, CooldownRecord
from proxy.clock import now_ms
from proxy.errors import ErrorReason
from proxy.store import breakers, migrate, rests, schema
from proxy.store.engine import Store
from proxy.store.rows import COLUMNS, WORDS, row
from proxy.store.sets import COST_SOURCES, STATUSES, USAGE_SOURCES
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
from proxy.types import CallRecord
from tests.store.rows import call, failed, read, rows


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
            " AND name != 'api_calls'"
        )
        return {" ".join(sql.split()) for (sql,) in found if "alembic" not in sql}


def test_the_migrated_schema_is_the_tables(path: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.db"
    for each in (made, path):
        engine = create_engine(f"sqlite:///{each}", poolclass=NullPool)
        with engine.connect() as connection:
            if each == made:
                metadata.create_all(connection)
                connection.commit()
            options = {"compare_type": True, "include_object": _is_shown}
            context = MigrationContext.configure(connection, opts=options)
            assert compare_metadata(context, metadata) == []
    statements, expected = ({_in_order(sql) for sql in _ddl(each)} for each in (path, made))
    assert statements == expected


def _in_order(sql: str) -> str:
    """A statement with its parts sorted: constraints may stand in any order."""
    return "|".join(sorted(part.strip(" ()") for part in sql.split(", ")))


def _is_shown(_thing: Any, name: str | None, kind: str, _reflected: bool, _other: Any) -> bool:
    """What ``proxy.store.rows`` keeps of calls is how others of their columns are stored."""
    return kind != "column" or not (name or "").endswith("_kept")


def test_calls_look_the_same_however_they_are_kept(path: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.db"
    engine = create_engine(f"sqlite:///{made}", poolclass=NullPool)
    metadata.create_all(engine)
    looks = []
    for each in (made, path):
        with closing(sqlite3.connect(each)) as connection:
            found = connection.execute(
                'SELECT name, type, "notnull" FROM pragma_table_xinfo(?)', ("api_calls",)
            )
            looks.append({row for row in found if not row[0].endswith("_kept")})
    assert looks[0] == looks[1]
    assert len(looks[0]) == len(api_calls.c)


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
    async with store.reader() as connection:
        views = "SELECT id, invocation_id FROM invocations JOIN inference_metrics USING (id)"
        shown = (await connection.execute(text(f"{views} ORDER BY id"))).all()
        assert [request for _, request in shown] == ["old", "new"]
        if empty.startswith("postgresql"):
            where = "SELECT tableoid::regclass::text FROM api_calls WHERE request_id = 'old'"
            assert await connection.scalar(text(where)) == "api_calls_20261120"
            indexes = "SELECT indexname FROM pg_indexes WHERE tablename = 'api_calls'"
            made = set(await connection.scalars(text(indexes)))
            keys = {"pk_api_calls", "uq_api_calls_request_id_attempt"}
            assert made == keys | {index.name for index in api_calls.indexes}
    await store.close()


def _inserted(url: str, record: CallRecord) -> str:
    """The statement that writes a call's row, in the words of revision 0004."""

    def literal(name: str, value: object) -> str:
        if name in ("timestamp", "finished_at") and url.startswith("postgresql"):
            return f"to_timestamp({value} / 1000.0)"
        return f"'{value}'" if isinstance(value, str) else str(value)

    values = dict(zip(COLUMNS, row(record), strict=True))
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


def test_space_of_deleted_rows_can_be_given_back(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
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


_WORDS = {
    "status": STATUSES,
    "error_reason": (*map(str, ErrorReason), None),
    "usage_source": USAGE_SOURCES,
    "cost_source": COST_SOURCES,
    "endpoint": (*WORDS["endpoint"], "/v1/elsewhere", "0"),
    "finish_reason": (*WORDS["finish_reason"], "tired", "1", None),
    "privacy_level": (*WORDS["privacy_level"], "odd"),
    "requested_model": ("llama", "groq/llama", "fast", "0", None),
    "response_time_ms": (0, 0.001, 990.5, None),
    "ttfb_ms": (0, 0.001, 990.5, 1 / 3, 3e15, 1e300, None),
    "temperature": (0.7, 0.1 + 0.2, 2, 1e22, 5e-324, None),
    "cost_estimate_usd": (0, 1e-9, 1.154e-05, 12345.678901234, None),
    "trace_id": ("4bf92f3577b34da6a3ce929d0e0e4736", None),
    "added": ("by somebody else", None),
}


async def test_calls_of_before_look_as_they_did_in_less_room(tmp_path: Path) -> None:
    """Every value that is kept otherwise now, and a column that is not known here."""
    path = tmp_path / "old.db"
    url = f"sqlite+aiosqlite:///{path}"
    most = max(map(len, _WORDS.values()))
    values = [[words[row % len(words)] for words in _WORDS.values()] for row in range(most)]
    await _upgraded(url, "0004", "ALTER TABLE api_calls ADD COLUMN added TEXT")
    with closing(sqlite3.connect(path)) as connection, connection:
        for row, of_call in enumerate(values):
            connection.execute(
                "INSERT INTO api_calls (request_id, attempt, is_final, timestamp, finished_at,"
                f" provider, model, is_stream, {', '.join(_WORDS)})"
                f" VALUES (?, 1, 1, 5, 6, 'groq', 'llama', 0, {', '.join('?' * len(_WORDS))})",
                (f"r{row}", *of_call),
            )
    names = ", ".join(["id", *(f"{name}, typeof({name})" for name in (*_WORDS, "success"))])
    asked = f"SELECT {names} FROM api_calls ORDER BY id"
    views = "SELECT * FROM invocations JOIN inference_metrics USING (id) ORDER BY id"
    before = [rows(path, query) for query in (asked, views)]
    assert len(before[0]) == len(before[1]) == most
    store = Store(url)
    await store.open()
    assert [rows(path, query) for query in (asked, views)] == before
    [kept] = rows(path, "SELECT sum(typeof(endpoint_kept) = 'integer') AS n FROM api_calls")
    known = [
        words for words in values if words[list(_WORDS).index("endpoint")] in WORDS["endpoint"]
    ]
    assert kept["n"] == len(known)
    await store.write([call(request_id="r0"), call(request_id="new")])
    assert len(rows(path, "SELECT * FROM api_calls")) == most + 1
    await store.close()
