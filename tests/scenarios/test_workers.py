"""Several processes on one socket: they are one gateway, whoever of them is asked."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import pytest_asyncio
import yaml

from tests.gateway import PATIENT, lab, migrated
from tests.upstream import Upstream, completion, error, stream, upstream_server, words

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).parents[2]
WORKERS = 3
CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Workers:
    """A supervisor and its workers. ``each`` has a client of every worker, by its process id."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        url: str,
        folder: Path,
        number: int,
        stack: AsyncExitStack,
    ) -> None:
        self.process = process
        self.number = number
        self.url = url
        self.folder = folder
        self._stack = stack

    @property
    def pids(self) -> set[int]:
        children = psutil.Process(self.process.pid).children()
        return {child.pid for child in children if "proxy.worker" in child.cmdline()}

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    async def client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=1)
        client = httpx.AsyncClient(base_url=self.url, limits=limits, timeout=20)
        return await self._stack.enter_async_context(client)

    async def each(self) -> dict[int, httpx.AsyncClient]:
        found: dict[int, httpx.AsyncClient] = {}
        for _ in range(200):
            client = await self.client()
            answer = await client.get("/healthz")
            place = answer.extensions["network_stream"].get_extra_info("client_addr")
            found.setdefault(self._owner(place), client)
            if len(found) == self.number:
                return found
        raise AssertionError(f"only {len(found)} of the workers accept")

    def _owner(self, place: tuple[str, int]) -> int:
        for pid in self.pids:
            for connection in psutil.Process(pid).net_connections("tcp"):
                if connection.raddr == place:
                    return pid
        raise AssertionError("nobody has accepted that")

    def elected(self, pids: Collection[int]) -> int:
        """Who holds the lock, where the system tells; else any of them."""
        inode = (self.folder / "calls.db.state" / "elected").stat().st_ino
        locks = Path("/proc/locks")
        for line in locks.read_text().splitlines() if locks.exists() else []:
            words = line.split()
            if "FLOCK" in words and words[5].endswith(f":{inode}") and int(words[4]) in pids:
                return int(words[4])
        return next(iter(pids))

    def select(self, sql: str) -> list[dict[str, Any]]:
        connection = sqlite3.connect(f"file:{self.folder}/calls.db?mode=ro", uri=True)
        connection.row_factory = sqlite3.Row
        try:
            return [dict(row) for row in connection.execute(sql)]
        finally:
            connection.close()


@asynccontextmanager
async def workers(
    folder: Path, number: int, providers: dict[str, Any], **more: Any
) -> AsyncIterator[Workers]:
    if not (folder / "calls.db").exists():
        shutil.copy(await migrated(), folder / "calls.db")
    config = {
        "server": {"port": 0, "workers": number, "log_format": "json"},
        "providers": providers,
        "telemetry": {"database_url": f"sqlite+aiosqlite:///{folder}/calls.db"},
        "routing": PATIENT,
        **more,
    }
    (folder / "t.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(config))))
    with (folder / "log").open("w") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "proxy", "--config", "t.yaml"),
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            env={"PYTHONPATH": str(ROOT)},
            cwd=folder,
        )
    pids: set[int] = set()
    try:
        assert process.stdout is not None
        first = await asyncio.wait_for(process.stdout.readline(), 40)
        assert first, (folder / "log").read_text()
        async with AsyncExitStack() as stack:
            gateway = Workers(process, first.decode().split()[-1], folder, number, stack)
            pids = gateway.pids
            yield gateway
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.communicate(), 20)
        assert not any(map(alive, pids))


