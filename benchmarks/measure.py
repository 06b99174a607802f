"""Workloads, and what a server does with one: rounds of load, CPU and answers summed up."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import Door
from process import Process

SETTLE_SECONDS = 0.4
"""After each round, so that what a server still does for it (a batch of rows) is counted to it."""


@dataclass(frozen=True)
class Workload:
    """``most`` is the highest allowed ratio of the gateway's CPU to nginx's, where one is set."""

    name: str
    title: str
    model: str
    connections: int
    chunks: int = 0  # of each stream; 0: not streamed
    upstream: str = "plain"
    ramp_us: int = 0
    most: float | None = None

    @property
    def unit(self) -> str:
        return "chunk" if self.chunks else "request"


LIVE_US = 20_000
WORKLOADS = (
    Workload("json-64", "JSON, 64 connections", "m1/json", 64, most=20),
    Workload("json-1", "JSON, 1 connection", "m1/json", 1),
    Workload("sse-fast", "16 streams at full speed", "m1/sse-100-0", 16, 100, most=12),
    Workload("sse-live", "200 live streams, 20 ms a chunk", f"m1/sse-100-{LIVE_US}", 200, 100,
             ramp_us=LIVE_US, most=4),
    Workload("sse-fast-tls", "16 streams at full speed, TLS", "m1/sse-100-0", 16, 100, "tls"),
    Workload("sse-live-tls", "200 live streams, TLS", f"m1/sse-100-{LIVE_US}", 200, 100, "tls",
             ramp_us=LIVE_US),
)  # fmt: skip


@dataclass
class Loader:
    """The compiled load generator, on its core."""

    program: Path
    core: int

    def command(
        self, workload: Workload, door: Door, key: str, *, seconds: float = 0, requests: int = 0
    ) -> list[str]:
        words: list[object] = [
            "taskset", "-c", self.core, self.program, "-p", door.port, "-u", door.path,
            "-m", door.prefix + workload.model, "-k", key, "-c", workload.connections,
            "-x", workload.chunks, "-r", workload.ramp_us, "-s", seconds, "-n", requests,
        ]  # fmt: skip
        return [str(word) for word in words]

    def run(
        self, workload: Workload, door: Door, key: str, *, seconds: float = 0, requests: int = 0
    ) -> dict[str, Any]:
        command = self.command(workload, door, key, seconds=seconds, requests=requests)
        done = subprocess.run(command, capture_output=True, text=True, timeout=700, check=False)
        if done.returncode:
            raise SystemExit(f"load failed ({done.returncode}): {done.stderr.strip()}")
        result: dict[str, Any] = json.loads(done.stdout)
        result["complaint"] = done.stderr.strip()
        return result


@dataclass
class Row:
    """One server under one workload, over all its rounds."""

    workload: Workload
    server: str
    cpu: float = 0  # seconds
    rounds: list[dict[str, Any]] = field(default_factory=list)

    def add(self, result: dict[str, Any], cpu: float) -> None:
        self.rounds.append({**result, "cpu": cpu})
        self.cpu += cpu

    def total(self, name: str) -> float:
        return float(sum(each[name] for each in self.rounds))

    def mean(self, name: str) -> float | None:
        """The mean of the rounds' percentiles, in microseconds; None if nothing was timed."""
        values = [each[name] for each in self.rounds if each[name] >= 0]
        return sum(values) / len(values) if values else None

    @property
    def failed(self) -> int:
        return int(sum(map(self.total, ("non_200", "damaged", "broken", "stuck"))))

    @property
    def rate(self) -> float:
        return self.total("ok") / self.total("seconds")

    def cpu_us(self, unit: str) -> float | None:
        """CPU for each request or chunk in microseconds; None where it was not measured."""
        count = self.total("chunks") if unit == "chunk" else self.total("sent")
        return self.cpu / count * 1e6 if count and self.cpu else None


def take_round(
    row: Row, loader: Loader, door: Door, key: str, seconds: float, process: Process | None
) -> dict[str, Any]:
    before = process.cpu() if process else 0.0
    result = loader.run(row.workload, door, key, seconds=seconds)
    time.sleep(SETTLE_SECONDS)
    row.add(result, (process.cpu() - before) if process else 0.0)
    return result


def mirrored(names: Sequence[str]) -> list[str]:
    """A B C C B A: a drift of the machine during the run falls on each server alike."""
    return [*names, *reversed(names)]
