"""``TelemetryLogger`` against real files, read on a second connection. What each test is for is in
its docstring where a requirement says so."""

from __future__ import annotations

import logging
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from proxy.clock import now_ms, rfc3339
from proxy.content import unpack
from proxy.schema import TelemetrySettings
from proxy.store.address import SchemaError, StoreError
from proxy.telemetry import DuplicateInvocation, InvocationRecord, TelemetryLogger, scribe
from proxy.telemetry import logger as logger_module
from tests.gateway import migrated
from tests.store.databases import REACHABLE, database
from tests.store.rows import rows

ROOT = Path(__file__).parents[2]
DAY_MS = 86_400_000


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    return Path(shutil.copy(await migrated(), tmp_path / "calls.db"))


@pytest.fixture
def telemetry(path: Path) -> Iterator[TelemetryLogger]:
    with TelemetryLogger(path) as made:
        yield made


def record(**told: Any) -> InvocationRecord:
    values = {"tool_name": "search", "model_name": "llama", "provider": "groq"}
    return InvocationRecord(**values | told)


def python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
    )


def test_the_names_import_without_the_app() -> None:
    """S1-01."""
    program = """
import sys
from proxy.telemetry import TelemetryLogger, InvocationRecord
print(*sys.modules)
"""
    loaded = set(python(program).stdout.split())
    assert "proxy.telemetry.logger" in loaded
    assert loaded.isdisjoint({"proxy.app", "fastapi", "uvicorn", "alembic", "genai_prices"})