PROVIDERS = ("load", "refused", "limited", "tokens", "ordered", "shown", "again")
"""One for each test: they share a gateway, and nothing else."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[tuple[Workers, Upstream]]:
    async with upstream_server() as upstream:
        providers = {name: lab(upstream.url, f"sk-{name}-canary") for name in PROVIDERS}
        providers["limited"]["limits"] = {"groups": {"k1": {"rpm": 10, "concurrency": 6}}}
        providers["tokens"]["limits"] = {"groups": {"k1": {"tpm": 100}}}
        providers["again"]["limits"] = {"groups": {"k1": {"rpm": 5}}}
        async with workers(tmp_path_factory.mktemp("workers"), WORKERS, providers) as gateway:
            yield gateway, upstream


@pytest.fixture
def all_of(whole: tuple[Workers, Upstream]) -> tuple[Workers, Upstream]:
    whole[1].reset()
    return whole


async def soon(condition: Callable[[], Awaitable[bool]], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - other processes bring it about
            await asyncio.sleep(0.02)


async def ask(client: httpx.AsyncClient, model: str, **more: Any) -> httpx.Response:
    return await client.post("/v1/chat/completions", json={"model": model, **(CHAT | more)})


async def key(client: httpx.AsyncClient, provider: str) -> dict[str, Any]:
    got = await client.get("/stats/keys", params={"provider": provider})
    [found] = got.json()["data"]
    return dict(found)


async def test_every_request_has_its_one_row_whoever_served_it(
    all_of: tuple[Workers, Upstream],
) -> None:
    gateway, upstream = all_of
    clients = (await gateway.each()).values()

    async def some(client: httpx.AsyncClient) -> list[str]:
        answers = [await ask(client, "load/m") for _ in range(70)]
        assert {got.status_code for got in answers} == {200}
        return [got.headers["x-request-id"] for got in answers]

    asked = [id for ids in await asyncio.gather(*map(some, clients)) for id in ids]
    sql = "SELECT request_id FROM api_calls WHERE provider = 'load'"
    await soon(lambda: _true(len(gateway.select(sql)) >= len(asked)))
    assert sorted(row["request_id"] for row in gateway.select(sql)) == sorted(asked)
    assert len(upstream.calls) == len(asked) == 70 * WORKERS
    for client in clients:

        async def all_recorded(client: httpx.AsyncClient = client) -> bool:
            recorder = (await client.get("/stats")).json()["recorder"]
            return (recorder["recorded"], recorder["queued"]) == (len(asked), 0)

        await soon(all_recorded)
        recent = (await client.get("/stats/recent?provider=load&limit=1000")).json()["data"]
        assert sorted(row["request_id"] for row in recent) == sorted(asked)
        ended = [row["finished_at"] for row in recent]
        assert ended == sorted(ended, reverse=True)
    assert "locked" not in gateway.log


async def _true(value: bool) -> bool:
    return value


async def test_what_one_was_refused_the_others_do_not_ask(
    all_of: tuple[Workers, Upstream],
) -> None:
    gateway, upstream = all_of
    first, *others = (await gateway.each()).values()
    upstream.script = error(429, "slow", retry_after="60")
    await ask(first, "refused/m")
    await asyncio.sleep(1)  # any of them shows what any of them knows, so that tells nothing
    for client in others:
        got = await ask(client, "refused/m")
        assert got.status_code == 429
        assert 55 <= int(got.headers["retry-after"]) <= 61
    assert len(upstream.calls) == 1


async def test_any_of_them_shows_the_keys_of_all(all_of: tuple[Workers, Upstream]) -> None:
    gateway, upstream = all_of
    clients = list((await gateway.each()).values())
    upstream.by_model["busy"] = stream(words("a")[:2], ends="hang")
    upstream.by_model["m"] = error(429, "slow", retry_after="60")
    async with AsyncExitStack() as stack:
        for _ in clients:
            other = await gateway.client()
            body = {"model": "shown/busy", "stream": True, **CHAT}
            busy = other.stream("POST", "/v1/chat/completions", json=body)
            answer = await stack.enter_async_context(busy)
            await anext(answer.aiter_bytes())
        await ask(clients[0], "shown/m")
        for client in clients:
            found = await key(client, "shown")
            assert (found["state"], found["in_flight"]) == ("cooling", WORKERS)
            assert [model["model"] for model in found["models"]] == ["m"]


async def test_a_limit_by_the_minute_holds_for_all_of_them_together(
    all_of: tuple[Workers, Upstream],
) -> None:
    gateway, upstream = all_of
    clients = list((await gateway.each()).values())
    answers = await asyncio.gather(*[ask(client, "limited/m") for client in clients * 5])
    assert Counter(got.status_code for got in answers) == {200: 10, 429: 5}
    assert len(upstream.calls) == 10
    for client in clients:
        limits = (await key(client, "limited"))["limits"]
        figures = {each["limit_type"]: (each["used"], each["limit"]) for each in limits}
        assert figures == {"requests_minute": (10, 10), "concurrent": (0, 6)}
    sql = (
        "SELECT limit_limit, remaining FROM rate_limits"
        " WHERE limit_type = 'requests_minute' AND provider = 'limited'"
    )
    expected = [{"limit_limit": 10, "remaining": 0}]
    await soon(lambda: _true(gateway.select(sql) == expected))


async def test_tokens_are_counted_for_all_as_they_were_used(
    all_of: tuple[Workers, Upstream],
) -> None:
    gateway, upstream = all_of
    first, other, _ = (await gateway.each()).values()
    upstream.script = completion(prompt=60, output=30)
    assert (await ask(first, "tokens/m")).status_code == 200

    async def settled() -> bool:
        [limit] = (await key(other, "tokens"))["limits"]
        return bool(limit["used"] == 90)

    await soon(settled)
    longer = [{"role": "user", "content": "word " * 30}]
    assert (await ask(other, "tokens/m", messages=longer)).status_code == 429
    assert len(upstream.calls) == 1


async def test_an_order_to_one_reaches_all(all_of: tuple[Workers, Upstream]) -> None:
    gateway, _ = all_of
    clients = list((await gateway.each()).values())
    path = "/admin/providers/ordered/keys/k1"
    for what, status in (("disable", 502), ("enable", 200)) * 2:
        await clients[0].post(f"{path}/{what}")

        async def obeyed(status: int = status) -> bool:
            answers = [await ask(client, "ordered/m") for client in clients]
            return {got.status_code == 200 for got in answers} == {status == 200}

        await soon(obeyed)


async def test_a_reload_of_one_is_one_of_all(all_of: tuple[Workers, Upstream]) -> None:
    gateway, _ = all_of
    clients = list((await gateway.each()).values())
    file = gateway.folder / "t.yaml"
    config = yaml.safe_load(file.read_text())

    async def listed(name: str) -> bool:
        answers = [(await client.get("/v1/models")).json()["data"] for client in clients]
        return all(name in [model["id"] for model in models] for models in answers)

    file.write_text(yaml.safe_dump(config | {"models": {"one": {"targets": ["load/m"]}}}))
    assert (await clients[0].post("/admin/reload")).status_code == 200
    await soon(lambda: listed("one"))
    file.write_text(yaml.safe_dump(config | {"models": {"two": {"targets": ["load/m"]}}}))
    gateway.process.send_signal(signal.SIGHUP)
    await soon(lambda: listed("two"))
    file.write_text("what: is this")
    assert (await clients[0].post("/admin/reload")).status_code == 422
    gateway.process.send_signal(signal.SIGHUP)
    await soon(lambda: _true("stays as it was" in gateway.log))
    assert gateway.log.count("stays as it was") == 1
    assert await listed("two")


async def test_one_that_dies_is_replaced_and_the_others_serve_on(
    all_of: tuple[Workers, Upstream],
) -> None:
    """The new one knows what they know, and another does what the elected one did: publish counts,
    for one thing."""
    gateway, upstream = all_of
    before = await gateway.each()
    victim = gateway.elected(before)
    psutil.Process(victim).kill()
    for pid, client in before.items():
        if pid != victim:
            assert (await ask(client, "load/m")).status_code == 200
    await soon(lambda: _true(f"(process {victim}) was killed by SIGKILL" in gateway.log))
    await soon(lambda: _true(len(gateway.pids) == WORKERS))
    after = await gateway.each()
    [new] = set(after) - set(before)
    upstream.script = error(429, "slow", retry_after="60")
    assert (await ask(after[new], "limited/m")).status_code == 429
    assert (await ask(after[new], "refused/m")).status_code == 429
    assert len(upstream.calls) == WORKERS - 1
    upstream.script = completion()
    assert (await ask(after[new], "again/m")).status_code == 200
    sql = "SELECT remaining FROM rate_limits WHERE provider = 'again'"
    await soon(lambda: _true(gateway.select(sql) == [{"remaining": 4}]))


async def test_without_the_supervisor_no_worker_stays(all_of: tuple[Workers, Upstream]) -> None:
    """The last of those who share a gateway. No secret was told where others can read it."""
    gateway, _ = all_of
    pids = gateway.pids
    assert len(pids) == WORKERS
    for pid in pids:
        worker = psutil.Process(pid)
        assert "canary" not in " ".join([*worker.cmdline(), *worker.environ().values()])
    gateway.process.kill()
    await soon(lambda: _true(not any(map(alive, pids))))
    assert "canary" not in gateway.log


async def test_a_stop_under_load_loses_no_row_of_any_worker(tmp_path: Path) -> None:
    answered: list[str] = []
    enough = asyncio.Event()
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(upstream_server())
        providers = {"lab": lab(upstream.url)}
        gateway = await stack.enter_async_context(workers(tmp_path, 2, providers))
        upstream.script = stream([*words("a"), 0.002])

        async def one(client: httpx.AsyncClient) -> None:
            try:
                while True:
                    got = await ask(client, "lab/m", stream=True)
                    assert got.status_code == 200
                    answered.append(got.headers["x-request-id"])
                    if len(answered) == 150:
                        enough.set()
            except httpx.TransportError:
                pass  # it no longer listens

        clients = [*(await gateway.each()).values(), *[await gateway.client() for _ in range(9)]]
        async with asyncio.TaskGroup() as tasks:
            for client in clients:
                tasks.create_task(one(client))
            await asyncio.wait_for(enough.wait(), 20)
            gateway.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(gateway.process.wait(), 20) == 0
        rows = gateway.select("SELECT request_id, status FROM api_calls")
        said = [line for line in gateway.log.splitlines() if '"level":"error"' in line]
    assert {row["request_id"] for row in rows} >= set(answered)
    assert len(rows) == len(upstream.calls)
    assert {row["status"] for row in rows} == {"success"}
    assert not said
