"""Somebody who follows the README: a folder, a shell, and a gateway that serves with the demo.

The gateway is a process of its own, as ``make run`` starts it. Beside the demo it has ``lab``, an
upstream that limits its first key, so that limits, failovers and costs are there to look at.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.gateway import lab
from tests.markdown import ROOT
from tests.upstream import Exchange, completion, error, upstream_server

SECONDS = 20.0

_PROGRAMS = {
    "tollkeeper": 'exec "{python}" -m proxy "$@"',
    "python": 'exec "{python}" "$@"',
    "sqlite3": 'exec "{python}" -m tests.reader "$@"',
}
"""What the reader has on the PATH, and in ``.venv/bin``."""

_LIMITS = {
    "x_ratelimit_limit_requests": "1000",
    "x_ratelimit_remaining_requests": "997",
    "x_ratelimit_reset_requests": "4m19s",
}


class Reader:
    """``url`` is the gateway; ``folder`` is where the reader is, with ``data/tollkeeper.db``."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self.sent = 0  # rows that there must be at least
        self.http = httpx.AsyncClient(base_url=url, timeout=10)

    async def run(self, script: str, **more: str) -> str:
        """What a shell prints; AssertionError if a command fails, an answered error included."""
        process = await asyncio.create_subprocess_exec(
            "bash",
            "-euo",
            "pipefail",
            "-c",
            script.replace("http://127.0.0.1:8000", self.url),
            cwd=self.folder,
            env={**_environment(self.folder), **self.variables, **more},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), SECONDS)
        assert process.returncode == 0, f"{script}\n{out.decode()}\n{err.decode()}"
        return out.decode()

    @property
    def variables(self) -> dict[str, str]:
        """What the README has the reader export."""
        return {"OPENAI_BASE_URL": f"{self.url}/v1", "OPENAI_API_KEY": "unused"}

    async def settled(self) -> None:
        """Until every row is written."""
        stats = {}
        async with asyncio.timeout(SECONDS):
            while stats.get("queued") != 0 or stats["recorded"] < self.sent:
                await asyncio.sleep(0.05)
                stats = (await self.http.get("/stats")).json()["recorder"]

    async def get(self, path: str) -> Any:
        """The JSON of a path that answers 200."""
        answer = await self.http.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def select(self, sql: str) -> list[dict[str, Any]]:
        """Rows of the reader's database."""
        return _select(self.folder / "data" / "tollkeeper.db", sql)


@asynccontextmanager
async def reading(folder: Path) -> AsyncIterator[Reader]:
    """The gateway runs, and has served some calls, until the block ends."""
    _furnish(folder)
    async with upstream_server() as upstream:
        upstream.script = completion("Four words of text", prompt=900, output=120)
        upstream.by_key["sk-lab-1"] = error(
            429, "Too many requests", "rate_limit_exceeded", retry_after="600", **_LIMITS
        )
        upstream.by_model["broken"] = _broken
        block = lab(upstream.url, "sk-lab-1", "sk-lab-2")
        block["keys"][0]["limits"] = {"rpm": 500}
        providers = {"demo": {}, "lab": block}
        more = {
            "TOLLKEEPER_ROUTING__BREAKER__FAILURES": "1",
            "TOLLKEEPER_PROVIDERS": json.dumps(providers),
            "TOLLKEEPER_MODELS": json.dumps({"quick": {"targets": ["lab/json", "demo/echo"]}}),
            "TOLLKEEPER_PRICES": json.dumps(
                {"lab/*": {"input": 0.5, "output": 1.5}, "demo/*": {"input": 0.1, "output": 0.2}}
            ),
        }
        with (folder / "gateway.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "proxy", "--port", "0"),
                cwd=folder,
                env={**_environment(folder), **more},
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        try:
            reader = Reader(folder, await _address(process, folder))
            async with reader.http:
                await _use(reader)
                yield reader
        finally:
            process.send_signal(signal.SIGTERM)
            code = await asyncio.wait_for(process.wait(), SECONDS)
        assert code == 0, (folder / "gateway.log").read_text()


async def _broken(exchange: Exchange) -> None:
    await error(500, "The engine caught fire")(exchange)


async def _address(process: asyncio.subprocess.Process, folder: Path) -> str:
    """From the banner."""
    assert process.stdout is not None
    while line := await asyncio.wait_for(process.stdout.readline(), SECONDS):
        if found := re.search(rb"^Tollkeeper .* at (\S+)$", line):
            return found[1].decode()
    raise AssertionError((folder / "gateway.log").read_text())


async def _use(reader: Reader) -> None:
    """Some calls of several agents, models and fates."""

    async def chat(model: str, agent: str, tool: str, **more: Any) -> None:
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], **more}
        headers = {"X-Agent-Name": agent, "X-Tool-Name": tool, "X-User-Id": "ann", "X-Tags": "docs"}
        await reader.http.post("/v1/chat/completions", json=body, headers=headers)

    await chat("lab/json", "planner", "search")
    await asyncio.gather(
        chat("demo/echo", "planner", "search", stream=True),
        chat("demo/echo", "reviewer", "diff", stream=True),
        chat("demo/none", "reviewer", "diff"),
        chat("quick", "planner", "search"),
        chat("lab/json", "reviewer", "diff"),
        chat("lab/broken", "planner", "search"),
        chat("nobody/knows", "planner", "search"),
        reader.http.post("/v1/embeddings", json={"model": "demo/echo", "input": "Hello"}),
    )
    await reader.http.post(
        "/track/custom", json={"name": "cache_hit", "value": 1, "attributes": {"cache": "answers"}}
    )
    credits = "/admin/credits/tavily/main"
    await reader.http.put(credits, json={"allowance": 1000})
    await reader.http.post(f"{credits}/consume", json={"amount": 3})
    reader.sent = 11
    await reader.settled()


def _environment(folder: Path) -> dict[str, str]:
    """Of this process only what programs need to start: none of its keys and addresses."""
    kept = {name: os.environ[name] for name in ("LANG", "SYSTEMROOT") if name in os.environ}
    path = f"{folder / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "PATH": path, "HOME": str(folder), "PYTHONPATH": str(ROOT)}


def _furnish(folder: Path) -> None:
    """A working directory such as the repository's root, and the programs."""
    (folder / "config").mkdir()
    shutil.copy(ROOT / "config" / "tollkeeper.example.yaml", folder / "config")
    (folder / "empty.yaml").touch()
    (folder / ".curlrc").write_text("fail-with-body\n")
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, line in _PROGRAMS.items():
        program = programs / name
        program.write_text(f"#!/bin/sh\n{line.format(python=sys.executable)}\n")
        program.chmod(0o755)


def _select(database: Path, sql: str) -> list[dict[str, Any]]:
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    connection.row_factory = sqlite3.Row
    try:
        return [dict(row) for row in connection.execute(sql)]
    finally:
        connection.close()


def _sqlite3(option: str, database: str, sql: str) -> None:
    """``sqlite3 -line FILE SQL``, where that program is not installed."""
    assert option == "-line"
    for row in _select(Path(database), sql):
        width = max(map(len, row))
        for name, value in row.items():
            sys.stdout.write(f"{name:>{width}} = {'' if value is None else value}\n")


if __name__ == "__main__":
    _sqlite3(*sys.argv[1:])
