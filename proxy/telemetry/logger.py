"""What a program that is not behind the gateway records with, and asks."""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from proxy.clock import now_ms
from proxy.content import MAX_BYTES, ContentRecord, seal
from proxy.redact import Redactor
from proxy.store import calls, groups, state
from proxy.store.address import SchemaError, StoreError
from proxy.store.engine import Store
from proxy.store.filters import Filters
from proxy.telemetry.dates import Moment, window
from proxy.telemetry.record import InvocationRecord, call, content, level
from proxy.telemetry.scribe import Scribe
from proxy.types import CallRecord

Row = dict[str, Any]

DAY_MS = 86_400_000
CLOSE_SECONDS = 10.0
"""How long the last rows may take to be written when the program ends."""

_MOST = 1000  # rows a page
_log = logging.getLogger("tollkeeper.telemetry")
_NAMES = {
    "request_id": "invocation_id",
    "model": "model_name",
    "input_tokens": "prompt_tokens",
    "output_tokens": "completion_tokens",
    "cost_estimate_usd": "cost_usd",
    "response_time_ms": "latency_ms",
}
"""The names of a record for the columns of ``api_calls``: those of the view ``invocations``."""
_SHOWN = (
    *("invocation_id", "timestamp", "provider", "model_name", "agent_name", "tool_name"),
    *("prompt_tokens", "completion_tokens", "total_tokens", "cost_usd", "latency_ms"),
    *("status", "error_reason", "error_message", "privacy_level"),
)


class DuplicateInvocation(Exception):
    """An invocation of this id has been recorded before. Only a strict logger says so."""


