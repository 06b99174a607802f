"""The gateway as its own process: how it starts, what it says on stderr, and how it ends."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import socket
import sqlite3
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from tests.gateway import migrated
from tests.process import CHAT, process, run
from tests.upstream import Upstream, completion, error, hang, stream, words


def stored(folder: Path) -> bytes:
    """The database, what SQLite keeps beside it, and the journal."""
    files = [*folder.glob("calls.db*"), *folder.glob("calls.db.state/**/*")]
    return b"".join(path.read_bytes() for path in files if path.is_file())


async def test_a_stop_under_load_loses_no_row(upstream: Upstream, tmp_path: Path) -> None:
    """Whoever got an answer has a row, and so has every call that reached the upstream."""
    answered: list[str] = []
    enough = asyncio.Event()
    async with process(tmp_path, upstream) as gateway:
        limits = httpx.Limits(max_connections=16)
        key = {"authorization": "Bearer tk-master-canary-1"}
        async with httpx.AsyncClient(base_url=gateway.url, headers=key, limits=limits) as client:

            async def ask() -> None:
                try:
                    while True:
                        body = {"model": "fast", "stream": True, **CHAT}
                        got = await client.post("/v1/chat/completions", json=body)
                        assert got.status_code == 200
                        answered.append(got.headers["x-request-id"])
                        if len(answered) == 200:
                            enough.set()
                except httpx.TransportError:
                    pass  # it no longer listens

            upstream.script = stream([*words("a"), 0.002])
            async with asyncio.TaskGroup() as tasks:
                for _ in range(16):
                    tasks.create_task(ask())
                await asyncio.wait_for(enough.wait(), 20)
                gateway.signal()
        assert not [line for line in await gateway.ended() if '"error"' in line]
        rows = gateway.select("SELECT request_id, status FROM api_calls")
    assert {row["request_id"] for row in rows} >= set(answered)
    assert len(rows) == len(upstream.calls)
    assert {row["status"] for row in rows} == {"success"}


async def test_a_stream_may_end_while_the_gateway_drains(
    upstream: Upstream, tmp_path: Path
) -> None:
    parts = words("a", "b", "c")
    upstream.script = stream([*parts[:2], 0.4, *parts[2:]])
    async with process(tmp_path, upstream, drain="5s") as gateway:
        line = await gateway.dial({"model": "fast", "stream": True, **CHAT})
        await line.until(parts[1])
        gateway.signal()
        raw = await line.rest()
        assert b"data: [DONE]\n\n" in raw
        assert raw.endswith(b"0\r\n\r\n")
        await gateway.ended()
        [row] = gateway.select("SELECT * FROM api_calls")
    assert (row["status"], row["output_tokens"]) == ("success", 3)


async def test_what_does_not_end_is_cut_and_kept_as_interrupted(
    upstream: Upstream, tmp_path: Path
) -> None:
    """Streams get an error event; who has no answer yet, or has not sent all, gets a 503."""
    upstream.script = stream(words("a", "b")[:3], ends="hang")
    upstream.by_model["silent"] = hang
    async with process(tmp_path, upstream, drain="200ms") as gateway:
        streams = [await gateway.dial({"model": "fast", "stream": True, **CHAT}) for _ in range(20)]
        for line in streams:
            await line.until(words("a", "b")[2])
        silent = await gateway.dial({"model": "lab/silent", **CHAT})
        await upstream.asked(21)
        unsent = await gateway.dial(b"{", 100)
        async with httpx.AsyncClient(base_url=gateway.url) as client:
            await client.get("/healthz")  # who came before is let in before
        await asyncio.sleep(0.05)
        gateway.signal(signal.SIGINT)
        for line in streams:
            raw = await line.rest()
            assert raw.endswith(b'"param":null,"code":"stream_truncated"}}\n\n\r\n')
            assert b"[DONE]" not in raw
        for line in (silent, unsent):
            raw = await line.rest()
            assert raw.startswith(b"HTTP/1.1 503")
            assert raw.endswith(b'"type":"api_error","param":null,"code":"interrupted"}}')
        said = "\n".join(await gateway.ended())
        rows = gateway.select("SELECT * FROM api_calls ORDER BY is_stream, key_id")
    assert {row["error_reason"] for row in rows} == {"interrupted"}
    assert [(row["client_status"], row["key_id"]) for row in rows[:2]] == [(503, None), (503, "k1")]
    assert len(rows) == 22
    for row in rows[2:]:
        assert (row["status"], row["client_status"], row["is_final"]) == ("error", 200, 1)
        assert row["usage_source"] == "estimated"
        assert 0 < row["output_tokens"] <= 2  # by whether a vocabulary is installed
    assert "Traceback" not in said, said


async def test_who_left_before_a_stop_is_read_on_until_its_end_at_most(
    upstream: Upstream, tmp_path: Path
) -> None:
    parts = words("a", "b", "c")
    upstream.by_model["slow"] = stream([*parts[:2], 0.5, *parts[2:]])
    upstream.by_model["endless"] = stream(parts[:2], ends="hang")
    async with process(tmp_path, upstream, drain="4s", on_disconnect="drain") as gateway:
        for model in ("slow", "endless"):
            line = await gateway.dial({"model": f"lab/{model}", "stream": True, **CHAT})
            await line.until(parts[1])
            await line.hang_up()
        await asyncio.sleep(0.1)
        gateway.signal()
        said = "\n".join(await gateway.ended())
        endless, slow = gateway.select("SELECT * FROM api_calls ORDER BY model")
    assert {row["status"] for row in (slow, endless)} == {"cancelled"}
    assert {row["client_status"] for row in (slow, endless)} == {499}
    assert (slow["usage_source"], slow["output_tokens"]) == ("drained", 3)
    assert (endless["usage_source"], endless["output_tokens"]) == ("estimated", 1)
    assert "Traceback" not in said, said


async def test_every_request_is_one_line_of_json_without_secret_or_prompt(
    upstream: Upstream, tmp_path: Path
) -> None:
    upstream.by_model["bad"] = error(400, "no, prompt not quoted, but sk-key-canary-22 is")
    upstream.by_model["sick"] = error(500, "boom sk-key-canary-22")
    upstream.by_model["stream"] = stream(words("answer-canary"))
    asked: dict[str, str] = {}
    async with process(tmp_path, upstream, log_format="json") as gateway:
        key = {"authorization": "Bearer tk-master-canary-1", "cookie": "cookie-canary"}
        async with httpx.AsyncClient(base_url=gateway.url, headers=key) as client:
            upstream.script = completion("answer-canary")
            for model in ("fast", "lab/bad", "lab/sick", "lab/stream", "nobody/m"):
                body = {"model": model, "stream": model == "lab/stream", **CHAT}
                got = await client.post("/v1/chat/completions?key=query-canary", json=body)
                asked[got.headers["x-request-id"]] = model
            got = await client.post("/v1/chat/completions", content=b'{"prompt-canary-91')
            asked[got.headers["x-request-id"]] = "?"
            wrong = {"authorization": "Bearer sk-wrong-canary"}
            assert (await client.get("/v1/models", headers=wrong)).status_code == 401
        gateway.signal()
        lines = await gateway.ended()
    database = stored(tmp_path)
    told = [json.loads(line) for line in lines]
    requests = {line["request_id"]: line for line in told if "endpoint" in line}
    assert list(requests) == list(asked)
    assert len(requests) == len([line for line in told if "endpoint" in line])
    by_model = {model: requests[request_id] for request_id, model in asked.items()}
    served = by_model["fast"]
    assert (served["status"], served["client_status"]) == ("success", 200)
    assert (served["provider"], served["model"], served["key_id"]) == ("lab", "json", "k1")
    assert (served["input_tokens"], served["output_tokens"]) == (9, 12)
    assert by_model["lab/stream"]["time_to_first_token_ms"] > 0
    assert by_model["lab/bad"]["error_reason"] == "invalid_request"
    assert by_model["nobody/m"]["status"] == "rejected"
    assert all(line["time"].endswith("Z") and line["level"] for line in told)
    assert "canary" not in "\n".join(lines)
    assert b"canary" not in database


async def test_the_readable_log_is_one_line_a_request_too(
    upstream: Upstream, tmp_path: Path
) -> None:
    async with process(tmp_path, upstream, log_format="text") as gateway:
        key = {"authorization": "Bearer tk-master-canary-1", "x-agent-name": "a\tb"}
        async with httpx.AsyncClient(base_url=gateway.url, headers=key) as client:
            models = ("lab/json", "lab/two words\nand a line", "lab/\x1b[31mred")
            answers = [
                await client.post("/v1/chat/completions", json={"model": model, **CHAT})
                for model in models
            ]
        gateway.signal()
        lines = [line for line in await gateway.ended() if " INFO " not in line]
    assert len(lines) == len(models)
    for line, got in zip(lines, answers, strict=True):
        assert re.match(r"\d{4}-\d\d-\d\dT[0-9:.]+Z success 200 lab/", line)
        assert line.endswith(got.headers["x-request-id"])
        assert line.isprintable()


async def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (tmp_path / "t.yaml").write_text(f"server: {{port: {port}}}\nproviders: {{demo: {{}}}}\n")
        started = await run("serve", "--config", "t.yaml", cwd=tmp_path)
        out, said = await asyncio.wait_for(started.communicate(), 20)
    assert started.returncode == 1
    assert out == b""
    [line] = said.decode().splitlines()
    assert f"port {port}" in line
    assert "is in use" in line


async def test_a_bad_configuration_is_a_line_for_each_mistake(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(
        "server: {port: 99999, drian: 1s}\nproviders: {lab: {type: openia}}\nprice: {}\n"
    )
    started = await run("serve", "--config", "t.yaml", cwd=tmp_path)
    out, said = await asyncio.wait_for(started.communicate(), 20)
    assert started.returncode == 1
    assert out == b""
    lines = said.decode().splitlines()
    assert all(line.startswith("t.yaml") for line in lines)
    for place in ("server.port", "server.drian", "providers.lab", "price"):
        assert [line for line in lines if place in line], place
    assert "Traceback" not in said.decode()
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("words", [["--workers", "0"], ["--config", "nowhere.yaml"]])
async def test_what_cannot_be_served_is_one_line(tmp_path: Path, words: list[str]) -> None:
    started = await run("serve", *words, cwd=tmp_path)
    _, said = await asyncio.wait_for(started.communicate(), 20)
    assert started.returncode == 1
    assert len(said.decode().splitlines()) == 1, said.decode()


async def test_a_database_of_a_newer_version_is_one_line(tmp_path: Path) -> None:
    database = tmp_path / "t.db"
    shutil.copy(await migrated(), database)
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    (tmp_path / "t.yaml").write_text(
        "server: {port: 0}\nproviders: {demo: {}}\n"
        f"telemetry: {{database_url: 'sqlite+aiosqlite:///{database}'}}\n"
    )
    started = await run("serve", "--config", "t.yaml", cwd=tmp_path)
    _, said = await asyncio.wait_for(started.communicate(), 20)
    assert started.returncode == 1
    [line] = said.decode().splitlines()
    assert "newer version" in line
