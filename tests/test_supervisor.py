"""The supervisor with workers that only say what a test has them say; see
``scenarios/test_workers.py`` for real ones."""

from __future__ import annotations

import os
import signal
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from proxy import supervisor
from proxy.config import load
from proxy.errors import ConfigError
from proxy.schema import Settings
from proxy.supervisor import supervise

WORKER = """
import os, pathlib, signal, socket, sys, time
import msgspec

listener, shared = [socket.socket(fileno=int(word)) for word in sys.argv[1:]]
folder = pathlib.Path(__file__).parents[1]

def ready():
    message = msgspec.msgpack.encode({"type": "Ready", "providers": [["lab", 1]], "example": None})
    shared.sendall(len(message).to_bytes(4) + message)

def end_well(*_):
    os._exit(0)

signal.signal(signal.SIGTERM, end_well)
starts = folder / "starts"
with starts.open("a") as file:
    file.write(f"{os.getpid()}\\n")
count = len(starts.read_text().splitlines())
"""
SERVE = "ready()\ntime.sleep(60)\n"

Run = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def handlers() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handlers: None) -> Run:
    """Supervises two workers that do this; the exit status, and what was announced. The first
    announcement is followed by ``signals``."""
    (tmp_path / "proxy").mkdir()
    (tmp_path / "proxy" / "__init__.py").write_text("")
    monkeypatch.setattr(supervisor, "_PACKAGES", tmp_path)
    monkeypatch.setattr(supervisor, "BACKOFF", (0.0, 0.01))
    monkeypatch.chdir(tmp_path)

    def begin(
        does: str, *signals: signal.Signals, then: Callable[[], object] = lambda: None
    ) -> tuple[int, list[str]]:
        (tmp_path / "proxy" / "worker.py").write_text(WORKER + textwrap.dedent(does))
        settings, told = given(tmp_path), []

        def announce(text: str) -> None:
            told.append(text)
            then()
            for number in signals:
                os.kill(os.getpid(), number)

        return supervise(settings, announce, partial(load, tmp_path / "t.yaml", {}, {})), told

    return begin


def given(folder: Path, more: str = "") -> Settings:
    (folder / "t.yaml").write_text(
        "server: {port: 0, workers: 2}\n"
        f"providers: {{lab: {{type: openai, base_url: 'http://127.0.0.1:9/v1'}}}}\n{more}"
    )
    return load(folder / "t.yaml", {}, {})


def starts(folder: Path) -> int:
    return len((folder / "starts").read_text().splitlines())


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_one_banner_tells_of_all_and_a_stop_ends_all_well(
    run: Run, tmp_path: Path, stop: signal.Signals
) -> None:
    status, [banner] = run(SERVE, stop)
    assert status == 0
    assert "workers     2" in banner
    assert "lab (1 key)" in banner
    assert starts(tmp_path) == 2
    for pid in map(int, (tmp_path / "starts").read_text().split()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_where_the_first_cannot_be_started_it_gives_up(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, told = run("sys.exit(3)")
    assert (status, told, starts(tmp_path)) == (1, [], 1)
    [line] = capsys.readouterr().err.splitlines()
    assert "ended: 3" in line


def test_the_others_wait_for_the_first(run: Run, tmp_path: Path) -> None:
    """It has the database to make."""
    does = """
        mark = folder / "made"
        if count == 1:
            time.sleep(0.3)
            mark.touch()
        elif not mark.exists():
            sys.exit(1)
        ready()
        time.sleep(60)
    """
    assert run(does, signal.SIGTERM)[0] == 0
    assert starts(tmp_path) == 2


def test_who_dies_is_replaced_as_often_as_it_takes(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first serves, the second dies at its start and so do the next two."""
    does = """
        if count == 1:
            ready()
            time.sleep(60)
        if count < 5:
            while shared.recv(100) == b"":
                pass
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGKILL)
        ready()
        time.sleep(60)
    """
    status, [_] = run(does, signal.SIGTERM)
    assert status == 0
    assert starts(tmp_path) == 5
    assert capsys.readouterr().err.count("was killed by SIGKILL") == 3


def test_a_second_stop_is_one_at_once(run: Run) -> None:
    """The first is heard and takes for ever; uvicorn takes SIGINT for the second."""
    does = """
        def wait(*_):
            pass
        signal.signal(signal.SIGTERM, wait)
        signal.signal(signal.SIGINT, end_well)
        ready()
        while True:
            time.sleep(60)
    """
    status, _ = run(does, signal.SIGTERM, signal.SIGTERM)
    assert status == 0


def test_one_that_ends_badly_is_told_by_the_status(run: Run) -> None:
    does = """
        def fail(*_):
            os._exit(count - 1)
        signal.signal(signal.SIGTERM, fail)
        ready()
        time.sleep(60)
    """
    assert run(does, signal.SIGTERM)[0] == 1


def test_a_hangup_is_for_all_where_the_new_configuration_holds(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A worker that hears of it says so when it ends."""
    does = """
        def end(*_):
            heard = shared.recv(1 << 20)
            os._exit(9 if b"Reload" in heard else 0)
        signal.signal(signal.SIGTERM, end)
        ready()
        time.sleep(60)
    """
    assert run(does, signal.SIGHUP, signal.SIGTERM)[0] == 1

    def spoil() -> None:
        (tmp_path / "t.yaml").write_text("what: is this")

    assert run(does, signal.SIGHUP, signal.SIGTERM, then=spoil)[0] == 0
    assert "stays as it was: " in capsys.readouterr().err


def test_windows_has_one_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = given(tmp_path)
    monkeypatch.setattr("proxy.supervisor.sys.platform", "win32")
    with pytest.raises(ConfigError, match="accepted: 1"):
        supervise(settings, print, lambda: settings)


def test_who_starts_after_a_reload_starts_with_the_new_settings(tmp_path: Path) -> None:
    settings = given(tmp_path)
    again = given(tmp_path, "models: {fast: {targets: [lab/m]}}\nauth: {master_key: other}\n")
    subject = supervisor._Supervisor(settings, None, None, lambda: again, lambda _: None)  # type: ignore[arg-type]
    subject._read_again()
    assert "fast" in subject._settings.models
    assert subject._settings.auth.master_key is None  # as all others have it
    subject._hub.close()
