from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy import __version__, cli
from proxy.errors import ConfigError
from proxy.schema import Settings


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.environ", {})


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """What ``serve`` was called with; nothing is served."""
    calls: list[Settings] = []

    def serve(settings: Settings, announce: object, reread: Callable[[], Settings]) -> int:
        assert reread() == settings
        calls.append(settings)
        return 0

    monkeypatch.setattr(cli, "serve", serve)
    return calls


@pytest.mark.parametrize("command", [[], ["serve"]])
def test_serving_is_what_it_does_without_a_command(
    command: list[str], served: list[Settings]
) -> None:
    Path("t.yaml").write_text("server: {port: 1, drain: 3s}\n")
    words = [*command, "--config", "t.yaml", "--host", "::1", "--port", "0", "--workers", "1"]
    assert cli.main([*words, "--log-level", "DEBUG", "--log-format", "json"]) == 0
    [settings] = served
    server = settings.server
    assert (server.host, server.port, server.workers, server.drain) == ("::1", 0, 1, 3.0)
    assert (server.log_level, server.log_format) == ("debug", "json")


def test_no_arguments_at_all_serve_the_defaults(served: list[Settings]) -> None:
    assert cli.main([]) == 0
    assert served[0].server == Settings().server


def test_what_serves_can_read_the_same_sources_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ports: list[int] = []

    def serve(settings: Settings, announce: object, reread: Callable[[], Settings]) -> int:
        ports.append(settings.server.port)
        Path("t.yaml").write_text("server: {port: 2, host: 127.0.0.2}\n")
        again = reread().server
        ports.append(again.port)
        assert again.host == "127.0.0.9"
        Path("t.yaml").write_text("server: {port: x}\n")
        reread()
        return 0

    monkeypatch.setattr(cli, "serve", serve)
    Path("t.yaml").write_text("server: {port: 1}\n")
    assert cli.main(["--config", "t.yaml", "--host", "127.0.0.9"]) == 1
    assert ports == [1, 2]


def test_check_shows_no_password_of_the_shared_state(capsys: pytest.CaptureFixture[str]) -> None:
    Path("t.yaml").write_text("state: {url: 'redis://:canary@h:1/0'}\n")
    assert cli.main(["check", "--config", "t.yaml"]) == 0
    Path("t.yaml").write_text("state: {url: 'redis://:canary@h:x/0', prefix: '/'}\n")
    assert cli.main(["check", "--config", "t.yaml"]) == 1
    out, err = capsys.readouterr()
    assert "canary" not in out + err
    assert err.count("\n") == 2


def test_check_says_what_it_checked_in_one_line(
    capsys: pytest.CaptureFixture[str], served: list[Settings]
) -> None:
    Path("t.yaml").write_text(
        "providers: {groq: {keys: [{value: a}, {name: b, value: '${B}'}]}, ollama: {}}\n"
        "models: {fast: {targets: [groq/x]}}\n"
    )
    assert cli.main(["check", "--config", "t.yaml"]) == 0
    out, err = capsys.readouterr()
    assert out == "t.yaml: in order: 2 providers, 1 key, 1 alias, 0 prices\n"
    assert err == "warning: t.yaml: providers.groq.keys[1]: key b is left out: B is not set\n"
    assert served == []


def test_check_works_without_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check"]) == 0
    assert capsys.readouterr().out.startswith("environment, no file: in order: 0 providers")


@pytest.mark.parametrize("command", ["check", "serve"])
def test_mistakes_are_told_one_a_line_and_nothing_is_started(
    command: str, capsys: pytest.CaptureFixture[str], served: list[Settings]
) -> None:
    Path("t.yaml").write_text("server: {peek: x}\ntypo: 1\n")
    assert cli.main([command, "--config", "t.yaml", "--port", "eighty"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.partition(" must")[0].partition(" is")[0] for line in err.splitlines()] == [
        "--port:",
        "t.yaml: server.peek:",
        "t.yaml: typo:",
    ]
    assert served == []


def test_what_goes_wrong_at_the_start_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def serve(settings: Settings, announce: object, reread: object) -> int:
        raise ConfigError(["the port is in use"])

    monkeypatch.setattr(cli, "serve", serve)
    assert cli.main([]) == 1
    assert capsys.readouterr().err == "the port is in use\n"


def test_an_unknown_word_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["explode"], ["--prot", "1"], ["check", "more"], ["--conf", "x"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(words)
        assert caught.value.code == 2
    assert "usage: tollkeeper" in capsys.readouterr().err


def test_the_program_runs_as_a_module(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[1])
    run = subprocess.run(
        [sys.executable, "-m", "proxy", "--version"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": root},
        cwd=tmp_path,
        timeout=30,
        check=True,
    )
    assert run.stdout == f"tollkeeper {__version__}\n"


def test_a_port_in_use_is_told_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = subprocess.run(
            [sys.executable, "-m", "proxy", "--port", str(port)],
            capture_output=True,
            text=True,
            env={"PYTHONPATH": str(Path(__file__).parents[1])},
            cwd=tmp_path,
            timeout=30,
            check=False,
        )
    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr == (
        f"server: port {port} on 127.0.0.1 is in use;"
        " stop what listens there, or choose another --port\n"
    )
