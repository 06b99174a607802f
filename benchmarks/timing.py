"""How far the moments on a row are from the truth: the clock of the upstream that made them.

python benchmarks/timing.py        the error of each, in milliseconds: median, and the worst of all

A gateway in a process of its own relays streams with known gaps from a mock that notes when it got
each request and when it wrote each part. Both clocks are the machine's monotonic one. The error is
the row's figure less the mock's.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import sqlite3
import statistics
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

from lab import CHAT, Gateway
from process import cores

ROUNDS = 20
TOLERANCE_MS = 2.0
CALL = {"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}
DELTAS = (
    [("role", {"role": "assistant", "content": ""}), ("thought", {"reasoning": "hm"})]
    + [("content", {"content": "word "})] * 6
    + [("tool", {"tool_calls": [CALL]}), ("stall", {"content": "end"})]
)
GAPS = (0.03, 0.05, *(0.02,) * 6, 0.04, 1.2)
"""Seconds before each of them."""
BEFORE = 0.02
"""Seconds before the head."""
Truth = dict[str, float]


def event(**members: object) -> bytes:
    data = b"data: " + json.dumps({"id": "c", "model": "m", **members}).encode() + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


def receive(connection: socket.socket) -> bool:
    """One request, read whole; False once the gateway has hung up."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            return False
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    fields = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:])
    missing = int(fields.get(b"content-length", 0)) - len(body)
    while missing > 0:
        missing -= len(connection.recv(65536))
    return head.startswith(b"POST")


def serve(listener: socket.socket, truths: list[Truth]) -> None:
    """Answers one call after the other, and keeps when each part was written."""
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, contextlib.suppress(OSError):
            while receive(connection):
                truths.append(answer(connection))


def answer(connection: socket.socket) -> Truth:
    asked = time.monotonic()
    time.sleep(BEFORE)
    connection.sendall(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    began = (time.monotonic() - asked) * 1000
    written: list[tuple[str, float]] = []
    for (kind, delta), gap in zip(DELTAS, GAPS, strict=True):
        time.sleep(gap)
        connection.sendall(event(choices=[{"index": 0, "delta": delta}]))
        written.append((kind, (time.monotonic() - asked) * 1000))
    connection.sendall(
        event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
        + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
    )
    ended = (time.monotonic() - asked) * 1000
    first = dict(reversed(written))
    outputs = [at for kind, at in written if kind != "role"]
    gaps = [after - before for before, after in pairwise(outputs)]
    return {
        "ttfb_ms": began,
        "time_to_first_token_ms": first["thought"],
        "first_reasoning_ms": first["thought"],
        "first_content_ms": first["content"],
        "first_tool_ms": first["tool"],
        "last_token_ms": outputs[-1],
        "inter_token_p50_ms": statistics.median(gaps),
        "max_stall_ms": max(gaps),
        "stall_count": 1,
        "processing_time_ms": ended,
    }


def ask(gateway: Gateway) -> None:
    body = {"model": "lab/m", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
    headers = {"authorization": f"Bearer {gateway.master}", "content-type": "application/json"}
    connection.request("POST", CHAT, json.dumps(body), headers)
    assert connection.getresponse().read().rstrip().endswith(b"data: [DONE]")
    connection.close()


def rows(gateway: Gateway) -> list[Truth]:
    gateway.wait_for_rows(ROUNDS)
    with contextlib.closing(sqlite3.connect(gateway.database)) as database:
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute("SELECT * FROM api_calls ORDER BY id")]


def main() -> None:
    truths: list[Truth] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        threading.Thread(target=serve, args=(listener, truths), daemon=True).start()
        lab = SimpleNamespace(
            folder=Path(folder),
            front=cores()[0],
            mock_port=listener.getsockname()[1],
            tls_port=None,
        )
        gateway = Gateway(lab, stack)
        for _ in range(ROUNDS):
            ask(gateway)
        found = rows(gateway)
    assert len(found) == len(truths) == ROUNDS
    print(f"{'':24}{'median':>9}{'worst':>9}   of {ROUNDS} streams; errors in ms")
    within = True
    for name in truths[0]:
        errors = [row[name] - truth[name] for row, truth in zip(found, truths, strict=True)]
        median, worst = statistics.median(errors), max(errors, key=abs)
        within = within and abs(median) <= TOLERANCE_MS
        print(f"{name:24}{median:9.3f}{worst:9.3f}")
    if not within:
        raise SystemExit(f"a median is off by more than {TOLERANCE_MS:g} ms")


if __name__ == "__main__":
    main()
