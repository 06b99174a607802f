"""The gateway as a process of its own, and its stderr."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.gateway import Line, lab, migrated
from tests.upstream import Upstream

ROOT = Path(__file__).parents[1]
KEY = "tk-master-canary-1"
CHAT = {"messages": [{"role": "user", "content": "prompt-canary-91"}]}


class Process:
    """A running gateway. ``stop`` signals it, and gives what it said on stderr as lines."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, database: Path) -> None:
        self.process = process
        self.url = url
        self.database = database

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    async def killed(self) -> None:
        """Ends it as no program can help."""
        self.process.kill()
        await self.process.communicate()

    async def ended(self) -> list[str]:
        """Waits for the end, which must be a good one."""
        _, said = await asyncio.wait_for(self.process.communicate(), 60)
        assert self.process.returncode == 0, said.decode()
        return said.decode().splitlines()

    async def dial(self, body: dict[str, Any] | bytes, length: int | None = None) -> Line:
        port = int(self.url.rsplit(":", 1)[1])
        line = Line(*await asyncio.open_connection("127.0.0.1", port))
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        size = len(payload) if length is None else length
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {size}"
        key = f"authorization: Bearer {KEY}"
        line.writer.write(f"{head}\r\n{key}\r\n\r\n".encode() + payload)
        return line

    def select(self, sql: str) -> list[dict[str, Any]]:
        connection = sqlite3.connect(self.database)
        connection.row_factory = sqlite3.Row
        try:
            return [dict(row) for row in connection.execute(sql)]
        finally:
            connection.close()


@asynccontextmanager
async def process(folder: Path, upstream: Upstream, **server: Any) -> AsyncIterator[Process]:
    """A gateway with the database ``folder/calls.db``, which is made where there is none.
    ``telemetry``, ``routing``, ``prices`` and ``budgets`` are sections of their own, the rest is
    the server's."""
    database = folder / "calls.db"
    if not database.exists():
        shutil.copy(await migrated(), database)
    url = f"sqlite+aiosqlite:///{database}"
    config = {
        "telemetry": {"database_url": url, **server.pop("telemetry", {})},
        "routing": server.pop("routing", {}),
        "prices": server.pop("prices", {}),
        "budgets": server.pop("budgets", []),
        "server": {"port": 0, **server},
        "auth": {"master_key": KEY},
        "providers": {"lab": lab(upstream.url, "sk-key-canary-22")},
        "models": {"fast": {"targets": ["lab/json"]}, "two": {"targets": ["lab/json", "lab/b"]}},
    }
    (folder / "t.yaml").write_text(yaml.safe_dump(config))
    started = await run("serve", "--config", str(folder / "t.yaml"), cwd=folder)
    try:
        assert started.stdout is not None
        first = await asyncio.wait_for(started.stdout.readline(), 60)
        yield Process(started, first.decode().split()[-1], database)
    finally:
        if started.returncode is None:
            started.kill()
            await started.communicate()


async def run(*words: str, cwd: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PYTHONPATH": str(ROOT)},
        cwd=cwd,
    )
