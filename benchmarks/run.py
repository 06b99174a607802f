"""Measure the gateway beside nginx and the bare upstream: see README.md in this folder.

python benchmarks/run.py [--seconds 5] [--only json-64,sse-live] [--soak 200000] [--write]
python benchmarks/run.py --profile json-64
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import spy
from lab import Door, Gateway, Lab
from measure import WORKLOADS, Loader, Row, Workload, mirrored, take_round
from process import Process, cores, tool
from report import Report, facts

HERE = Path(__file__).resolve().parent
BY_NAME = {workload.name: workload for workload in WORKLOADS}
IDLE = "idle"
CHOOSE = "choose"
IDLE_SECONDS = 3
SOAK_STOPS = (0.1, 0.5, 1.0)
"""Shares of the soak after which memory is read: 20,000, 100,000 and 200,000 of 200,000."""


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Bench:
    """One gateway in the lab, and the books of what was sent through it."""

    def __init__(self, lab: Lab, report: Report, stack: contextlib.ExitStack, name: str) -> None:
        self.lab = lab
        self.report = report
        self.loader = Loader(lab.folder / "load", lab.back)
        self.gateway = Gateway(lab, stack, name)
        self.keys = {"gateway": self.gateway.master, "client": self.gateway.let_in()}
        self.sent = 0  # through the gateway, as the load generator counted
        self.served = 0  # of these, by the mock

    def door(self, server: str, upstream: str) -> Door | None:
        if server == "client":
            return self.gateway.doors["plain"] if upstream == "plain" else None
        if server == "gateway":
            return self.gateway.doors.get(upstream)
        return self.lab.doors.get((server, upstream))

    def process(self, server: str) -> Process | None:
        return self.gateway.process if server in self.keys else self.lab.servers.get(server)

    def idle(self) -> None:
        at_start = self.gateway.process.rss()
        time.sleep(IDLE_SECONDS)
        later = self.gateway.process.rss()
        self.note(
            f"Start to ready: {self.gateway.start_seconds:.2f} s. RSS of the whole process tree: "
            f"{at_start:.1f} MB when ready, {later:.1f} MB {IDLE_SECONDS} s later (at most 120)."
        )

    def warm_up(self) -> None:
        for upstream, door in self.gateway.doors.items():
            for workload in (BY_NAME["json-1"], BY_NAME["sse-fast"]):
                self.load(workload, door, seconds=0.5)
            if floor := self.lab.doors.get(("nginx", upstream)):
                self.loader.run(BY_NAME["json-1"], floor, "none", seconds=0.2)

    def load(self, workload: Workload, door: Door, **amount: Any) -> dict[str, Any]:
        """Load through the gateway that is no part of any row, but of the books."""
        before = self.lab.served()
        result = self.loader.run(workload, door, self.gateway.master, **amount)
        self.book(result, before)
        return result

    def book(self, result: dict[str, Any], served_before: int) -> None:
        self.sent += result["sent"]
        self.served += self.lab.served() - served_before
        if result["complaint"]:
            say(f"  {result['complaint']}")

    def measure(self, workload: Workload, seconds: float) -> None:
        """Rounds on each server in turn, there and back again, ``seconds`` in all for each."""
        names = [
            name
            for name in ("direct", "nginx", "gateway", "client")
            if self.door(name, workload.upstream)
        ]
        rows = {name: Row(workload, name) for name in names}
        for name in mirrored(names):
            say(f"  {workload.name}: {name}")
            door = self.door(name, workload.upstream)
            assert door
            key = self.keys.get(name, "none")
            before = self.lab.served()
            result = take_round(rows[name], self.loader, door, key, seconds / 2, self.process(name))
            if name in self.keys:
                self.book(result, before)
        self.report.rows += rows.values()
        if workload.name == "json-1":
            self.added_latency(rows)

    def added_latency(self, rows: dict[str, Row]) -> None:
        base = rows["direct"].mean("latency_p50")
        for name in ("nginx", *self.keys):
            own = rows[name].mean("latency_p50") if name in rows else None
            if own is not None and base is not None:
                bound = " (at most 0.5)" if name in self.keys else ""
                self.note(f"Added latency, median, {name}: {(own - base) / 1000:.3f} ms{bound}.")

    def soak(self, requests: int) -> None:
        """Memory after a tenth, a half and all of ``requests``."""
        readings, done = [], 0
        workload, door = BY_NAME["json-64"], self.gateway.doors["plain"]
        for share in SOAK_STOPS:
            goal = int(requests * share)
            done += self.load(workload, door, requests=goal - done)["sent"]
            time.sleep(1)
            readings.append(f"{self.gateway.process.rss():.1f} MB after {done:,}")
        self.note(
            f"RSS of a fresh gateway under JSON, 64 connections: {', '.join(readings)} requests."
        )

    def parity(self) -> bool:
        rows = self.gateway.wait_for_rows(self.sent)
        equal = self.sent == self.served == rows
        self.note(
            f"Rows: {self.sent:,} requests sent to the gateway, {self.served:,} served by the "
            f"upstream, {rows:,} rows in api_calls: {'equal' if equal else 'NOT EQUAL'}."
        )
        return equal

    def note(self, line: str) -> None:
        self.report.notes.append(line)
        say(f"  {line}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the gateway beside nginx.")
    parser.add_argument("--seconds", type=float, default=5, help="of load for each server")
    parser.add_argument("--only", default="", help=f"of: {', '.join([*BY_NAME, IDLE, CHOOSE])}")
    parser.add_argument("--soak", type=int, default=0, metavar="REQUESTS")
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    parser.add_argument("--profile", nargs="?", const="json-64", choices=list(BY_NAME))
    given = parser.parse_args()
    given.only = given.only.split(",") if given.only else [*BY_NAME, IDLE, CHOOSE]
    if unknown := set(given.only) - {*BY_NAME, IDLE, CHOOSE}:
        parser.error(f"unknown workload: {', '.join(sorted(unknown))}")
    return given


def run_profile(bench: Bench, workload: Workload) -> None:
    door = bench.gateway.doors.get(workload.upstream)
    if not door:
        raise SystemExit("this workload needs nginx and openssl for TLS")
    load = bench.loader.command(workload, door, bench.gateway.master, seconds=spy.SECONDS + 4)
    say(f"{workload.title}:")
    say(spy.profile(bench.gateway.process.pid, load, bench.lab.folder, bench.lab.back))


def choosing() -> str:
    """What choosing a key costs, measured in a process of its own on the gateway's core."""
    core = str(cores()[0])
    command = ["taskset", "-c", core, tool("python") or sys.executable, str(HERE / "choose.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.strip()


def run_workloads(bench: Bench, given: argparse.Namespace) -> bool:
    if not bench.lab.tls_port:
        bench.note("Left out for want of nginx or openssl: the floor, or the upstream with TLS.")
    if CHOOSE in given.only:
        bench.note(f"{choosing()} (at most 5).")
    if IDLE in given.only:
        bench.idle()
    bench.warm_up()
    for name in given.only:
        if name in BY_NAME and bench.door("gateway", BY_NAME[name].upstream):
            bench.measure(BY_NAME[name], given.seconds)
    return bench.parity()


def run_soak(bench: Bench, requests: int) -> bool:
    bench.soak(requests)
    return bench.parity()


def publish(report: Report, write: bool) -> None:
    say("\n" + report.terminal())
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / "last.json").write_text(report.raw())
    if write:
        report.write(HERE / "README.md")


@contextlib.contextmanager
def bench_in(lab: Lab, report: Report, name: str) -> Iterator[Bench]:
    """A gateway for one purpose; when that fails, the end of its log is shown."""
    with contextlib.ExitStack() as stack:
        bench = Bench(lab, report, stack, name)
        try:
            yield bench
        except SystemExit:
            say(bench.gateway.process.tail())
            raise


def main() -> int:
    given = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        contextlib.ExitStack() as stack,
    ):
        lab = Lab(Path(folder), stack)
        os.sched_setaffinity(0, {lab.back})
        report = Report(facts(lab))
        with bench_in(lab, report, "gateway") as bench:
            if given.profile:
                bench.warm_up()
                run_profile(bench, BY_NAME[given.profile])
                return 0
            equal = run_workloads(bench, given)
        if given.soak:
            with bench_in(lab, report, "soak") as bench:
                equal = run_soak(bench, given.soak) and equal
        publish(report, given.write)
        return 0 if equal and not any(row.failed for row in report.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
