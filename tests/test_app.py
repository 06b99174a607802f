from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy import app as module
from proxy import loops, upstreams
from proxy.app import create_app
from proxy.config import load
from proxy.errors import ConfigError
from proxy.metering import tokenizer
from proxy.observe.host import HostSampler
from proxy.redact import Redactor
from proxy.schema import Settings
from proxy.store.address import SchemaError, StoreError
from proxy.store.archive import Archive
from proxy.telemetry.dates import moment
from tests.gateway import Gateway, lab
from tests.upstream import Upstream, error, json_answer

Start = Callable[..., Awaitable[Gateway]]
CHAT = {"model": "lab/json", "messages": []}


class Ended(Exception):
    """The lifespan failed; ``args`` is what it said."""


@asynccontextmanager
async def alive(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    """The app between the start and the end of its lifespan, asked without a socket."""
    orders: asyncio.Queue[str] = asyncio.Queue()
    told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def receive() -> dict[str, Any]:
        return {"type": await orders.get()}

    async def say(order: str) -> None:
        orders.put_nowait(f"lifespan.{order}")
        message = await told.get()
        if message["type"] != f"lifespan.{order}.complete":
            raise Ended(message.get("message"))

    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(app({"type": "lifespan", "state": {}}, receive, told.put))
        try:
            await say("startup")
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://localhost"
            ) as client:
                yield client
            await say("shutdown")
        finally:
            running.cancel()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, on a machine without an Ollama."""

    async def no(*_: object) -> bool:
        return False

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(upstreams.ollama, "answers", no)
    return tmp_path


# What it finds.


async def test_with_nothing_configured_the_demo_answers_and_is_metered(folder: Path) -> None:
    app = create_app(load(None, {}, {}))
    assert app.state.ready is False
    async with alive(app) as client:
        assert app.state.ready is True
        assert app.state.providers == [("demo", 0)]
        assert app.state.example_model.startswith("demo/")
        body = {"model": app.state.example_model, "messages": [{"role": "user", "content": "hi"}]}
        answer = await client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200
        assert answer.headers["x-tollkeeper-provider"] == "demo"
    assert app.state.ready is False
    with sqlite3.connect(folder / "data" / "tollkeeper.db") as connection:
        rows = connection.execute("SELECT provider, status FROM api_calls").fetchall()
    connection.close()
    assert rows == [("demo", "success")]


async def test_an_ollama_that_answers_is_found_by_itself(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def yes(transport: object, address: str) -> bool:
        return address == "http://127.0.0.1:11434/v1"

    monkeypatch.setattr(upstreams.ollama, "answers", yes)
    app = create_app(load(None, {}, {}), httpx.MockTransport(lambda _: httpx.Response(503)))
    async with alive(app):
        assert app.state.providers == [("ollama", 0)]
        assert app.state.example_model is None


async def test_with_a_file_nothing_is_looked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def asked(*_: object) -> bool:
        raise AssertionError

    monkeypatch.setattr(upstreams.ollama, "answers", asked)
    (folder / "t.yaml").write_text("providers: {}\ntelemetry: {enabled: false}\n")
    app = create_app(load(folder / "t.yaml", {}, {}))
    async with alive(app):
        assert app.state.providers == [("demo", 0)]


@pytest.mark.parametrize(
    ("models", "aliases", "example"),
    [
        (["text-embedding-3", "whisper-1", "gpt-5"], {}, "lab/gpt-5"),
        (["text-embedding-3"], {}, None),
        (["gpt-5"], {"fast": {"targets": ["lab/gpt-5"]}}, "fast"),
    ],
)
async def test_the_example_is_a_model_to_chat_with(
    upstream: Upstream,
    start: Start,
    models: list[str],
    aliases: dict[str, Any],
    example: str | None,
) -> None:
    upstream.models = [{"id": name} for name in models]
    gateway = await start({"providers": {"lab": lab(upstream.url)}, "models": aliases})
    assert gateway.app.state.example_model == example


# What it does without.


@pytest.mark.parametrize("telemetry", [{"enabled": False}, {"privacy_level": "none"}])
async def test_where_nothing_is_to_be_kept_no_database_is_made(
    upstream: Upstream, folder: Path, telemetry: dict[str, Any]
) -> None:
    arguments = {"providers": {"lab": lab(upstream.url)}, "telemetry": telemetry}
    app = create_app(load(None, arguments, {}))
    async with alive(app) as client:
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        totals = (await client.get("/stats")).json()["totals"]
        assert (totals["requests"], totals["cost_usd"]) == (0, 0)
        assert (await client.get("/stats/calls")).json()["data"] == []
        (key,) = (await client.get("/stats/keys")).json()["data"]
        assert (key["name"], key["state"]) == ("k1", "healthy")
    assert os.listdir(folder) == []


async def test_a_database_that_cannot_be_opened_is_no_reason_not_to_serve(
    upstream: Upstream, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "data").write_text("a file where the folder should be")
    app = create_app(load(None, {"providers": {"lab": lab(upstream.url)}}, {}))
    async with alive(app) as client:
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        assert (await client.get("/readyz")).status_code == 200
        assert "serving without it" in caplog.text
        (folder / "data").unlink()
    with sqlite3.connect(folder / "data" / "tollkeeper.db") as connection:
        assert connection.execute("SELECT count(*) FROM api_calls").fetchone() == (1,)
    connection.close()


async def test_a_database_of_a_newer_version_is_left_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def newer(_: object) -> None:
        raise SchemaError("made by a newer version")

    monkeypatch.setattr(module.Store, "open", newer)
    app = create_app(load(None, {}, {}))
    with pytest.raises(ExceptionGroup) as caught:
        async with alive(app):
            pass
    assert caught.group_contains(Ended, match="newer version") or caught.group_contains(SchemaError)
    assert app.state.ready is False


async def test_a_loop_that_breaks_is_reported_and_ends_nothing_else(
    upstream: Upstream, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: object) -> None:
        raise RuntimeError("no such host")

    monkeypatch.setattr(HostSampler, "run", fail)
    gateway = await start({"providers": {"lab": lab(upstream.url)}})
    assert (await gateway.chat("lab/json")).status_code == 200
    row = await gateway.row("SELECT * FROM errors")
    assert (row["error_type"], row["error_message"]) == ("RuntimeError", "no such host")
    assert "in fail" in row["stack_trace"]
    assert row["severity"] == "critical"


# How its parts are connected.


async def test_a_key_that_a_list_refuses_is_taken_out(upstream: Upstream, start: Start) -> None:
    upstream.lists = error(401, "bad key")
    gateway = await start({"providers": {"lab": lab(upstream.url, "sk-1", "sk-2")}})
    keys = (await gateway.client.get("/stats/keys")).json()["data"]
    assert [(key["name"], key["state"]) for key in keys] == [("k1", "disabled"), ("k2", "healthy")]
    assert keys[0]["reason"] == "authentication"
    row = await gateway.row("SELECT * FROM rate_limits")
    assert (row["key_id"], row["cooldown_reason"]) == ("k1", "authentication")
    assert gateway.select("SELECT * FROM api_calls") == []


async def test_the_settings_reach_the_parts(upstream: Upstream, start: Start) -> None:
    gateway = await start(
        {
            "providers": {"lab": lab(upstream.url, include_usage=False)},
            "server": {"max_body": 2000, "body_timeout": 0.1},
        }
    )
    client = gateway.client
    assert (await gateway.chat("lab/json", "x" * 2000)).status_code == 413
    assert (await gateway.chat("lab/json", stream=True)).status_code == 200
    assert "stream_options" not in upstream.calls[0].json

    async def never() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(0.3)

    assert (await client.post("/v1/chat/completions", content=never())).status_code == 408


@pytest.mark.parametrize("installed", [True, False])
async def test_a_vocabulary_is_loaded_before_anything_is_served(
    installed: bool, upstream: Upstream, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[int] = []

    def load() -> None:
        loaded.append(threading.get_ident())

    monkeypatch.setattr(tokenizer, "INSTALLED", installed)
    monkeypatch.setattr(tokenizer, "load", load)
    await start({"providers": {"lab": lab(upstream.url)}})
    assert len(loaded) == installed
    assert threading.get_ident() not in loaded  # it takes a third of a second


async def test_who_is_turned_away_is_counted_and_has_no_row(
    upstream: Upstream, start: Start
) -> None:
    gateway = await start(
        {"providers": {"lab": lab(upstream.url)}, "auth": {"master_key": "tk-master"}}
    )
    async with httpx.AsyncClient(base_url=gateway.url) as stranger:
        for path in ("/stats", "/v1/models"):
            assert (await stranger.get(path)).status_code == 401
    assert (await gateway.client.get("/stats")).json()["recorder"]["turned_away"] == 2
    assert gateway.select("SELECT * FROM api_calls") == []


async def test_what_is_queued_at_the_end_is_written(upstream: Upstream, folder: Path) -> None:
    app = create_app(load(None, {"providers": {"lab": lab(upstream.url)}}, {}))
    async with alive(app) as client:
        for _ in range(5):
            await client.post("/v1/chat/completions", json=CHAT)
    with sqlite3.connect(folder / "data" / "tollkeeper.db") as connection:
        assert connection.execute("SELECT count(*) FROM api_calls").fetchone() == (5,)
    connection.close()


async def test_nothing_runs_on_after_the_end(upstream: Upstream, folder: Path) -> None:
    upstream.script = json_answer({"choices": []})
    before = asyncio.all_tasks()
    app = create_app(load(None, {"providers": {"lab": lab(upstream.url)}}, {}))
    async with alive(app) as client:
        await client.post("/v1/chat/completions", json=CHAT)
    await asyncio.sleep(0)
    mine = {t for t in asyncio.all_tasks() - before if "upstream" not in repr(t.get_coro())}
    assert not mine


async def test_old_rows_go_again_and_again_and_a_locked_database_is_for_later(
    upstream: Upstream, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    days: list[int] = []
    enough = asyncio.Event()

    async def run(store: object, keep: int, archive: Archive | None, content: int) -> int:
        days.append(keep)
        assert archive is not None
        assert archive.folder == Path("kept")
        if len(days) == 2:
            raise StoreError("locked")
        if len(days) >= 3:
            enough.set()
        return 0

    monkeypatch.setattr(loops.retention, "run", run)
    monkeypatch.setattr(loops, "RETENTION_SECONDS", 0.01)
    telemetry = {"retention_days": 7, "archive": "kept"}
    await start({"providers": {"lab": lab(upstream.url)}, "telemetry": telemetry})
    await asyncio.wait_for(enough.wait(), 20)
    assert set(days) == {7}


# What it goes on with.


async def test_what_was_learnt_outlives_the_process(upstream: Upstream, folder: Path) -> None:
    upstream.script = error(429, "slow down", **{"retry-after": "600"})
    settings = load(None, {"providers": {"lab": lab(upstream.url, "sk-1", "sk-2")}}, {})
    app = create_app(settings)
    async with alive(app) as client:
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 429
        await client.post("/admin/providers/lab/keys/k2/disable")
        before = (await client.get("/stats/keys")).json()["data"]
    asked = len(upstream.calls)
    async with alive(create_app(settings)) as client:
        after = (await client.get("/stats/keys")).json()["data"]
        answer = await client.post("/v1/chat/completions", json=CHAT)
    assert [key["state"] for key in after] == ["cooling", "disabled"]
    assert [key["state"] for key in before] == ["cooling", "disabled"]
    assert abs(moment(after[0]["until"]) - moment(before[0]["until"])) < 1000
    assert (answer.status_code, len(upstream.calls)) == (429, asked)
    assert 500 < int(answer.headers["retry-after"]) <= 600


async def test_what_was_learnt_is_taken_up_once_the_database_can_be_read(
    upstream: Upstream, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "AGAIN_SECONDS", 0.01)
    upstream.script = error(429, "slow down", **{"retry-after": "600"})
    settings = load(None, {"providers": {"lab": lab(upstream.url)}}, {})
    async with alive(create_app(settings)) as client:
        await client.post("/v1/chat/completions", json=CHAT)
    restored, tries = module.restore, 0

    async def locked(*words: Any) -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise StoreError("locked")
        await restored(*words)

    monkeypatch.setattr(module, "restore", locked)
    async with alive(create_app(settings)) as client:
        states = []
        while "cooling" not in states and len(states) < 500:
            states.append((await client.get("/stats/keys")).json()["data"][0]["state"])
            await asyncio.sleep(0.01)
    assert (states[-1], tries) == ("cooling", 3)


async def test_counts_go_on_after_a_restart_and_are_told(upstream: Upstream, folder: Path) -> None:
    provider = lab(upstream.url, limits={"models": {"*": {"rpd": 2}}})
    settings = load(None, {"providers": {"lab": provider}, "routing": {"max_wait": 0}}, {})
    async with alive(create_app(settings)) as client:
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
    async with alive(create_app(settings)) as client:
        statuses = [
            (await client.post("/v1/chat/completions", json=CHAT)).status_code for _ in range(2)
        ]
        (key,) = (await client.get("/stats/keys")).json()["data"]
    assert statuses == [200, 429]
    (limit,) = [each for each in key["limits"] if each["source"] == "config"]
    assert (limit["used"], limit["remaining"], limit["model"]) == (2, 0, "json")


# What a reload changes.


class Source:
    """Where the settings are read from, again and again."""

    def __init__(self, url: str, folder: Path) -> None:
        self.folder = folder
        self.sections: dict[str, Any] = {"providers": {"lab": lab(url)}}
        self.mistake: str | None = None

    def __call__(self) -> Settings:
        if self.mistake is not None:
            raise ConfigError([self.mistake])
        file = self.folder / "t.yaml"
        file.write_text("{}")
        return load(file, self.sections, {})


async def test_a_reload_is_followed_from_the_next_request_on(
    upstream: Upstream, folder: Path
) -> None:
    source = Source(upstream.url, folder)
    redact = Redactor([])
    app = create_app(source(), reread=source, redact=redact)
    async with alive(app) as client:
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        source.sections = {
            "providers": {"lab": lab(upstream.url, "sk-1", "sk-canary-2")},
            "models": {"fast": {"targets": ["lab/json"]}},
        }
        answer = await client.post("/admin/reload")
        assert answer.json() == {"reloaded": True, "restart_needed": [], "warnings": []}
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        fast = {**CHAT, "model": "fast"}
        assert (await client.post("/v1/chat/completions", json=fast)).status_code == 200
        listed = (await client.get("/v1/models")).json()["data"]
        assert listed[0]["id"] == "fast"
        keys = (await client.get("/stats/keys")).json()["data"]
        assert [key["name"] for key in keys] == ["k1", "k2"]
        assert app.state.providers == [("lab", 2)]
        assert redact("the key sk-canary-2 is bad") == "the key [redacted] is bad"


async def test_a_reload_that_does_not_hold_changes_nothing(
    upstream: Upstream, folder: Path
) -> None:
    source = Source(upstream.url, folder)
    app = create_app(source(), reread=source)
    async with alive(app) as client:
        source.mistake = "t.yaml: server.port: must be a number"
        answer = await client.post("/admin/reload")
        assert answer.status_code == 422
        assert answer.json()["error"]["message"] == source.mistake
        with pytest.raises(ConfigError):
            app.state.reload()
        source.mistake, source.sections = None, {"providers": {"demo": None}}
        answer = await client.post("/admin/reload")
        assert "restart" in answer.json()["error"]["message"]
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def test_what_is_read_at_the_start_alone_is_told_to_need_a_restart(
    upstream: Upstream, folder: Path
) -> None:
    source = Source(upstream.url, folder)
    app = create_app(source(), reread=source)
    async with alive(app):
        source.sections = {
            **source.sections,
            "server": {"max_body": 10},
            "state": {"url": "redis://:canary@127.0.0.1:1"},
            "routing": {"max_wait": 0},
        }
        for _ in range(2):
            told = app.state.reload()
            assert told["restart_needed"] == ["server", "state"]
            assert "canary" not in str(told)


async def test_a_reload_without_a_source_reads_the_same_again(
    upstream: Upstream, folder: Path
) -> None:
    app = create_app(load(None, {"providers": {"lab": lab(upstream.url)}}, {}))
    async with alive(app) as client:
        assert app.state.reload()["reloaded"] is True
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
