"""One of several real processes wins, and another once it has ended, however that was."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from proxy.election import Election

ROOT = Path(__file__).parents[1]
STANDS = """
import sys
from pathlib import Path
from proxy.election import Election
election = Election(Path(sys.argv[1]))
print(election.won(), flush=True)
sys.stdin.read()
"""


@contextmanager
def standing(path: Path) -> Iterator[tuple[subprocess.Popen[str], bool]]:
    """A process that stands for election, and whether it won."""
    words = [sys.executable, "-c", STANDS, str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline() == "True\n"
        finally:
            process.kill()


def test_one_wins_and_stays_elected(tmp_path: Path) -> None:
    path = tmp_path / "not" / "yet" / "there"
    first, second = Election(path), Election(path)
    assert first.won()
    assert not second.won()
    assert first.won()
    first.close()
    assert second.won()
    assert not first.won()
    second.close()
    assert first.won()
    first.close()


def test_of_two_processes_one_wins_until_it_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "elected"
    mine = Election(path)
    with standing(path) as (process, won):
        assert won
        assert not mine.won()
        process.kill()
        process.wait()
        assert mine.won()
    with standing(path) as (_, won):
        assert not won
    mine.close()


def test_a_child_of_the_elected_does_not_keep_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "elected"
    first, second = Election(path), Election(path)
    assert first.won()
    words = [sys.executable, "-c", "input()"]
    with subprocess.Popen(words, close_fds=False, stdin=subprocess.PIPE) as child:
        first.close()
        for _ in range(100):  # it has the file until it is the other program
            if second.won():
                break
            time.sleep(0.05)
        assert second.won()
        child.kill()
    second.close()


def test_a_place_where_nothing_can_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        Election(tmp_path / "file" / "elected").won()
