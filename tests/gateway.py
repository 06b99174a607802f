"""A whole gateway on a real socket, and a second connection to its database."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import httpx
import uvicorn
import yaml

from proxy.app import create_app
from proxy.config import load
from proxy.metering import shipper
from proxy.serve import bind
from proxy.wire import OneWriteProtocol
from tests.store import databases

QUICK = 0.01
"""Seconds that a row waits for others: hundreds of tests wait for their rows."""
SECONDS = 5.0
"""How long a row may take to appear before a test gives up; the promise is one second."""

default = SimpleNamespace(database="sqlite")
"""Of which kind the databases of gateways are: what ``--database`` says."""

PATIENT = {
    "max_wait": 0,
    "retry_budget": {"minimum": 100_000},
    "breaker": {"failures": 0},
}
"""How failures are met unless a test is about that: hundreds of them share a gateway, and what one
makes fail must not keep the next from its upstream."""


class Line:
    """A client's socket, with all that came on it in ``received``."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.received = b""

    async def until(self, text: bytes) -> bytes:
        """Reads on until ``text`` has come; what came up to then."""
        while text not in self.received:
            data = await asyncio.wait_for(self.reader.read(65536), SECONDS)
            assert data, f"the connection ended before {text!r}: {self.received!r}"
            self.received += data
        return self.received

    async def rest(self) -> bytes:
        """Reads until the other side closes; all that came."""
        self.received += await asyncio.wait_for(self.reader.read(), SECONDS)
        await self.hang_up()
        return self.received

    async def hang_up(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


class Gateway:
    """``client`` speaks to it with its master key, if there is one; ``rows`` reads its tables.

    ``database`` is a file, or the name of one on the PostgreSQL server.
    """

    def __init__(
        self, url: str, folder: Path, database: Path | str, app: Any, key: str | None
    ) -> None:
        self.url = url
        self.folder = folder
        self.database = database
        self.app = app
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self.client = httpx.AsyncClient(base_url=url, headers=headers, timeout=30)

    async def chat(self, model: str, text: str = "hi", **more: Any) -> httpx.Response:
        """A chat completion, read whole."""
        headers = more.pop("headers", {})
        body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
        return await self.client.post("/v1/chat/completions", json=body, headers=headers)

    def select(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        """Rows, read on a connection that is not the gateway's."""
        return databases.select(self.database, sql, *values)

    async def rows(
        self, count: int = 1, sql: str = "SELECT * FROM api_calls ORDER BY id", *values: Any
    ) -> list[dict[str, Any]]:
        """The rows of a query, once there are at least ``count``; fails if they do not come."""
        for _ in range(int(SECONDS / 0.02)):
            found = self.select(sql, *values)
            if len(found) >= count:
                return found
            await asyncio.sleep(0.02)
        raise AssertionError(f"{len(self.select(sql, *values))} rows instead of {count}: {sql}")

    async def row(self, sql: str = "SELECT * FROM api_calls", *values: Any) -> dict[str, Any]:
        """The only row of a query."""
        [row] = await self.rows(1, sql, *values)
        return row

    async def attempts(self, name: str) -> list[dict[str, Any]]:
        """All rows of one request, once the final one is there.

        ``name`` is the request's id, or the ``X-Request-Id`` that the client sent.
        """
        mine = "FROM api_calls WHERE (request_id = ? OR client_request_id = ?)"
        await self.rows(1, f"SELECT id {mine} AND is_final", name, name)
        return self.select(f"SELECT * {mine} ORDER BY attempt", name, name)

    async def attempt(self, name: str) -> dict[str, Any]:
        """The row of a request that had one attempt."""
        [row] = await self.attempts(name)
        return row

    async def dial(
        self, body: bytes | dict[str, Any], *fields: str, path: str = "/v1/chat/completions"
    ) -> Line:
        """A request on a socket of its own, for clients that misbehave. ``fields`` are header
        lines; a Content-Length is added unless one of them is a length."""
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = [f"POST {path} HTTP/1.1", "host: localhost", *fields]
        if not any(f.lower().startswith(("content-length", "transfer-enc")) for f in fields):
            lines.append(f"content-length: {len(payload)}")
        port = int(self.url.rsplit(":", 1)[1])
        line = Line(*await asyncio.open_connection("127.0.0.1", port))
        line.writer.write("\r\n".join([*lines, "", ""]).encode() + payload)
        await line.writer.drain()
        return line


async def migrated() -> Path:
    """An empty file of the current schema, to be copied."""
    return Path(databases.migrated("sqlite"))


async def _database(kind: str, folder: Path) -> tuple[Path | str, str]:
    """The database of the gateway in that folder, the same for the next one there, and its
    address."""
    if kind == "sqlite":
        path = folder / "calls.db"
        if not path.exists():
            shutil.copy(await migrated(), path)
        return path, f"sqlite+aiosqlite:///{path}"
    if folder not in _names:
        if len(_names) >= _KEPT:
            await databases.drop(_names.pop(next(iter(_names))))
        _names[folder] = await databases.create(databases.migrated(kind))
    return _names[folder], databases.address(_names[folder])


_names: dict[Path, str] = {}
_KEPT = 8
"""How many databases stay for a gateway that comes again. No test has more at once."""


@atexit.register
def _drop() -> None:
    for name in _names.values():
        asyncio.run(databases.drop(name))


@asynccontextmanager
async def running(
    folder: Path,
    config: dict[str, Any],
    transport: httpx.AsyncBaseTransport | None = None,
    kind: str | None = None,
) -> AsyncIterator[Gateway]:
    """Serve with a configuration (the YAML as a dict) until the block ends.

    The database is of the ``kind`` that ``--database`` says unless it is told here, and an address
    in the configuration beats both.
    """
    telemetry = dict(config.get("telemetry", {}))
    database: Path | str = folder / "calls.db"
    if "database_url" not in telemetry:
        database, telemetry["database_url"] = await _database(kind or default.database, folder)
    file = folder / "tollkeeper.yaml"
    server_settings = {"port": 0, "log_level": "warning", **config.get("server", {})}
    routing = config.get("routing", PATIENT)
    whole = {
        "providers": {},
        **config,
        "telemetry": telemetry,
        "server": server_settings,
        "routing": routing,
    }
    file.write_text(yaml.safe_dump(json.loads(json.dumps(whole)), sort_keys=False))
    settings = load(file, {}, {})
    app = create_app(settings, transport, reread=lambda: load(file, {}, {}))
    listener = bind("127.0.0.1", 0)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=OneWriteProtocol,
            ws="none",
            lifespan="on",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=2,
        )
    )
    key = settings.auth.master_key
    async with asyncio.TaskGroup() as tasks:
        with mock.patch.object(shipper, "PAUSES", (QUICK, QUICK)):
            serving = tasks.create_task(server.serve(sockets=[listener]))
            while not server.started:
                assert not serving.done(), "the gateway did not start"
                await asyncio.sleep(0.005)
        port = listener.getsockname()[1]
        master = key.get_secret_value() if key else None
        gateway = Gateway(f"http://127.0.0.1:{port}", folder, database, app, master)
        try:
            yield gateway
        finally:
            await gateway.client.aclose()
            server.should_exit = True
            await asyncio.wait([serving])


def lab(url: str, *keys: str, **more: Any) -> dict[str, Any]:
    """The block of one ``type: openai`` provider with these keys; their names are k1, k2, ..."""
    named = [{"name": f"k{n}", "value": key} for n, key in enumerate(keys or ("sk-11111111",), 1)]
    return {"type": "openai", "base_url": url, "keys": named, **more}
