"""Figures that all who write share; on PostgreSQL, ``api_calls`` in partitions by UTC day.

The table of calls is copied as it is found: its columns, checks, indexes and views come from the
database. What other roles were granted on it and on its views has to be granted again.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

INSTANT = sa.Integer().with_variant(sa.DateTime(timezone=True), "postgresql")

_AHEAD = 7

_COLUMNS = """
SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
WHERE attrelid = 'api_calls'::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
"""
_INDEXES = """
SELECT pg_get_indexdef(indexrelid) FROM pg_index
WHERE indrelid = 'api_calls'::regclass
  AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
"""
_VIEWS = """
SELECT oid::regclass::text, pg_get_viewdef(oid) FROM pg_class
WHERE relkind = 'v' AND oid IN (
    SELECT ev_class FROM pg_rewrite JOIN pg_depend ON pg_depend.objid = pg_rewrite.oid
    WHERE refobjid = 'api_calls'::regclass)
"""
_DAYS = "SELECT DISTINCT (timestamp AT TIME ZONE 'UTC')::date FROM api_calls"
_TABLE = """
CREATE TABLE api_calls_new
(LIKE api_calls INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING CONSTRAINTS)
PARTITION BY RANGE (timestamp)
"""
_KEYS = """
ALTER TABLE api_calls
ADD CONSTRAINT pk_api_calls PRIMARY KEY (id, timestamp),
ADD CONSTRAINT uq_api_calls_request_id_attempt UNIQUE (request_id, attempt, timestamp)
"""


def upgrade() -> None:
    op.create_table(
        "running_figures",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("until", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_running_figures"),
    )
    op.create_index("ix_running_figures_until", "running_figures", ["until"])
    bind = op.get_bind()
    if bind.dialect.name == "postgresql":
        _part_by_day(bind)


def _part_by_day(bind: sa.Connection) -> None:
    columns = bind.scalar(sa.text(_COLUMNS))
    indexes = bind.scalars(sa.text(_INDEXES)).all()
    views = bind.execute(sa.text(_VIEWS)).all()
    sequence = bind.scalar(sa.text("SELECT pg_get_serial_sequence('api_calls', 'id')"))
    op.execute(_TABLE)
    op.execute("CREATE TABLE api_calls_default PARTITION OF api_calls_new DEFAULT")
    today = datetime.now(UTC).date()
    ahead = {today + timedelta(days=days) for days in range(_AHEAD + 1)}
    for day in sorted(ahead | set(bind.scalars(sa.text(_DAYS)))):
        op.execute(_partition(day))
    op.execute(f"INSERT INTO api_calls_new ({columns}) SELECT {columns} FROM api_calls")
    for view, _ in views:
        op.execute(f"DROP VIEW {view}")
    op.execute(f"ALTER SEQUENCE {sequence} OWNED BY api_calls_new.id")
    op.execute("DROP TABLE api_calls")
    op.execute("ALTER TABLE api_calls_new RENAME TO api_calls")
    op.execute(_KEYS)
    for statement in indexes:
        op.execute(statement)
    for view, query in views:
        # As text() would take the colons of casts for parameters.
        bind.exec_driver_sql(f"CREATE VIEW {view} AS {query}")


def _partition(day: date) -> str:
    begin, end = (f"'{each} 00:00:00+00'" for each in (day, day + timedelta(days=1)))
    values = f"FOR VALUES FROM ({begin}) TO ({end})"
    return f"CREATE TABLE api_calls_{day:%Y%m%d} PARTITION OF api_calls_new {values}"
