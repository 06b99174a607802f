from __future__ import annotations

import asyncio
import gzip
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy import __version__, cli
from proxy.clock import now_ms
from proxy.errors import ConfigError
from proxy.schema import Settings
from proxy.store.engine import Store
from tests.store.rows import call


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


def test_several_workers_have_a_supervisor_whose_words_can_be_passed_on(
    monkeypatch: pytest.MonkeyPatch, served: list[Settings]
) -> None:
    supervised: list[Settings] = []

    def supervise(settings: Settings, announce: object, reread: Callable[[], Settings]) -> int:
        assert pickle.loads(pickle.dumps(reread))() == settings
        supervised.append(settings)
        return 0

    monkeypatch.setattr(cli, "supervise", supervise)
    assert cli.main(["--workers", "2", "--port", "7"]) == 0
    assert (len(served), len(supervised), supervised[0].server.port) == (0, 1, 7)


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


def recorded(*timestamps: int) -> None:
    """A database where the defaults have it."""

    async def write() -> None:
        store = Store("sqlite+aiosqlite:///data/tollkeeper.db")
        await store.open()
        await store.write([call(timestamp=timestamp) for timestamp in timestamps])
        await store.close()

    asyncio.run(write())


def test_export_takes_a_window_and_says_how_much_there_was(
    capsys: pytest.CaptureFixture[str],
) -> None:
    recorded(1_735_732_800_000, 1_735_819_200_000, now_ms() - 1000)
    words = ["export", "--since", "2025-01-02", "--until", "1h", "--format", "csv"]
    assert cli.main([*words, "--output", "x.csv"]) == 0
    assert capsys.readouterr() == ("", "1 row\n")
    assert Path("x.csv").read_text().count("2025-01-02T12:00:00.000Z") == 1
    assert cli.main(["export", "--format", "csv"]) == 0
    out, err = capsys.readouterr()
    assert (out.count("\n"), err) == (4, "3 rows\n")
    assert cli.main(["export", "--table", "daily_costs", "--output", "x.jsonl.gz"]) == 0
    assert len(gzip.decompress(Path("x.jsonl.gz").read_bytes()).splitlines()) == 3


def test_export_tells_in_one_line_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "--format", "csv"]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("there is no database ")
    recorded()
    assert cli.main(["export", "--output", "none/x"]) == 1
    assert capsys.readouterr().err == "cannot write none/x: No such file or directory\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--since", "soon"], "argument --since: must be RFC 3339, a date, or a time ago"),
        (["--format", "xml"], "argument --format: invalid choice: 'xml'"),
        (["--table", "secrets"], "argument --table: invalid choice: 'secrets'"),
    ],
)
def test_export_refuses_what_it_does_not_know(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["export", *words])
    assert said in capsys.readouterr().err


def test_a_reader_that_goes_away_ends_an_export_quietly(tmp_path: Path) -> None:
    recorded(*range(1_735_732_800_000, 1_735_732_801_000))
    line = f"{sys.executable} -m proxy export --format csv | head -c 1 >/dev/null"
    environ = {"PYTHONPATH": str(Path(__file__).parents[1]), "PATH": os.defpath}
    run = subprocess.run(
        ["sh", "-c", line], capture_output=True, text=True, env=environ, cwd=tmp_path, timeout=30
    )
    assert run.stderr == "cannot write the output: Broken pipe\n"


def test_prune_deletes_what_is_old_or_says_what_it_would(
    capsys: pytest.CaptureFixture[str],
) -> None:
    recorded(1_735_732_800_000, now_ms() - 7_200_000, now_ms())
    assert cli.main(["prune", "--dry-run"]) == 0
    assert "\napi_calls                         1\n" in capsys.readouterr().out
    assert cli.main(["prune", "--older-than", "1h"]) == 0
    assert capsys.readouterr().out.endswith(" rows deleted\n")
    assert cli.main(["export", "--output", "x"]) == 0
    assert capsys.readouterr().err == "1 row\n"


def test_prune_tells_in_one_line_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prune"]) == 1
    assert capsys.readouterr().err.startswith("there is no database ")
    with pytest.raises(SystemExit):
        cli.main(["prune", "--older-than", "30"])
    assert "argument --older-than: must be a time such as 30d" in capsys.readouterr().err


def test_reprice_says_what_changed_or_would(capsys: pytest.CaptureFixture[str]) -> None:
    recorded(1_735_732_800_000, now_ms())
    words = ["reprice", "--since", "1d", "--until", "2100-01-01"]
    assert cli.main([*words, "--dry-run"]) == 0
    assert capsys.readouterr().out == "rows looked at: 1, would change: 0, newly priced: 0\n"
    assert cli.main(["reprice", "--since", "2025-01-01"]) == 0
    assert capsys.readouterr().out == "rows looked at: 2, changed: 0, newly priced: 0\n"


def test_reprice_tells_in_one_line_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reprice", "--since", "1d"]) == 1
    assert capsys.readouterr().err.startswith("there is no database ")
    with pytest.raises(SystemExit):
        cli.main(["reprice"])
    assert "required: --since" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["export", "reprice"])
@pytest.mark.parametrize("until", [["--until", "2025-01-01"], []])
def test_a_window_that_ends_before_it_begins_is_a_mistake(
    command: str, until: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--since", "2101-01-01", *until])
    assert ended.value.code == 2
    assert "argument --since: must not be after --until" in capsys.readouterr().err


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


@pytest.mark.parametrize("text", ["rpm", "rpm=0", "rpm=many", "rpx=1", "rpm=1.5"])
def test_a_limit_that_cannot_be_is_named(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["keys", "create", "ann", "--limit", text])
    err = capsys.readouterr().err
    assert f"got {text}" in err
    assert "rpm, rph, rpd, tpm, tph, tpd, parallel, max_body, max_output_tokens" in err


@pytest.mark.parametrize(
    "text", ["20", "20/year", "-1/day", "/day", "20/day/firm", "2/day/", "many/day"]
)
def test_a_budget_that_cannot_be_is_named(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["keys", "create", "ann", f"--budget={text}"])
    assert f"got {text}" in capsys.readouterr().err


def test_a_client_has_no_more_budgets_than_over_http(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["keys", "create", "ann", *["--budget", "1/day"] * 11]) == 1
    assert capsys.readouterr().err == "a client has 10 budgets at most\n"


def test_a_client_is_let_in_with_the_budgets_that_were_given(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ["--budget", "20/month", "--budget", "0.5/24h/soft"]
    assert cli.main(["keys", "create", "ann", *asked]) == 0
    assert cli.main(["keys", "list"]) == 0
    assert capsys.readouterr().out.endswith("  everything  $20/month  $0.5/24h/soft\n")


def test_a_client_is_let_in_with_the_limits_that_were_given(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["keys", "create", "ann", "--limit", "rpm=60", "--limit", "parallel=4"]) == 0
    assert cli.main(["keys", "list"]) == 0
    assert capsys.readouterr().out.endswith("  everything  rpm=60  parallel=4\n")


@pytest.mark.parametrize("words", [[""], ["x" * 201], ["ann", "--expires-in", "1000001d"]])
def test_what_the_api_would_not_take_neither_does_the_command_line(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["keys", "create", *words])
    assert "must be a" in capsys.readouterr().err