def test_the_home_is_expanded_the_folder_made_and_the_schema_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S1-02."""
    monkeypatch.setenv("HOME", str(tmp_path))
    with TelemetryLogger("~/.telemetry/new/calls.db") as telemetry:
        telemetry.log_invocation(record())
    [row] = rows(tmp_path / ".telemetry" / "new" / "calls.db", "SELECT * FROM invocations")
    assert row["model_name"] == "llama"


def test_the_default_is_the_gateways_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    TelemetryLogger().close()
    default = TelemetrySettings().database_url.partition(":///")[2]
    assert (tmp_path / default).is_file()


def test_every_field_is_in_the_row_and_comes_back(telemetry: TelemetryLogger, path: Path) -> None:
    """S1-03."""
    told = {
        "invocation_id": "5f4dcc3b-0000-4000-8000-000000000001",
        "agent_name": "planner",
        "tool_name": "search",
        "model_name": "llama",
        "prompt_tokens": 1000,
        "completion_tokens": 500,
        "total_tokens": 1500,
        "cost_usd": 0.000985,
        "latency_ms": 812.5,
        "status": "success",
        "error_message": None,
        "privacy_level": "metadata",
        "timestamp": "2026-11-20T12:00:00.250Z",
    }
    telemetry.log_invocation(InvocationRecord(**told))
    [found] = telemetry.get_invocations()
    assert {name: found[name] for name in told} == told
    [row] = rows(path, "SELECT * FROM api_calls")
    assert (row["request_id"], row["input_tokens"]) == (told["invocation_id"], 1000)
    assert (row["cost_estimate_usd"], row["response_time_ms"]) == (0.000985, 812.5)
    assert row["timestamp"] == 1_795_176_000_250
    assert list(telemetry.get_invocations()[0]) == list(found)


def test_an_id_that_comes_again_is_counted_once(telemetry: TelemetryLogger) -> None:
    """S1-04."""
    for _ in range(3):
        telemetry.log_invocation(record(invocation_id="a", prompt_tokens=5, completion_tokens=5))
        telemetry.flush()
    assert len(telemetry.get_invocations()) == 1
    [day] = telemetry.get_daily_costs()
    assert (day["invocations"], day["total_tokens"]) == (1, 10)


def test_a_strict_logger_says_that_an_id_comes_again(path: Path) -> None:
    """S1-04."""
    with TelemetryLogger(path, strict=True) as telemetry:
        telemetry.log_invocation(record(invocation_id="a"))
        with pytest.raises(DuplicateInvocation, match="the invocation a has been recorded"):
            telemetry.log_invocation(record(invocation_id="a"))
        telemetry.log_invocation(record(invocation_id="b"))
        assert len(telemetry.get_invocations()) == 2


def test_errors_and_timeouts_are_apart_and_leave_a_row_among_the_errors(
    telemetry: TelemetryLogger, path: Path
) -> None:
    """S1-05."""
    for status in ("success", "error", "timeout", "cancelled", "rejected"):
        telemetry.log_invocation(record(status=status, error_message="why"))
    telemetry.flush()
    assert [row["status"] for row in telemetry.get_invocations(status="timeout")] == ["timeout"]
    kept = rows(path, "SELECT error_type, error_message FROM errors ORDER BY error_type")
    assert [row["error_type"] for row in kept] == ["error", "timeout"]


def test_daily_costs_are_the_newest_first_with_both_ends(telemetry: TelemetryLogger) -> None:
    """S1-07."""
    for day, count in (("2026-11-18", 1), ("2026-11-19", 2), ("2026-11-20", 3)):
        for agent in ("planner", "reviewer"):
            for _ in range(count):
                at = f"{day}T23:59:59.999Z"
                told = record(timestamp=at, agent_name=agent, cost_usd=0.1, prompt_tokens=1)
                telemetry.log_invocation(told)
    found = telemetry.get_daily_costs("2026-11-19", date(2026, 11, 20), "planner")
    assert [(row["date"], row["invocations"]) for row in found] == [
        ("2026-11-20", 3),
        ("2026-11-19", 2),
    ]
    assert [row["total_cost_usd"] for row in found] == [0.3, 0.2]
    assert len(telemetry.get_daily_costs()) == 6
    with pytest.raises(ValueError, match=r"^start_date: must be a date"):
        telemetry.get_daily_costs("soon")


def test_daily_costs_are_all_there_are(
    telemetry: TelemetryLogger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logger_module, "_MOST", 2)
    for number in range(5):
        telemetry.log_invocation(record(tool_name=f"tool-{number}"))
    found = telemetry.get_daily_costs()
    assert sorted(row["tool_name"] for row in found) == [f"tool-{n}" for n in range(5)]


def test_daily_costs_equal_a_full_count_of_the_rows(telemetry: TelemetryLogger, path: Path) -> None:
    """S2-03, of rows that come by this way."""
    chance = random.Random(7)
    for _ in range(300):
        telemetry.log_invocation(
            record(
                agent_name=chance.choice(("planner", "reviewer", None)),
                model_name=chance.choice(("llama", "qwen")),
                status=chance.choice(("success", "error", "timeout", "cancelled")),
                prompt_tokens=chance.choice((None, 10, 1000)),
                completion_tokens=chance.choice((None, 7)),
                cost_usd=chance.choice((None, 0, 0.000123)),
                timestamp=f"2026-11-{chance.randint(10, 20)}T12:00:00Z",
            )
        )
    telemetry.flush()
    counted = """
        SELECT date(timestamp) AS day, ifnull(agent_name, '') AS agent, model_name AS model,
               count(*) AS n, ifnull(sum(total_tokens), 0) AS tokens,
               ifnull(sum(cast(round(cost_usd * 1e9) AS INTEGER)), 0) AS nano
        FROM invocations GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
    """
    summed = """
        SELECT date AS day, agent_name AS agent, model_name AS model, invocations AS n,
               total_tokens AS tokens, cast(round(total_cost_usd * 1e9) AS INTEGER) AS nano
        FROM daily_costs ORDER BY 1, 2, 3
    """
    assert rows(path, counted) == rows(path, summed)


def test_invocations_are_the_newest_first_and_filtered(telemetry: TelemetryLogger) -> None:
    """S1-08, S1-09."""
    for number in range(120):
        telemetry.log_invocation(
            record(
                invocation_id=f"i-{number:03}",
                timestamp=f"2026-11-20T12:{number // 60:02}:{number % 60:02}Z",
                agent_name="planner" if number % 2 else "reviewer",
                tool_name="search" if number % 3 else "diff",
                status="error" if number % 5 == 0 else "success",
            )
        )
    ids = [row["invocation_id"] for row in telemetry.get_invocations()]
    assert ids == [f"i-{number:03}" for number in range(119, 19, -1)]
    some = telemetry.get_invocations(
        "2026-11-20T12:00:10Z", "2026-11-20T12:01:10Z", "planner", "search", "error", limit=2
    )
    assert [row["invocation_id"] for row in some] == ["i-065", "i-055"]
    assert len(telemetry.get_invocations(status="error", limit=50)) == 24
    assert telemetry.get_invocations("2026-11-21", "2026-11-22") == []
    with pytest.raises(ValueError, match="limit: must be from 1 to 1000"):
        telemetry.get_invocations(limit=0)


def test_statistics_of_nothing_are_zeros(telemetry: TelemetryLogger) -> None:
    """S1-10."""
    assert telemetry.get_statistics() == {
        "total_invocations": 0,
        "total_cost_usd": 0.0,
        "total_tokens": 0,
        "success_rate": 0.0,
        "avg_latency_ms": 0.0,
        "error_count": 0,
    }


def test_statistics_are_of_the_last_days_to_the_second(telemetry: TelemetryLogger) -> None:
    """S1-10."""
    edge = now_ms() - 7 * DAY_MS
    for at, latency, status in (
        (edge + 30_000, 100, "success"),
        (edge + 30_000, 300, "error"),
        (edge - 1_000, 9_000, "error"),
    ):
        telemetry.log_invocation(
            record(
                timestamp=rfc3339(at),
                latency_ms=latency,
                status=status,
                prompt_tokens=3,
                completion_tokens=4,
                cost_usd=0.25,
                agent_name="planner",
            )
        )
    expected = {
        "total_invocations": 2,
        "total_cost_usd": 0.5,
        "total_tokens": 14,
        "success_rate": 0.5,
        "avg_latency_ms": 200.0,
        "error_count": 1,
    }
    assert telemetry.get_statistics() == expected
    assert telemetry.get_statistics("planner", days=7) == expected
    assert telemetry.get_statistics("planner", days=8)["total_invocations"] == 3
    assert telemetry.get_statistics("reviewer")["total_invocations"] == 0
    with pytest.raises(ValueError, match="days"):
        telemetry.get_statistics(days=-1)


@pytest.mark.parametrize("bad", ["some", ""])
def test_a_level_that_there_is_not_is_refused_at_the_start(path: Path, bad: str) -> None:
    """S1-11, S1-13."""
    with pytest.raises(ValueError, match=r"^privacy_level: "):
        TelemetryLogger(path, bad)


@pytest.mark.parametrize("off", [{"privacy_level": "none"}, {"enabled": False}])
def test_switched_off_it_keeps_nothing_and_makes_no_file(tmp_path: Path, off: Any) -> None:
    """S1-11."""
    with TelemetryLogger(tmp_path / "new" / "calls.db", **off) as telemetry:
        telemetry.log_invocation(record())
        assert telemetry.flush(5)
        assert telemetry.get_invocations() == telemetry.get_daily_costs() == []
        assert telemetry.get_statistics()["total_invocations"] == 0
    assert list(tmp_path.iterdir()) == []


def test_a_record_may_be_kept_out_by_itself(telemetry: TelemetryLogger) -> None:
    telemetry.log_invocation(record(privacy_level="none"))
    assert telemetry.get_invocations() == []


SAID = {"prompt": "What does sk-canary-1234567890abcdef open?", "response": "Nothing at all."}


@pytest.mark.parametrize(
    ("ours", "its", "kept"),
    [
        ("full", None, True),
        ("full", "full", True),
        ("full", "metadata", False),
        ("metadata", None, False),
        ("metadata", "full", False),
    ],
)
@pytest.mark.parametrize("strict", [False, True])
def test_what_was_said_is_kept_at_full_alone(
    path: Path, ours: str, its: str | None, kept: bool, strict: bool
) -> None:
    """S1-12, S1-13."""
    with TelemetryLogger(path, ours, strict=strict) as telemetry:
        telemetry.log_invocation(record(invocation_id="r", privacy_level=its, **SAID))
        telemetry.log_invocation(record(privacy_level=its))
        assert telemetry.flush()
        if not strict:
            assert telemetry.status()["recorded"] == 2
    levels = rows(path, "SELECT DISTINCT privacy_level AS level FROM api_calls")
    assert [row["level"] for row in levels] == ["full" if kept else "metadata"]
    found = rows(path, "SELECT * FROM call_contents")
    assert [row["request_id"] for row in found] == ["r"] * kept
    for row in found:
        assert unpack(row["request"]) == "What does [redacted] open?"
        assert (unpack(row["answer"]), row["answer_length"]) == ("Nothing at all.", 15)


def test_contents_that_nobody_takes_are_bounded(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with TelemetryLogger(path, "full") as telemetry:
        monkeypatch.setattr(scribe, "MAX_WAITING", 1)
        telemetry.log_invocation(record(**SAID))
        assert telemetry.flush()
        assert (telemetry.status()["recorded"], telemetry.status()["dropped"]) == (1, 1)
        monkeypatch.undo()
        telemetry.log_invocation(record(**SAID))
        assert telemetry.flush()
        assert (telemetry.status()["recorded"], telemetry.status()["dropped"]) == (2, 1)
    assert "rows are lost" in caplog.text


def test_no_key_is_on_the_disk(telemetry: TelemetryLogger, path: Path) -> None:
    """S1-12, the error echo."""
    canary = "sk-proj-" + "a1B2" * 8
    telemetry.log_invocation(record(status="error", error_message=f"Incorrect API key: {canary}"))
    telemetry.flush()
    for file in path.parent.iterdir():
        assert canary.encode() not in file.read_bytes()


def test_the_gateways_direct_sql_works_on_what_is_logged(
    telemetry: TelemetryLogger, path: Path
) -> None:
    """S1-14, S1-15; the README's own queries have their test with it."""
    telemetry.log_invocation(record(agent_name="planner", cost_usd=0.5, prompt_tokens=10))
    telemetry.flush()
    [row] = rows(
        path,
        "SELECT agent_name, sum(total_cost_usd) AS usd FROM daily_costs"
        " WHERE date >= date('now', '-7 days') GROUP BY agent_name",
    )
    assert row == {"agent_name": "planner", "usd": 0.5}


