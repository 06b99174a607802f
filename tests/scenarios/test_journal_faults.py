"""A disk that is full costs no call, or lets none through that it could not keep: as configured."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from proxy.metering import journal as module
from tests.gateway import Gateway, lab, running
from tests.scenarios.test_store_faults import locked
from tests.upstream import Upstream, stream, words


class Simulated:
    """A disk that lets nothing be written to the journal while it is full."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = str(folder)
        self._write = os.write
        self._full = False
        monkeypatch.setattr(module.os, "write", self.write)

    def write(self, file: int, data: bytes) -> int:
        if self._full and os.readlink(f"/proc/self/fd/{file}").startswith(self._folder):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._write(file, data)

    def fill(self) -> None:
        self._full = True

    def free(self) -> None:
        self._full = False


class Small:
    """A file system of so many bytes at a folder."""

    def __init__(self, folder: Path, size: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder],
            check=True,
            capture_output=True,
        )
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self) -> None:
        with suppress(OSError), self._filler.open("ab", buffering=0) as file:
            for size in (4096, 1):
                while file.write(b"x" * size):
                    pass

    def free(self) -> None:
        self._filler.unlink()

    def unmount(self) -> None:
        subprocess.run(["umount", "-l", self.folder], check=True)


def mountable(folder: Path) -> Small | None:
    """None where this user may not mount."""
    with suppress(OSError, subprocess.CalledProcessError):
        return Small(folder, "256k")
    return None


@pytest.fixture(params=["simulated", "real"])
def disk(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Simulated | Small]:
    """The journal's."""
    folder = tmp_path / "calls.db.state" / "journal"
    if request.param == "simulated":
        yield Simulated(folder, monkeypatch)
        return
    small = mountable(folder)
    if small is None:
        pytest.skip("only who may mount has a disk to fill")
    yield small
    small.unmount()


def configuration(upstream: Upstream, **journal: Any) -> dict[str, Any]:
    return {"providers": {"lab": lab(upstream.url)}, "telemetry": {"journal": journal}}


async def recorder(gateway: Gateway) -> dict[str, Any]:
    found: dict[str, Any] = (await gateway.client.get("/stats")).json()["recorder"]
    return found


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await true():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_on_a_full_disk_calls_go_on_and_their_rows_come_when_there_is_room(
    upstream: Upstream, tmp_path: Path, disk: Simulated | Small, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path, configuration(upstream)) as gateway:
        await gateway.chat("lab/json")
        await gateway.rows(1)
        disk.fill()
        upstream.script = stream(words("a", "b"))
        async with locked(gateway.database):  # else they are written past the journal
            answers = [await gateway.chat("lab/json", stream=n % 2 == 0) for n in range(20)]
            assert {got.status_code for got in answers} == {200}

            async def told() -> bool:  # while they are tried to be written, they are elsewhere
                status = await recorder(gateway)
                journal = status["journal"]
                full = journal["state"] == "unwritable" and journal["unjournaled"] > 0
                return full and journal["unjournaled"] <= status["queued"] == 20

            await until(told)
        assert "cannot write the journal" in caplog.text
        disk.free()
        rows = await gateway.rows(21)
        assert [row["request_id"] for row in rows][1:] == [
            got.headers["x-request-id"] for got in answers
        ]
        status = await recorder(gateway)
        assert (status["dropped"], status["journal"]["state"]) == (0, "writable")
        assert "the journal can be written again" in caplog.text


async def test_strict_lets_no_call_through_that_could_not_be_kept(
    upstream: Upstream, tmp_path: Path, disk: Simulated | Small
) -> None:
    async with running(tmp_path, configuration(upstream, on_failure="strict")) as gateway:
        assert (await gateway.chat("lab/json")).status_code == 200
        disk.fill()
        served = len(upstream.calls)
        answers = []
        for _ in range(50):
            answers.append(await gateway.chat("lab/json", "x"))
            if answers[-1].status_code == 503:
                break
            served += 1
        answers += [await gateway.chat("lab/json") for _ in range(3)]
        assert len(upstream.calls) == served
        for got in answers[-4:]:
            assert got.status_code == 503
            assert got.headers["retry-after"] == "1"
            error = got.json()["error"]
            assert (error["code"], error["type"]) == ("journal_unwritable", "api_error")
        [key] = (await gateway.client.get("/stats/keys")).json()["data"]
        assert (key["state"], key["in_flight"]) == ("healthy", 0)
        disk.free()

        async def served_again() -> bool:
            return (await gateway.chat("lab/json")).status_code == 200

        await until(served_again)
        refused = await gateway.rows(
            4, "SELECT * FROM api_calls WHERE client_status = 503 AND is_final LIMIT 4"
        )
        assert {row["error_reason"] for row in refused} == {"internal"}
        ids = {got.headers["x-request-id"] for got in answers[-4:]}
        assert {row["request_id"] for row in refused} == ids


async def test_on_a_full_disk_with_journal_and_database_nothing_breaks(
    upstream: Upstream, tmp_path: Path
) -> None:
    folder = tmp_path / "small"
    try:
        disk = Small(folder, "3m")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only who may mount has a disk to fill")
    try:
        async with running(folder, configuration(upstream)) as gateway:
            await gateway.chat("lab/json")
            await gateway.rows(1)
            disk.fill()
            answers = [await gateway.chat("lab/json") for _ in range(30)]
            assert {got.status_code for got in answers} == {200}

            async def told() -> bool:
                status = await recorder(gateway)
                return bool(status["last_error"]) and status["journal"]["state"] == "unwritable"

            await until(told)
            disk.free()
            await gateway.rows(31)
            assert (await recorder(gateway))["dropped"] == 0
            assert gateway.select("PRAGMA integrity_check") == [{"integrity_check": "ok"}]
    finally:
        disk.unmount()
