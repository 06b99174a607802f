"""Rollups by minute, hour and day, filled from the calls that are there.

The calls are read in the order in which they began, and counted as the program counts them; what
it counts beside the columns named here is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import sqlalchemy as sa
from alembic import op

from proxy.clock import now_ms
from proxy.store.rollups import (
    DAY,
    HOUR,
    MINUTE,
    Series,
    Tallies,
    gathered,
    in_all_scopes,
    series_id,
)
from proxy.store.sketch import Sketch
from proxy.store.tables import Instant
from proxy.store.tally import Tally

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

INT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
INSTANT = sa.Integer().with_variant(sa.DateTime(timezone=True), "postgresql")
FLOAT = sa.Double().with_variant(sa.REAL(), "sqlite")

_SERIES = (
    *("provider", "model", "key_id", "client_id", "agent_name", "tool_name"),
    *("endpoint", "status", "error_reason"),
)
_MEASURES = (
    *("attempts", "requests", "failovers", "unpriced"),
    *("input_tokens", "output_tokens", "total_tokens", "nano_usd"),
    *("latency_total", "ttft_total", "speed_total"),
    *("latency_sketch", "ttft_sketch", "speed_sketch"),
)
_MINUTES_KEPT = 48 * HOUR
_HOURS_KEPT = 400 * DAY
_PAGE = 10_000

_calls = sa.table(
    "api_calls",
    sa.column("id", INT),
    sa.column("timestamp", Instant),
    *[sa.column(name) for name in (*_SERIES, "attempt", "is_final")],
    *[sa.column(f"{share}_tokens") for share in ("input", "output", "total")],
    *[sa.column(f"{name}_ms") for name in ("total_duration", "time_to_first_token")],
    sa.column("tokens_per_second"),
    sa.column("cost_estimate_usd", FLOAT),
)


def upgrade() -> None:
    op.create_table(
        "rollup_series",
        sa.Column("id", INT, nullable=False),
        sa.Column("scope", sa.Text, nullable=False),
        *[sa.Column(name, sa.Text, nullable=False, server_default="") for name in _SERIES],
        sa.Column("first_seen", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_rollup_series"),
    )
    for span in ("minute", "hour", "day"):
        op.create_table(
            f"rollups_{span}",
            sa.Column("start", INSTANT, nullable=False),
            sa.Column("series_id", INT, nullable=False),
            *_counts("attempts", "requests", "failovers", "unpriced"),
            *[
                sa.Column(name, INT)
                for name in ("input_tokens", "output_tokens", "total_tokens", "nano_usd")
            ],
            *_counts("latency_total", "ttft_total", "speed_total"),
            *[sa.Column(f"{name}_sketch", sa.LargeBinary) for name in ("latency", "ttft", "speed")],
            sa.PrimaryKeyConstraint("start", "series_id", name=f"pk_rollups_{span}"),
            sqlite_with_rowid=False,
        )
    _fill(op.get_bind(), now_ms())


def _counts(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, INT, nullable=False, server_default="0") for name in names]


def _fill(connection: sa.Connection, now: int) -> None:
    """Count all calls, an hour at a time."""
    seen: dict[Series, int] = {}
    hour: Tallies = {}
    hours: list[tuple[tuple[int, Series], Tally]] = []
    for call in _in_order(connection):
        at = call.timestamp
        if hour and at // HOUR != next(iter(hour))[0] // HOUR:
            hours += _close_hour(connection, hour, now)
            hour = {}
        if hours and at // DAY != hours[0][0][0] // DAY:
            _close_day(connection, hours, seen)
            hours = []
        series = Series("caller", *[getattr(call, name) or "" for name in _SERIES])
        start = at - at % (MINUTE if at >= now - _MINUTES_KEPT else HOUR)
        tally = hour.get((start, series))
        if tally is None:
            tally = hour[start, series] = Tally()
        tally.count(call)
    _close_day(connection, [*hours, *_close_hour(connection, hour, now)], seen)
    _introduce(connection, seen)


def _in_order(connection: sa.Connection) -> Iterator[Any]:
    """The calls, the oldest first; their names are those of CallRecord."""
    c = _calls.c
    nano = sa.cast(sa.func.round(c.cost_estimate_usd * 1e9), sa.BigInteger)
    query = sa.select(*c, nano.label("cost_nano_usd")).order_by(c.timestamp, c.id).limit(_PAGE)
    rows = connection.execute(query).all()
    while rows:
        yield from rows
        last = sa.tuple_(sa.literal(rows[-1].timestamp, Instant), sa.literal(rows[-1].id, INT))
        rows = connection.execute(query.where(sa.tuple_(c.timestamp, c.id) > last)).all()


def _close_hour(
    connection: sa.Connection, callers: Tallies, now: int
) -> Iterable[tuple[tuple[int, Series], Tally]]:
    """Write an hour of which all calls are counted, and return what it adds to its day."""
    spans = dict(in_all_scopes(callers))
    hours = gathered(
        ((start - start % HOUR, series), tally) for (start, series), tally in spans.items()
    )
    for span, tallies, kept in (("minute", spans, _MINUTES_KEPT), ("hour", hours, _HOURS_KEPT)):
        _write(connection, span, {k: tally for k, tally in tallies.items() if k[0] >= now - kept})
    return hours.items()


def _close_day(
    connection: sa.Connection,
    hours: Iterable[tuple[tuple[int, Series], Tally]],
    seen: dict[Series, int],
) -> None:
    """Write a day of which all hours are closed, and note the series that are ``seen`` first."""
    days = gathered(((start - start % DAY, series), tally) for (start, series), tally in hours)
    _write(connection, "day", days)
    for start, series in days:
        seen.setdefault(series, start)


def _introduce(connection: sa.Connection, seen: Mapping[Series, int]) -> None:
    table = sa.table(
        "rollup_series",
        *[sa.column(name) for name in ("id", "scope", *_SERIES)],
        sa.column("first_seen", Instant),
    )
    names = ("scope", *_SERIES)
    rows = [
        {"id": series_id(series), "first_seen": at, **{n: getattr(series, n) for n in names}}
        for series, at in seen.items()
    ]
    if rows:
        connection.execute(sa.insert(table), rows)


def _write(connection: sa.Connection, span: str, tallies: Tallies) -> None:
    table = sa.table(
        f"rollups_{span}",
        sa.column("start", Instant),
        *[sa.column(name) for name in ("series_id", *_MEASURES)],
    )
    rows = []
    for (start, series), tally in tallies.items():
        values = {name: getattr(tally, name) for name in _MEASURES}
        dumps = {name: v.onto(None) for name, v in values.items() if isinstance(v, Sketch)}
        rows.append({"start": start, "series_id": series_id(series), **values, **dumps})
    if rows:
        connection.execute(sa.insert(table), rows)
