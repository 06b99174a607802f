from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from proxy.errors import ConfigError
from proxy.serve import address, bind


def test_port_0_is_any_free_port_and_the_address_tells_which() -> None:
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert address(listener) == f"http://127.0.0.1:{port}"
        socket.create_connection(("127.0.0.1", port), timeout=20).close()


def test_the_address_of_every_interface_is_the_one_of_this_machine() -> None:
    with bind("0.0.0.0", 0) as listener:
        assert address(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_port_in_use_is_found_before_anything_starts() -> None:
    with bind("127.0.0.1", 0) as listener, pytest.raises(ConfigError, match="is in use"):
        bind("127.0.0.1", listener.getsockname()[1])


def test_a_port_that_was_in_use_a_moment_ago_can_be_had_again() -> None:
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=20):
            listener.accept()[0].close()  # the side that closes first keeps the port for a while
    bind("127.0.0.1", port).close()


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host.invalid"])
def test_a_host_that_is_not_ours_is_told(host: str) -> None:
    with pytest.raises(ConfigError, match="is no address of this machine"):
        bind(host, 0)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_it_announces_itself_serves_and_ends_well(tmp_path: Path, stop: signal.Signals) -> None:
    config = tmp_path / "t.yaml"
    config.write_text(
        "providers: {lab: {type: openai, base_url: 'http://127.0.0.1:9/v1'}}\n"
        f"telemetry: {{database_url: 'sqlite+aiosqlite:///{tmp_path}/deep/t.db'}}\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "proxy", "--config", str(config), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={"PYTHONPATH": str(Path(__file__).parents[1])},
        cwd=tmp_path,
    )
    with process:
        assert process.stdout is not None
        where = process.stdout.readline().split()[-1].removeprefix("http://")
        client = http.client.HTTPConnection(where, timeout=10)
        client.request("GET", "/readyz")
        answer = client.getresponse()
        assert answer.status == 200
        assert answer.getheader("server") is None
        client.close()
        process.send_signal(stop)
        rest = process.stdout.read()
        assert process.wait(20) == 0
    assert "lab (no key)" in rest
    assert (tmp_path / "deep" / "t.db").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGHUP")
def test_a_hangup_reads_the_configuration_again(tmp_path: Path) -> None:
    config, log = tmp_path / "t.yaml", tmp_path / "log"
    lab = "providers: {lab: {type: openai, base_url: 'http://127.0.0.1:9/v1'}}\n"
    fixed = (
        f"auth: {{master_key_file: '{tmp_path}/key'}}\n"
        f"telemetry: {{database_url: 'sqlite+aiosqlite:///{tmp_path}/t.db'}}\n"
    )
    config.write_text(lab + fixed)
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "proxy", "--config", str(config), "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={"PYTHONPATH": str(Path(__file__).parents[1])},
            cwd=tmp_path,
        )
    with process:
        assert process.stdout is not None
        where = process.stdout.readline().split()[-1].removeprefix("http://")
        key = (tmp_path / "key").read_text().strip()

        def ask(method: str, path: str) -> dict:
            client = http.client.HTTPConnection(where, timeout=10)
            client.request(method, path, headers={"Authorization": f"Bearer {key}"})
            answer = json.loads(client.getresponse().read())
            client.close()
            return answer

        def aliases() -> list[str]:
            listed = ask("GET", "/v1/models")["data"]
            return [model["id"] for model in listed if model["owned_by"] == "tollkeeper"]

        def until(words: str) -> None:
            for _ in range(500):
                if words in log.read_text():
                    return
                time.sleep(0.02)
            raise AssertionError(log.read_text())

        assert aliases() == []
        config.write_text(f"{lab}{fixed}models: {{fast: {{targets: [lab/x]}}}}\n")
        process.send_signal(signal.SIGHUP)
        until("the configuration was read again")
        assert aliases() == ["fast"]
        config.write_text("server: {peek: x}\n")
        process.send_signal(signal.SIGHUP)
        until("the configuration stays as it was: ")
        assert "t.yaml: server.peek: must be a duration" in log.read_text()
        assert aliases() == ["fast"]
        config.write_text(lab + fixed)
        told = ask("POST", "/admin/reload")
        assert told == {"reloaded": True, "restart_needed": [], "warnings": []}
        assert aliases() == []
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        assert process.wait(20) == 0
    assert key not in log.read_text()
