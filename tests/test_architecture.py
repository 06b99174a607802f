"""The rules of the house: what may import what, how large a thing may be, and what it is called.

A module imports lower floors and its own folder. What lies beyond a rule stands in ``EXEMPT`` with
its reason, and an exemption that is no longer needed fails.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]

HOUSE = (
    "types bounds money changes clients sample errors reasons clock duration when log redact"
    " content loopback budget budgeting limiting periods election places config schema fields"
    " document mistakes discovery tags",
    "routing providers metering store observe sharing budgets",
    "relay telemetry keys savings ledger spending",
    "api",
    "app loops routes recording learnt sealing upstreams steering explain progress export prune"
    " clientele tariffs reprice entries"
    " banner wire company overview serve worker supervisor cli __main__",
)
"""The floors, the lowest first: nouns, the parts, the hot path, the door, and who builds it all."""

FENCES = {
    "alembic": "store/",
    "certifi": "providers/transport.py",
    "fastapi": "api/ app.py",
    "genai_prices": "metering/catalog.py",  # 40 MB, in a process of its own
    "httptools": "providers/transport.py",
    # The transport is its seam.
    "httpx": "providers/ relay/relay.py relay/exchange.py relay/outbound.py app.py upstreams.py",
    "msgspec": "",  # anywhere: it makes the nouns
    "psutil": "observe/host.py",
    "pydantic": "schema.py fields.py budgeting.py limiting.py config.py mistakes.py serve.py"
    " api/stats.py api/track.py api/body.py api/clients.py api/credits.py",
    "pydantic_settings": "schema.py config.py",
    "pynvml": "observe/host.py",
    "redis": "sharing/",
    "sqlalchemy": "store/",
    "starlette": "api/ app.py",
    "uvicorn": "serve.py wire.py",
    "yaml": "document.py",
}
"""Every library that is used, and where it may be imported."""

MAX_LINES = 400
MAX_FUNCTION = 60
VAGUE = re.compile("utils?|helpers?|common|manager|service|misc", re.IGNORECASE)

EXEMPT = {
    ("functions are short", "metering/meter.py: _write"): (
        "calls CallRecord with a keyword for each of its columns; halves would hide one of them"
    ),
    ("every source has its test", "__main__.py"): (
        "three lines that call cli.main, run as a process wherever the program is"
    ),
}


class Source(NamedTuple):
    """A file below ``proxy/``; ``path`` is relative to that."""

    path: str
    text: str

    @property
    def module(self) -> str:
        dotted = "proxy." + self.path.removesuffix(".py").replace("/", ".")
        return dotted.removesuffix(".__init__")

    @property
    def part(self) -> str:
        """The folder that it is in, or itself."""
        return self.path.partition("/")[0].removesuffix(".py")

    @property
    def nodes(self) -> list[ast.AST]:
        return parsed(self.text)

    @property
    def functions(self) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
        return [n for n in self.nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


@cache
def parsed(text: str) -> list[ast.AST]:
    return list(ast.walk(ast.parse(text)))


SOURCES = [
    Source(path.relative_to(ROOT / "proxy").as_posix(), path.read_text())
    for path in sorted((ROOT / "proxy").rglob("*.py"))
]
Rule = Callable[[Sequence[Source]], Iterator[str]]
RULES: dict[str, Rule] = {}
_FLOOR = {part: floor for floor, parts in enumerate(HOUSE) for part in parts.split()}


def rule(check: Rule) -> Rule:
    """Whatever the check yields breaks the rule that its name says."""
    RULES[check.__name__.replace("_", " ")] = check
    return check


def imports(source: Source) -> Iterator[str]:
    """The dotted names that a file imports; for ``from proxy.a import b`` that is ``proxy.a.b``."""
    for node in source.nodes:
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


def ours(source: Source, modules: set[str]) -> Iterator[str]:
    """The modules of ours that a file imports."""
    for name in imports(source):
        if name.startswith("proxy."):
            yield name if name in modules else name.rpartition(".")[0]


def inside(path: str, places: str) -> bool:
    return not places or path.startswith(tuple(places.split()))


@rule
def every_part_has_its_floor(sources: Sequence[Source]) -> Iterator[str]:
    for source in sources:
        if source.part not in _FLOOR and source.part != "__init__":
            yield source.path


@rule
def imports_go_down_and_siblings_do_not_meet(sources: Sequence[Source]) -> Iterator[str]:
    modules = {source.module for source in sources}
    folders = {source.part for source in sources if "/" in source.path}
    for source in sources:
        here = source.part if source.part in folders else ""
        for name in ours(source, modules):
            part = name.removeprefix("proxy").removeprefix(".").partition(".")[0]
            there = part if part in folders else ""
            floor, other = _FLOOR.get(source.part, 0), _FLOOR.get(part, 0)
            if other > floor or (other == floor and there != here):
                yield f"{source.path}: {name}"


@rule
def imports_make_no_circle(sources: Sequence[Source]) -> Iterator[str]:
    modules = {source.module for source in sources}
    graph = {source.module: set(ours(source, modules)) - {source.module} for source in sources}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield " < ".join(error.args[1])


@rule
def imports_stand_at_the_top(sources: Sequence[Source]) -> Iterator[str]:
    for source in sources:
        for function in source.functions:
            if any(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(function)):
                yield f"{source.path}: {function.name}"


@rule
def libraries_stay_behind_their_fences(sources: Sequence[Source]) -> Iterator[str]:
    for source in sources:
        for name in {name.partition(".")[0] for name in imports(source)}:
            known = name in FENCES or name in sys.stdlib_module_names or name == "proxy"
            if not known or (name in FENCES and not inside(source.path, FENCES[name])):
                yield f"{source.path}: {name}"


@rule
def only_config_reads_the_environment(sources: Sequence[Source]) -> Iterator[str]:
    words = {"os.environ", "os.environb", "os.getenv", "os.putenv"}
    for source in sources:
        used = {ast.unparse(n) for n in source.nodes if isinstance(n, ast.Attribute)}
        if words & (used | set(imports(source))) and source.path != "config.py":
            yield source.path


@rule
def tasks_live_in_the_task_group_of_the_app(sources: Sequence[Source]) -> Iterator[str]:
    """``app.py`` opens the group and hands ``tasks.create_task`` to whoever may start one."""
    makers = {"TaskGroup", "create_task", "ensure_future", "run_coroutine_threadsafe"}
    allowed = {("app.py", "asyncio.TaskGroup"), ("app.py", "tasks.create_task")}
    for source in sources:
        names = {ast.unparse(n) for n in source.nodes if isinstance(n, ast.Attribute | ast.Name)}
        for name in names | set(imports(source)):
            if name.rpartition(".")[2] in makers and (source.path, name) not in allowed:
                yield f"{source.path}: {name}"


@rule
def only_cli_prints(sources: Sequence[Source]) -> Iterator[str]:
    for source in sources:
        if source.path != "cli.py" and any(
            isinstance(node, ast.Name) and node.id == "print" for node in source.nodes
        ):
            yield source.path


@rule
def files_are_short(sources: Sequence[Source]) -> Iterator[str]:
    for source in sources:
        if len(source.text.splitlines()) > MAX_LINES:
            yield source.path


@rule
def functions_are_short(sources: Sequence[Source]) -> Iterator[str]:
    """All lines count, from ``def`` to the last."""
    for source in sources:
        for function in source.functions:
            assert function.end_lineno is not None
            if function.end_lineno - function.lineno + 1 > MAX_FUNCTION:
                yield f"{source.path}: {function.name}"


@rule
def names_say_something(sources: Sequence[Source]) -> Iterator[str]:
    for source in sources:
        names = [*source.path.removesuffix(".py").split("/")]
        names += [node.name for node in source.nodes if isinstance(node, ast.ClassDef)]
        for name in names:
            words = re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+", name)
            if any(VAGUE.fullmatch(word) for word in words):
                yield f"{source.path}: {name}"


@rule
def every_source_has_its_test(sources: Sequence[Source]) -> Iterator[str]:
    """``proxy/x/y.py`` is tested by ``tests/x/test_y.py``; an ``__init__`` has nothing to test."""
    for source in sources:
        folder, _, name = source.path.rpartition("/")
        if name != "__init__.py" and not (ROOT / "tests" / folder / f"test_{name}").is_file():
            yield source.path


@rule
def packages_begin_empty(sources: Sequence[Source]) -> Iterator[str]:
    """An ``__init__`` may gather what its folder holds; it does nothing itself."""
    for source in sources:
        if source.path.endswith("__init__.py") and (
            source.functions or any(isinstance(node, ast.ClassDef) for node in source.nodes)
        ):
            yield source.path


@pytest.mark.parametrize("name", RULES)
def test_the_house_keeps_its_rules(name: str) -> None:
    broken = set(RULES[name](SOURCES)) - {place for of, place in EXEMPT if of == name}
    assert not broken, f"{name}: " + ", ".join(sorted(broken))


def test_no_exemption_is_stale() -> None:
    needed = {(name, place) for name, check in RULES.items() for place in check(SOURCES)}
    assert not set(EXEMPT) - needed


BREACHES = [
    ("every part has its floor", "extra/x.py", ""),
    ("imports go down and siblings do not meet", "store/x.py", "from proxy.api import stats"),
    ("imports go down and siblings do not meet", "store/x.py", "import proxy.routing.keypool"),
    ("imports go down and siblings do not meet", "store/x.py", "from proxy import routing"),
    ("imports go down and siblings do not meet", "errors.py", "from proxy.cli import main"),
    ("imports make no circle", "errors.py", "import proxy.types"),
    ("imports stand at the top", "relay/x.py", "def f():\n    import proxy.types"),
    ("libraries stay behind their fences", "relay/x.py", "from sqlalchemy.sql import text"),
    ("libraries stay behind their fences", "relay/x.py", "import requests"),
    ("libraries stay behind their fences", "relay/inbound.py", "import httpx"),
    ("only config reads the environment", "app.py", "import os\nx = os.environ['A']"),
    ("only config reads the environment", "app.py", "from os import getenv"),
    ("tasks live in the task group of the app", "app.py", "asyncio.create_task(f())"),
    ("tasks live in the task group of the app", "relay/x.py", "tasks.create_task(f())"),
    ("tasks live in the task group of the app", "relay/x.py", "loop.create_task(f())"),
    ("tasks live in the task group of the app", "relay/x.py", "from asyncio import TaskGroup"),
    ("only cli prints", "app.py", "print(1)"),
    ("files are short", "app.py", "\n" * 401),
    ("functions are short", "app.py", "def f():\n" + "    x\n" * 60),
    ("names say something", "store/utils.py", ""),
    ("names say something", "store/row_helpers.py", ""),
    ("names say something", "store/x.py", "class KeyManager: ..."),
    ("every source has its test", "store/untested.py", ""),
    ("packages begin empty", "store/__init__.py", "def f(): ..."),
]


@pytest.mark.parametrize(("name", "path", "text"), BREACHES)
def test_a_breach_is_seen(name: str, path: str, text: str) -> None:
    around = [source for source in SOURCES if source.path != path]
    before = set(RULES[name](around))
    assert set(RULES[name]([*around, Source(path, text)])) - before


def test_what_is_large_is_not_loaded_with_the_app() -> None:
    program = "import sys, proxy.app; print(*sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(answer.stdout.split())
    assert "proxy.relay.relay" in loaded
    assert loaded.isdisjoint({"genai_prices", "quicktok", "alembic", "uvicorn"})


NOT_OURS = {"__pycache__", "build", "data", "dist", "results", "tollkeeper.yaml"}
"""What running and building leave behind, beside hidden folders and virtual environments."""


def project_files() -> Iterator[Path]:
    """Every text file that belongs to the project."""
    folders = [ROOT]
    while folders:
        for path in folders.pop().iterdir():
            if path.is_dir():
                hidden = path.name.startswith(".") and path.name != ".ci"
                if not (hidden or path.name in NOT_OURS or (path / "pyvenv.cfg").exists()):
                    folders.append(path)
            elif path.name not in NOT_OURS and not path.suffix.startswith((".db", ".png", ".svg")):
                yield path


def test_the_project_speaks_of_itself_alone() -> None:
    """No file names the place where it was written: this checkout's, or this user's own."""
    everybodys = {"/", "/app", "/home", "/opt", "/root", "/srv", "/src", "/tmp", "/usr/src"}
    places = {str(ROOT), str(ROOT.parent), str(Path.home())} - everybodys
    found = [
        f"{path.relative_to(ROOT)}: {place}"
        for path in project_files()
        for place in places
        if re.search(rf"(?<![\w.]){re.escape(place)}(?![\w-])", path.read_text(errors="replace"))
    ]
    assert not found


def test_packages_come_from_wherever_the_machine_takes_them() -> None:
    """Locks and recipes name versions and never an index: that is for the machine to say."""
    recipes = [path for path in project_files() if re.search(r"\.lock$|file$|\.ci/", str(path))]
    assert {"Makefile", "Dockerfile", "requirements.lock"} <= {path.name for path in recipes}
    index = re.compile(
        r"--(?:extra-)?index-url|--find-links|^-[if] |https?://(?!127\.0\.0\.1)", re.M
    )
    assert not [path.name for path in recipes if index.search(path.read_text())]