def test_many_threads_share_a_logger(telemetry: TelemetryLogger, path: Path) -> None:
    """S2-06."""

    def work() -> None:
        for _ in range(20):
            telemetry.log_invocation(record(prompt_tokens=1, completion_tokens=1))
        telemetry.get_invocations(limit=1)

    threads = [threading.Thread(target=work) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    telemetry.flush()
    [row] = rows(path, "SELECT count(*) AS n FROM api_calls")
    assert row["n"] == 400
    [day] = telemetry.get_daily_costs()
    assert (day["invocations"], day["total_tokens"]) == (400, 800)


@pytest.mark.parametrize("kind", REACHABLE)
async def test_every_kind_of_database_is_as_good(kind: str, tmp_path: Path) -> None:
    async with database(kind, tmp_path) as url:
        with TelemetryLogger(url, strict=True) as telemetry:
            told = record(invocation_id="a", prompt_tokens=1, completion_tokens=2, latency_ms=5)
            telemetry.log_invocation(told)
            with pytest.raises(DuplicateInvocation):
                telemetry.log_invocation(told)
            assert telemetry.get_invocations()[0]["invocation_id"] == "a"
            assert telemetry.get_daily_costs()[0]["total_tokens"] == 3
            assert telemetry.get_statistics()["avg_latency_ms"] == 5.0


LOGS = """
import sys
from proxy.telemetry import InvocationRecord, TelemetryLogger
telemetry = TelemetryLogger(sys.argv[1])
for _ in range(int(sys.argv[2])):
    telemetry.log_invocation(InvocationRecord(tool_name="cli", model_name="llama"))
"""


def test_several_processes_share_a_file_that_is_not_there_yet(tmp_path: Path) -> None:
    """S2-07, S2-13. None of them closes its logger: nothing is lost at the end either."""
    path = tmp_path / "new" / "calls.db"
    children = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", LOGS, str(path), "100"],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for child in children:
        assert child.communicate(timeout=50)[1] == ""
    [row] = rows(path, "SELECT count(*) AS n FROM api_calls")
    [day] = rows(path, "SELECT invocations AS n FROM daily_costs")
    assert row == day == {"n": 300}


def test_nothing_is_lost_when_the_program_ends_by_an_error(path: Path) -> None:
    ended = python(LOGS + "raise SystemExit(3)", str(path), "10")
    assert ended.returncode == 3, ended.stderr
    [row] = rows(path, "SELECT count(*) AS n FROM api_calls")
    assert row["n"] == 10


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_copy_in_a_forked_process_says_that_it_records_nothing(path: Path) -> None:
    """A new connection would not help it: SQLite counts its locks by process, and the copy's count
    is of locks that it does not hold."""
    fork = """
import os
pid = os.fork()
telemetry.log_invocation(InvocationRecord(tool_name="cli", model_name="llama"))
if not pid:
    telemetry.close()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
"""
    ended = python(LOGS + fork, str(path), "10")
    assert ended.returncode == 0
    lost = "an invocation is lost: this logger was made before the process was forked, and is not"
    assert ended.stderr == f"{lost} its\n"
    [row] = rows(path, "SELECT count(*) AS n FROM api_calls")
    assert row["n"] == 11


def locked(path: Path) -> sqlite3.Connection:
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    return holder


def test_a_locked_database_is_not_the_programs_trouble(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with TelemetryLogger(path) as telemetry, closing(locked(path)) as holder:
        telemetry.log_invocation(record())
        assert not telemetry.flush(1.5)
        assert telemetry.status()["queued"] == 1
        assert "locked" in telemetry.status()["last_error"]
        assert telemetry.get_invocations() == []
        holder.execute("ROLLBACK")
        assert telemetry.flush(10)
        assert len(telemetry.get_invocations()) == 1
    assert [r.levelno for r in caplog.records if "wait to be written" in r.message] == [
        logging.WARNING
    ]


def test_a_strict_logger_raises_what_goes_wrong(path: Path) -> None:
    strict = TelemetryLogger(path, strict=True)
    with strict, closing(locked(path)), pytest.raises(StoreError, match="locked"):
        strict.log_invocation(record())


def test_a_database_that_cannot_be_opened_is_told_where_that_was_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "calls.db"
    telemetry = TelemetryLogger(place)
    with telemetry, pytest.raises(StoreError, match="cannot create the folder"):
        telemetry.get_invocations()
    assert any("cannot create the folder" in message for message in caplog.messages)
    with pytest.raises(StoreError, match="cannot create the folder"):
        TelemetryLogger(place, strict=True)


@pytest.mark.parametrize("strict", [False, True])
def test_a_newer_database_is_refused(path: Path, strict: bool) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(SchemaError, match="made by a newer version"):
        TelemetryLogger(path, strict=strict)


def test_a_closed_logger_says_so(path: Path) -> None:
    telemetry = TelemetryLogger(path)
    telemetry.close()
    telemetry.close()
    telemetry.log_invocation(record())
    assert telemetry.status()["dropped"] == 1
    with pytest.raises(StoreError, match="closed"):
        telemetry.get_invocations()


def test_a_second_logger_finds_what_the_first_has_left(path: Path) -> None:
    """S2-17, persistence across instances."""
    with TelemetryLogger(path) as first:
        first.log_invocation(record())
    with TelemetryLogger(path) as second:
        assert len(second.get_invocations()) == 1
