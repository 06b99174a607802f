"""How a worker gets its orders; what it does with them is in ``scenarios/test_workers.py``."""

from __future__ import annotations

import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from proxy.config import load
from proxy.schema import Settings
from proxy.worker import Orders, _orders

ROOT = Path(__file__).parents[1]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "t.yaml").write_text(
        "providers: {groq: {keys: [{name: a, value: sk-canary}]}}\nserver: {port: 1}\n"
    )
    return load(tmp_path / "t.yaml", {"server": {"workers": 2}}, {})


def test_orders_arrive_as_they_were_given_and_what_follows_stays(
    settings: Settings, tmp_path: Path
) -> None:
    reread = partial(load, tmp_path / "t.yaml", {"server": {"workers": 3}}, {})
    given = Orders("/somewhere", settings, "tk-canary", reread)
    mine, theirs = socket.socketpair()
    with mine, theirs:
        mine.sendall(given.frame() + b"next")
        found = _orders(theirs)
        assert theirs.recv(100) == b"next"
    assert found is not None
    assert found[:3] == ("/somewhere", settings, "tk-canary")
    assert found.settings.file == settings.file
    assert found.settings.providers["groq"].keys[0].value.get_secret_value() == "sk-canary"
    assert found.reread().server.workers == 3


@pytest.mark.parametrize("part", [0, 3, 4, 50])
def test_without_a_supervisor_there_are_none(settings: Settings, part: int) -> None:
    mine, theirs = socket.socketpair()
    with theirs:
        with mine:
            mine.sendall(Orders("/", settings, None, partial(load, None, {}, {})).frame()[:part])
        assert _orders(theirs) is None


def test_a_worker_whose_supervisor_has_ended_ends_well() -> None:
    mine, theirs = socket.socketpair()
    with socket.socket() as listener, theirs:
        mine.close()
        numbers = (listener.fileno(), theirs.fileno())
        ended = subprocess.run(
            [sys.executable, "-m", "proxy.worker", *map(str, numbers)],
            pass_fds=numbers,
            cwd=ROOT,
            timeout=30,
            check=False,
        )
    assert ended.returncode == 0
