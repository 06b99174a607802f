"""What was measured, as a table for the terminal and for the README."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lab import Lab
from measure import Row
from process import tool

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
PACKAGES = ("uvicorn", "uvloop", "httptools", "msgspec", "starlette", "sqlalchemy", "aiosqlite")
HEADER = (
    "workload", "server", "requests/s", "CPU/request", "CPU/chunk", "x nginx", "at most",
    "p50 ms", "p99 ms", "TTFT p50 ms", "transit p50 us", "transit p99 us", "failed",
)  # fmt: skip


@dataclass
class Report:
    """All that one run found out. ``notes`` are said under the table, one line each."""

    facts: list[str]
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def cells(self) -> list[tuple[str, ...]]:
        floors = {row.workload.name: row for row in self.rows if row.server == "nginx"}
        return [_cells(row, floors.get(row.workload.name)) for row in self.rows]

    def terminal(self) -> str:
        table = [HEADER, *self.cells()]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in table
        ]
        return "\n".join([*self.facts, "", *lines, "", *self.notes]) + "\n"

    def markdown(self) -> str:
        rule = ["---", "---", *("--:" for _ in HEADER[2:])]
        table = ["| " + " | ".join(line) + " |" for line in (HEADER, rule, *self.cells())]
        facts, notes = ([f"- {line}" for line in lines] for lines in (self.facts, self.notes))
        return "\n".join([*facts, "", *table, "", *notes])

    def write(self, readme: Path) -> None:
        """Puts the table between the two markers of ``readme``."""
        text = readme.read_text()
        before, rest = text.split(BEGIN, 1)
        after = rest.split(END, 1)[1]
        readme.write_text(f"{before}{BEGIN}\n{self.markdown()}\n{END}{after}")

    def raw(self) -> str:
        return json.dumps(asdict(self), indent=1)


def _number(value: float | None, digits: int = 1) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.{digits}f}"


def _ms(us: float | None) -> str:
    return _number(None if us is None else us / 1000, 2)


def _cells(row: Row, floor: Row | None) -> tuple[str, ...]:
    work = row.workload
    own = row.cpu_us(work.unit)
    base = floor.cpu_us(work.unit) if floor and floor is not row else None
    ratio = own / base if own and base else None
    return (
        work.title, row.server, _number(row.rate, 0),
        _number(row.cpu_us("request")),
        _number(row.cpu_us("chunk"), 2) if work.chunks else "-",
        _number(ratio),
        _number(work.most, 0) if row.server in ("gateway", "client") else "-",
        _ms(row.mean("latency_p50")), _ms(row.mean("latency_p99")), _ms(row.mean("ttft_p50")),
        _number(row.mean("transit_p50"), 0), _number(row.mean("transit_p99"), 0), str(row.failed),
    )  # fmt: skip


def facts(lab: Lab) -> list[str]:
    """The machine and the versions, without anything that names the machine or its owner."""
    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    kernel = re.match(r"[\d.]+", platform.release())
    cores = len(_lines("/proc/cpuinfo", "processor"))
    lines = [
        f"CPU: {cpu[1] if cpu else platform.machine()}, {cores} cores; "
        f"Linux {kernel[0] if kernel else 'of unknown version'}",
        f"Gateway: {_versions()}",
    ]
    if lab.nginx:
        said = subprocess.run([lab.nginx, "-v"], capture_output=True, text=True, check=False)
        version = re.search(r"nginx/([\d.]+)", said.stderr + said.stdout)
        lines.append(f"Floor: nginx {version[1] if version else 'of unknown version'}, 1 process")
    if lab.front == lab.back:
        lines.append("One core only: everything shares it, and the figures say little")
    return lines


def _lines(path: str, start: str) -> list[str]:
    return [line for line in Path(path).read_text().splitlines() if line.startswith(start)]


def _versions() -> str:
    """Of the Python that runs the gateway, which need not be ours."""
    program = (
        "import json, platform, sqlite3, sys\n"
        "from importlib import metadata\n"
        "found = {'Python': platform.python_version()}\n"
        "for name in sys.argv[1:]:\n"
        "    try: found[name] = metadata.version(name)\n"
        "    except metadata.PackageNotFoundError: pass\n"
        "found['SQLite'] = sqlite3.sqlite_version\n"
        "print(json.dumps(found))\n"
    )
    python: Sequence[str] = [tool("python") or sys.executable, "-c", program, *PACKAGES]
    found: dict[str, Any] = json.loads(subprocess.check_output(python, text=True))
    return ", ".join(f"{name} {version}" for name, version in found.items())
