"""A process that the rig started: pinned to a core, measured through /proc, ended by its id."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TICK = os.sysconf("SC_CLK_TCK")


def cores() -> tuple[int, int]:
    """The core for what is measured and the one for all else (the same if there is no other)."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


def tool(name: str) -> str | None:
    """A program in the project's environment, beside this Python, or on the PATH."""
    for folder in (Path(sys.executable).parent, ROOT / ".venv" / "bin"):
        if os.access(folder / name, os.X_OK):
            return str(folder / name)
    return shutil.which(name)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Process:
    """One started program with its descendants. CPU is in seconds, memory in MB (2**20 bytes)."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        core: int,
        log: Path,
        cwd: Path = ROOT,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.log = log
        pinned = ["taskset", "-c", str(core), *command]  # taskset becomes the program: one id
        with log.open("wb") as sink:
            self._popen = subprocess.Popen(
                pinned, stdout=sink, stderr=subprocess.STDOUT, cwd=cwd, env=env,
                start_new_session=True,
            )  # fmt: skip
        self.pid = self._popen.pid

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def tree(self) -> list[int]:
        pids = [self.pid]
        for pid in pids:
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    pids += map(int, (task / "children").read_text().split())
        return pids

    def cpu(self) -> float:
        """What the tree has used so far, in user and kernel mode, with children that have ended."""
        total = 0.0
        for pid in self.tree():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                ended = (int(fields[13]) + int(fields[14])) / TICK
                # The process's own share from its CPU clock: utime + stime, but not cut to 10 ms.
                total += time.clock_gettime((~pid << 3) | 2) + ended
        return total

    def rss(self) -> float:
        total = 0
        for pid in self.tree():
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith("VmRSS:"):
                        total += int(line.split()[1])
        return total / 1024

    def wait_for_port(self, port: int, seconds: float = 10) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not self.running:
                break
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            time.sleep(0.02)
        raise SystemExit(f"{self.log.stem} did not start:\n{self.tail()}")

    def tail(self, size: int = 2000) -> str:
        return self.log.read_bytes()[-size:].decode(errors="replace")

    def end(self, patience: float = 15) -> None:
        """SIGTERM to the program, then SIGKILL to the session that it was started with."""
        if self.running:
            self._popen.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(patience)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait(5)


@contextlib.contextmanager
def started(process: Process) -> Iterator[Process]:
    try:
        yield process
    finally:
        process.end()
