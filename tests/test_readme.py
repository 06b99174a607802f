"""Everything that the README and its pages show is done here, as a reader would do it.

A block is run by its language, or by the comment before it (``<!-- test: ... -->``). Outputs are
compared by their shape: the same members, the same kinds of values.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
import pytest_asyncio
import yaml

from proxy.banner import banner
from proxy.config import load
from proxy.discovery import discover
from proxy.schema import Settings
from proxy.store.tables import gpu_metrics, system_metrics
from tests.markdown import ROOT, Block, blocks, pages
from tests.reader import Reader, reading

BLOCKS = [block for page in pages() for block in blocks(page)]
SAID = "This is Tollkeeper's built-in demo, a simulated model. You said: Hello"
OPENAI_STUB = """
export default class OpenAI {
  chat = { completions: { create: async function* (body) {
    const answer = await fetch(process.env.OPENAI_BASE_URL + '/chat/completions', {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(body),
    });
    for (const line of (await answer.text()).split('\\n'))
      if (line.startsWith('data: {')) yield JSON.parse(line.slice(6));
  } } };
}
"""
"""The one thing of the npm package that the README uses; the suite needs no network."""

Runner = Callable[[Block, Reader], Awaitable[None]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reader(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Reader]:
    async with reading(tmp_path_factory.mktemp("reader")) as found:
        yield found


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("block", BLOCKS, ids=str)
async def test_what_stands_there_works(block: Block, reader: Reader) -> None:
    kind = block.note.split()[0]
    assert kind in RUNNERS, f"{block}: nothing tests a block of {block.language or 'no language'}"
    await RUNNERS[kind](block, reader)


async def run_shell(block: Block, reader: Reader) -> None:
    needs("curl")
    for command in commands(block.text):
        assert await reader.run(command), command


async def run_console(block: Block, reader: Reader) -> None:
    """Commands behind ``$``, each followed by what it prints."""
    needs("curl")
    for command, shown in transcript(block.text):
        await reader.settled()
        printed = await reader.run(f"{{ {command}\n}} 2>&1 || true")
        assert told(printed) == told(shown), command


async def run_make(block: Block, reader: Reader) -> None:
    """Every target exists, and what stands before it are variables that mean something."""
    for command in commands(block.text):
        words = shlex.split(command, comments=True)
        variables = [word for word in words if re.match(r"[A-Z_0-9]+=", word)]
        known(dict(word.split("=", 1) for word in variables), reader)
        make = [word for word in words if word not in variables]
        assert make[0] == "make"
        await reader.run(f"make -n -C {shlex.quote(str(ROOT))} {shlex.join(make[1:])} >/dev/null")


async def run_variables(block: Block, reader: Reader) -> None:
    """The exported address answers; ``openai/`` before a model is a client's own mark."""
    environ = exported(block.text)
    [address] = [value for value in environ.values() if value.startswith("http")]
    found = re.search(r"--model openai/(\S+)", block.text)
    answer = await reader.http.post(
        address.replace("http://127.0.0.1:8000", reader.url) + "/chat/completions",
        json={
            "model": found[1] if found else "demo/echo",
            "messages": [{"role": "user", "content": "Hello"}],
        },
        headers={"authorization": f"Bearer {environ['OPENAI_API_KEY']}"},
    )
    assert answer.json()["choices"][0]["message"]["content"] == SAID


async def run_check(block: Block, reader: Reader) -> None:
    """The exported variables are settings, and hold."""
    environ = exported(block.text)
    assert load(reader.folder / "empty.yaml", {}, environ).warnings == ()
    known(environ, reader)