class TelemetryLogger:
    """Records invocations in the gateway's tables, from any number of threads and processes.

    ``db_path`` is a file (``~`` is expanded, folders are made) or the address of a PostgreSQL, as
    in ``telemetry.database_url``. The database is created or migrated here: SchemaError if a newer
    version made it. With ``privacy_level`` none, nothing is opened, made or kept; with full,
    prompts and responses are kept too, in a table of their own.

    ``log_invocation`` hands the record to a thread and returns. A database that cannot be written
    is tried again and told in the log ``tollkeeper.telemetry``; the program hears of it only if it
    asks, by ``flush``, ``status`` or as ``strict``. A strict logger writes in the caller's time,
    and raises StoreError where that fails and DuplicateInvocation where the id is known.

    Close it, or use it in a ``with``; the end of the interpreter closes it too. Make it in the
    process that uses it: SQLite's locks and the thread do not go along with a fork, so a copy in a
    forked process records nothing, and says so. A process that ends by ``os._exit``, as those of
    ``multiprocessing`` do, must close it.
    """

    def __init__(
        self,
        db_path: str | Path = "data/tollkeeper.db",
        privacy_level: str = "metadata",
        *,
        strict: bool = False,
        enabled: bool = True,
    ) -> None:
        level("privacy_level", privacy_level)
        self._keeps = enabled and privacy_level != "none"
        self._full = privacy_level == "full"
        place = str(db_path)
        url = place if "://" in place else f"sqlite+aiosqlite:///{Path(place).expanduser()}"
        self._strict = strict
        self._redact = Redactor(())
        self._process = os.getpid()
        self._scribe = Scribe(Store(url if self._keeps else None))
        atexit.register(self.close)
        try:
            self._scribe.ask(_nothing)
        except SchemaError:
            self.close()
            raise
        except StoreError as error:
            if strict:
                self.close()
                raise
            _log.error("%s; recording goes on, and it is tried again", error)

    def _here(self) -> Scribe:
        if self._process != os.getpid():
            raise StoreError("this logger was made before the process was forked, and is not its")
        return self._scribe

    def log_invocation(self, record: InvocationRecord) -> None:
        """Record an invocation. One whose id has been recorded before is left out."""
        if not self._keeps or record.privacy_level == "none":
            return
        full = self._full and record.privacy_level in (None, "full")
        applied = "full" if full else "metadata"
        row = call(record, now=now_ms(), redact=self._redact, level=applied)
        said = content(row, record.prompt, record.response) if full else None
        sealed = None if said is None else seal(said, self._redact.whole, MAX_BYTES)
        if self._strict:
            self._here().ask(lambda store: _write(store, row, sealed))
            return
        try:
            self._here().put(row)
            if sealed is not None:
                self._here().put(sealed)
        except StoreError as error:
            _log.error("an invocation is lost: %s", error)

    def get_daily_costs(
        self,
        start_date: Moment | None = None,
        end_date: Moment | None = None,
        agent_name: str | None = None,
    ) -> list[Row]:
        """The rows of ``daily_costs``, the newest day first, both ends included (UTC).

        ValueError for a date that is none, StoreError if the database cannot be read.
        """
        filters = _filters(*window(start_date, end_date), agent_name)

        async def question(store: Store) -> list[Row]:
            found: list[Row] = []
            cursor: str | None = None
            async with store.reader() as connection:
                while True:
                    rows, cursor = await state.page(
                        connection, "costs/daily", filters, _MOST, cursor
                    )
                    found += rows
                    if cursor is None:
                        return found

        return self._here().ask(question)

    def get_invocations(
        self,
        start_date: Moment | None = None,
        end_date: Moment | None = None,
        agent_name: str | None = None,
        tool_name: str | None = None,
        status: str | None = None,
        limit: int = 100,
    ) -> list[Row]:
        """Invocations, the newest first, both ends included; at most 1,000.

        Those of the gateway are among them, each attempt a row. Raises as ``get_daily_costs``.
        """
        if not 1 <= limit <= _MOST:
            raise ValueError(f"limit: must be from 1 to {_MOST} (got {limit})")
        filters = _filters(*window(start_date, end_date), agent_name, tool_name, status)

        async def question(store: Store) -> list[Row]:
            async with store.reader() as connection:
                rows, _ = await calls.page(connection, filters, limit, None)
            return [_named(row) for row in rows]

        return self._here().ask(question)

    def get_statistics(self, agent_name: str | None = None, days: int = 7) -> Row:
        """The sums of the last ``days`` times 24 hours; zeros where there was nothing.

        ``success_rate`` is of 1, and counts successes, errors and timeouts alone. Dollars and
        tokens are of what is known. StoreError if the database cannot be read.
        """
        if days < 0:
            raise ValueError(f"days: must be at least 0 (got {days})")
        now = now_ms()
        filters = _filters(max(0, now - days * DAY_MS), now + 1, agent_name)

        async def question(store: Store) -> Row:
            async with store.reader() as connection:
                found = await groups.whole(connection, filters)
            totals = found["totals"]
            return {
                "total_invocations": totals["requests"],
                "total_cost_usd": totals["cost_usd"] or 0.0,
                "total_tokens": totals["total_tokens"] or 0,
                "success_rate": totals["success_rate"] or 0.0,
                "avg_latency_ms": found["latency_ms"]["avg"] or 0.0,
                "error_count": totals["errors"],
            }

        return self._here().ask(question)

    def flush(self, seconds: float | None = None) -> bool:
        """Wait until all that was logged is written; False if ``seconds`` were not enough."""
        return self._here().flush(seconds)

    def status(self) -> Row:
        """``recorded``, ``queued`` and ``dropped`` records since the start, and ``last_error``."""
        return self._here().status()

    def close(self) -> None:
        """Write what is left and close the database; again does nothing."""
        atexit.unregister(self.close)
        if self._process == os.getpid():
            self._scribe.close(CLOSE_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


async def _nothing(_: Store) -> None:
    """To have it opened."""


async def _write(store: Store, row: CallRecord, sealed: ContentRecord | None) -> None:
    async with store.reader() as connection:
        if await calls.request(connection, row.request_id):
            raise DuplicateInvocation(f"the invocation {row.request_id} has been recorded")
    refused = store.refused
    await store.write([row] if sealed is None else [row, sealed])
    if store.refused > refused:
        raise StoreError(f"the database does not take the invocation {row.request_id}")


def _filters(
    start: int,
    end: int,
    agent: str | None,
    tool: str | None = None,
    status: str | None = None,
) -> Filters:
    agents, tools, statuses = (() if v is None else (v,) for v in (agent, tool, status))
    return Filters(start=start, end=end, agent=agents, tool=tools, status=statuses)


def _named(row: Mapping[str, Any]) -> Row:
    renamed = {_NAMES.get(name, name): value for name, value in row.items()}
    return {name: renamed[name] for name in _SHOWN}
