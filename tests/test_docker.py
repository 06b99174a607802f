"""The image without an engine: the steps of the Dockerfile, run in a plain folder.

Paths are moved below a temporary root, which both stages share; commands that need the system's
own users are replaced by ones that do nothing. The rest is run as it stands.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
NOTHING_TO_DO = ("useradd", "chown")


class Step(NamedTuple):
    stage: int
    word: str
    rest: str


def steps() -> list[Step]:
    """The Dockerfile's instructions in order."""
    text = (ROOT / "Dockerfile").read_text()
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    found, stage = [], -1
    for line in filter(None, map(str.strip, text.splitlines())):
        word, _, rest = line.partition(" ")
        stage += word == "FROM"
        found.append(Step(stage, word, rest.strip()))
    return found


def last(word: str) -> str:
    return [step.rest for step in steps() if step.word == word][-1]


def test_the_image_is_slim_and_runs_as_nobody_in_particular() -> None:
    images = [step.rest.split()[0] for step in steps() if step.word == "FROM"]
    assert len(images) == 2
    assert all(re.fullmatch(r"python:3\.\d+-slim", image) for image in images)
    assert last("USER") == "tollkeeper"
    assert last("VOLUME") == "/data"
    assert last("EXPOSE") == "8000"


def test_the_gateway_is_the_first_process_so_that_signals_reach_it() -> None:
    assert json.loads(last("ENTRYPOINT")) == ["tollkeeper"]
    assert json.loads(last("CMD")) == ["serve"]


def test_only_what_the_image_is_made_of_is_sent_to_the_engine() -> None:
    sent = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    copied = {
        name
        for step in steps()
        if step.word == "COPY" and not step.rest.startswith("--from")
        for name in step.rest.split()[:-1]
    }
    assert copied == sent
    assert all((ROOT / name).exists() for name in copied)


class Image:
    """A folder in which the steps were run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.env: dict[str, str] = {}

    def moved(self, text: str) -> str:
        return re.sub(r"(?<![\w.$-])/(opt|data|src|dist)\b", rf"{self.root}/\1", text)

    def build(self) -> None:
        tools = self.root / "tools"
        tools.mkdir(parents=True)
        (tools / "python").symlink_to(sys.executable)
        for name in NOTHING_TO_DO:
            (tools / name).write_text("#!/bin/sh\n")
            (tools / name).chmod(0o755)
        outside = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
        where = self.root
        for step in steps():
            if step.word == "WORKDIR":
                where = Path(self.moved(step.rest))
                where.mkdir(parents=True, exist_ok=True)
            elif step.word == "COPY" and not step.rest.startswith("--from"):
                *names, target = step.rest.split()
                for name in names:
                    self._copy(ROOT / name, where / target)
            elif step.word == "COPY":
                assert Path(self.moved(step.rest.split()[-1])).is_dir()
            elif step.word == "RUN":
                command = re.sub(r"--mount=\S+", "", self.moved(step.rest))
                subprocess.run(["sh", "-ec", command], cwd=where, env=outside, check=True)
            elif step.word == "ENV":
                for pair in shlex.split(self.moved(step.rest)):
                    name, _, value = pair.partition("=")
                    self.env[name] = value.replace("$PATH", os.environ["PATH"])

    def _copy(self, source: Path, target: Path) -> None:
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        elif target.is_dir():
            shutil.copy(source, target)
        else:
            shutil.copy(source, target / source.name)

    @contextmanager
    def started(self) -> Iterator[tuple[str, list[str]]]:
        """The entrypoint on a free port: its address, and the lines that it prints till the end."""
        command = json.loads(last("ENTRYPOINT")) + json.loads(last("CMD"))
        path = shutil.which(command[0], path=self.env["PATH"])
        assert path is not None
        assert path.startswith(str(self.root))
        with subprocess.Popen(
            [path, *command[1:]],
            env={**self.env, "TOLLKEEPER_SERVER__PORT": "0"},
            cwd=self.root / "data",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout is not None
            lines: list[str] = []
            for line in process.stdout:
                lines.append(line)
                if line.startswith("Tollkeeper "):
                    break
            try:
                yield lines[-1].split()[-1].removeprefix("http://"), lines
            finally:
                process.terminate()
                lines += process.stdout
            assert process.wait(20) == 0, lines

    def healthy(self, address: str) -> bool:
        """What HEALTHCHECK says of the gateway at an address."""
        [check] = [step.rest for step in steps() if step.word == "HEALTHCHECK"]
        command = json.loads(check.partition("CMD ")[2])
        env = {**self.env, "TOLLKEEPER_SERVER__PORT": address.rpartition(":")[2]}
        path = shutil.which(command[0], path=env["PATH"])
        assert path is not None
        run = subprocess.run([path, *command[1:]], env=env, capture_output=True, check=False)
        return run.returncode == 0


def status(address: str, path: str, key: str | None = None) -> int:
    client = http.client.HTTPConnection(address, timeout=10)
    client.request("GET", path, headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        return client.getresponse().status
    finally:
        client.close()


@pytest.mark.timeout(240)
def test_the_image_serves_and_guards_itself_with_a_key_of_its_own(tmp_path: Path) -> None:
    image = Image(tmp_path / "image")
    image.build()
    with image.started() as (address, first):
        key_file = image.root / "data" / "master.key"
        key = key_file.read_text().strip()
        assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
        assert image.healthy(address)
        assert status(address, "/readyz") == 200
        assert status(address, "/v1/models") == 401
        assert status(address, "/v1/models", key) == 200
    assert not image.healthy(address)
    assert "".join(first).count(key) == 1
    assert (image.root / "data" / "tollkeeper.db").exists()
    with image.started() as (address, second):
        assert status(address, "/v1/models", key) == 200
    assert key not in "".join(second)