async def run_docker(block: Block, reader: Reader) -> None:
    """What is said fits the Dockerfile, whose steps have a test of their own."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    said = {}
    for command in commands(block.text):
        words = shlex.split(command)
        assert words[0] == "docker"
        said[words[1]] = words[2:]
    assert said["build"][-1] == "."
    assert said["build"][said["build"].index("-t") + 1] == said["run"][-1]
    options = list(zip(said["run"], said["run"][1:], strict=False))
    [ports] = [value for option, value in options if option == "-p"]
    assert f"EXPOSE {ports.rpartition(':')[2]}\n" in dockerfile
    [volume] = [value for option, value in options if option == "-v"]
    assert f"VOLUME {volume.rpartition(':')[2]}\n" in dockerfile
    [name] = [value for option, value in options if option == "--name"]
    assert said["logs"] == [name]
    known({value: "x" for option, value in options if option == "-e"}, reader)


async def run_python(block: Block, reader: Reader) -> None:
    printed = await reader.run(f"python -W error -c {shlex.quote(block.text)}")
    assert SAID in printed or re.fullmatch(r"[0-9A-Z]{18} demo\n", printed), printed


async def run_program(block: Block, reader: Reader) -> None:
    """What it prints stands behind each ``print``; numbers differ from one run to the next."""
    printed = await reader.run(f"python -W error -c {shlex.quote(block.text)}")
    shown = re.findall(r"^ *print\(.*\)\s*# (.+)$", block.text, re.M)
    assert shown
    assert [told(line) for line in printed.splitlines()] == [told(line) for line in shown]


async def run_syntax(block: Block, reader: Reader) -> None:
    """A library that is not installed here."""
    ast.parse(block.text)


async def run_js(block: Block, reader: Reader) -> None:
    needs("node")
    package = reader.folder / "node_modules" / "openai"
    package.mkdir(parents=True)
    (package / "package.json").write_text('{"type": "module", "main": "index.js"}')
    (package / "index.js").write_text(OPENAI_STUB)
    (reader.folder / "ask.mjs").write_text(block.text)
    assert await reader.run("node --check ask.mjs && node ask.mjs") == SAID


async def run_yaml(block: Block, reader: Reader) -> None:
    file = reader.folder / "block.yaml"
    file.write_text(block.text)
    environ = dict.fromkeys(re.findall(r"\$\{(\w+)", block.text), "set")
    settings = load(file, {}, environ)
    assert settings.warnings == ()
    assert set(settings.providers) == set(yaml.safe_load(block.text)["providers"])


async def run_sql(block: Block, reader: Reader) -> None:
    found = reader.select(block.text)
    assert found
    for name in found[0]:
        assert any(row[name] is not None for row in found), name


async def run_get(block: Block, reader: Reader) -> None:
    _, path = block.note.split()
    found = await reader.get(path)
    if path.startswith("/stats/system") and not found["data"]:  # the first sample takes 10 s
        [sample] = json.loads(block.text)["data"]
        assert list(sample) == [*system_metrics.c.keys(), "gpus"]
        assert {key for gpu in sample["gpus"] for key in gpu} <= set(gpu_metrics.c.keys())
        return
    assert list(differences(json.loads(block.text), found)) == []


async def run_banner(block: Block, reader: Reader) -> None:
    text = banner(Settings(), "http://127.0.0.1:8000", [("demo", 0)], example="demo/echo")
    assert block.text.strip() == text.strip()
    needs("curl")
    [command] = [line for line in text.splitlines() if line.startswith("  curl")]
    assert SAID in await reader.run(command)


RUNNERS: dict[str, Runner] = {
    "sh": run_shell,
    "console": run_console,
    "make": run_make,
    "variables": run_variables,
    "check": run_check,
    "docker": run_docker,
    "python": run_python,
    "program": run_program,
    "syntax": run_syntax,
    "js": run_js,
    "yaml": run_yaml,
    "sql": run_sql,
    "GET": run_get,
    "banner": run_banner,
}


def needs(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


def commands(text: str) -> list[str]:
    """The commands of a shell block: lines, those that end in a backslash joined with the next."""
    return [line for line in re.split(r"(?<!\\)\n", text) if line.strip()]


def transcript(text: str) -> list[tuple[str, str]]:
    """Each command and its output. A command goes on in lines that are indented by four."""
    found: list[list[str]] = []
    for line in text.splitlines(keepends=True):
        if line.startswith("$ "):
            found.append([line[2:], ""])
        else:
            goes_on = not found[-1][1] and re.match(r" {4}\S", line)
            found[-1][0 if goes_on else 1] += line
    return [(command.rstrip("\n"), output) for command, output in found]


def exported(text: str) -> dict[str, str]:
    words = shlex.split(text, comments=True)
    return dict(word.split("=", 1) for word in words if re.match(r"[A-Z_0-9]+=", word))


def known(environ: dict[str, str], reader: Reader) -> None:
    """Every variable means something to the program."""
    for name, value in environ.items():
        if name.startswith("TOLLKEEPER_"):
            assert not load(reader.folder / "empty.yaml", {}, {name: value}).warnings
        else:
            providers, warnings = discover({name: value, "CLOUDFLARE_ACCOUNT_ID": "a"})
            assert providers, name
            assert not warnings


def told(text: str) -> str:
    """What a program prints, without what differs from one run to the next."""
    return re.sub(r"\d+(\.\d+)?", "N", text).strip()


def differences(shown: Any, found: Any, at: str = "") -> Iterator[str]:
    """Where two JSON values are not of one shape: other members, other kinds. Null is of any kind,
    of lists the first entries are compared, and one that is shown empty may be full."""
    if shown is None or found is None:
        return
    if kind(shown) != kind(found):
        yield f"{at}: {kind(shown)} is shown, {kind(found)} is found"
    elif isinstance(shown, dict):
        for name in sorted(shown.keys() ^ found.keys()):
            yield f"{at}.{name}: is {'not found' if name in shown else 'not shown'}"
        for name in shown.keys() & found.keys():
            yield from differences(shown[name], found[name], f"{at}.{name}")
    elif isinstance(shown, list) and shown:
        yield from differences(shown[0], found[0], f"{at}[0]") if found else [f"{at}: is empty"]


def kind(value: Any) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return "number" if number else type(value).__name__
