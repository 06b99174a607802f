"""``tollkeeper prune``: by hand what the gateway's retention does, while gateways go on writing."""

from __future__ import annotations

import sys

from proxy.clock import now_ms, rfc3339
from proxy.errors import ConfigError
from proxy.progress import Progress
from proxy.schema import Settings
from proxy.store import retention
from proxy.store.archive import DAY_MS, Archive
from proxy.store.engine import Store
from proxy.store.look import look


async def prune(settings: Settings, older_than: int | None, dry_run: bool) -> str:
    """Delete what is older, in milliseconds, and say what was deleted.

    None: older than ``telemetry.retention_days``. Prompts and answers go by
    ``telemetry.content_days`` where that is sooner. Calls are archived first where that is
    configured. Raises StoreError if the database or the archive cannot be written, and ConfigError
    if nobody says how old.
    """
    telemetry = settings.telemetry
    if older_than is None and telemetry.retention_days == 0:
        raise ConfigError(["telemetry.retention_days is 0, for ever: say --older-than"])
    age = telemetry.retention_days * DAY_MS if older_than is None else older_than
    now = now_ms()
    before = max(0, now - age)
    contents = max(before, now - telemetry.content_days * DAY_MS)
    archive = None if telemetry.archive is None else Archive(telemetry.archive)
    async with look(telemetry.database_url) as connection:  # one that is there, of this version
        found = await retention.old(connection, contents, False, retention.CONTENTS)
        found |= await retention.old(connection, before, archive is not None)
    if dry_run:
        return _listed(found, before)
    progress = Progress(sum(found.values()), sys.stderr)
    store = Store(telemetry.database_url)
    try:
        deleted = await retention.let_go(store, contents, None, progress.add, retention.CONTENTS)
        deleted += await retention.let_go(store, before, archive, progress.add)
    finally:
        await store.close()
    progress.close()
    return f"{deleted} rows deleted"


def _listed(found: dict[str, int], before: int) -> str:
    width = max(map(len, found))
    lines = [f"{table:{width}} {rows:12}" for table, rows in found.items()]
    return "\n".join([f"older than {rfc3339(before)}:", *lines])
