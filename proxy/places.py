"""Where the processes that share a database keep what is theirs alone."""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import parse_qsl

_DATA = Path("data")


def state_folder(database_url: str) -> Path:
    """The folder, absolute and not yet made, of all processes of this host that write to one
    database: beside its file, else below ``data/`` and named by a digest of where the database is.
    User and password have no part in that.
    """
    scheme, _, place = database_url.partition("://")
    place, _, query = place.partition("?")
    if scheme.startswith("sqlite"):
        return Path(f"{Path(place.removeprefix('/')).expanduser().absolute()}.state")
    hosts = sorted(pair for pair in parse_qsl(query) if pair[0] in ("host", "port"))
    where = repr((place.rpartition("@")[2], hosts))
    return (_DATA / f"state-{hashlib.sha256(where.encode()).hexdigest()[:12]}").absolute()
