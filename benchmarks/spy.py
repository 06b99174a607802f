"""Where the gateway's time goes: py-spy's raw stacks, added up by function."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

from process import tool

SECONDS = 8
RATE = 250  # samples a second


def profile(pid: int, load: list[str], folder: Path, core: int, top: int = 30) -> str:
    """Samples the process while ``load``, a command that outlasts SECONDS, keeps it busy."""
    spy = tool("py-spy")
    if not spy:
        raise SystemExit("py-spy is not installed")
    raw = folder / "stacks.txt"
    with subprocess.Popen(load, stdout=subprocess.DEVNULL) as busy:
        try:
            subprocess.run(
                ["taskset", "-c", str(core), spy, "record", "-p", str(pid), "-d", str(SECONDS),
                 "-r", str(RATE), "-f", "raw", "-F", "-o", str(raw)],
                check=True, capture_output=True, timeout=SECONDS + 60,
            )  # fmt: skip
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"py-spy failed: {error.stderr.decode()}") from None
        finally:
            busy.terminate()
    return summary(raw.read_text(), top)


def summary(raw: str, top: int) -> str:
    """Two rankings: time in a function itself (C code that it calls included), and under it."""
    own: Counter[str] = Counter()
    under: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        own[frames[-1]] += int(count)
        for frame in set(frames):
            under[frame] += int(count)
    samples = sum(own.values())
    lines = [f"{samples} samples of {SECONDS * RATE} in Python or in what it calls"]
    for title, ranking in (("itself", own), ("with all it calls", under)):
        lines += ["", title]
        lines += [f"{count / samples:7.1%}  {frame}" for frame, count in ranking.most_common(top)]
    return "\n".join(lines) + "\n"
