"""What the README and its pages say of the program is so, and nothing is left out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin
from unittest import mock

import pytest
import yaml
from pydantic import BaseModel

from proxy.api.savings import savings_router
from proxy.api.stats import (
    CompareParameters,
    Parameters,
    RankingParameters,
    SeriesParameters,
    stats_router,
)
from proxy.config import load
from proxy.errors import ErrorReason
from proxy.metering.journal import HELD
from proxy.providers.base import Dialect
from proxy.providers.ollama import Ollama
from proxy.providers.openai import OpenAI
from proxy.relay.attribution import attribution
from proxy.relay.verdict import judge
from proxy.routing.rests import BACKOFF, KEY_SECONDS
from proxy.schema import LimitSettings, Settings, TimeoutSettings
from proxy.store.engine import READERS, WRITERS, Store
from proxy.store.tables import api_calls
from proxy.types import Action
from tests.markdown import ROOT, pages, rows

README = (ROOT / "README.md").read_text()
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text()
STATS = (ROOT / "docs" / "stats.md").read_text()

STATS_PATHS = [
    *("/stats", "/stats/summary", "/stats/calls", "/stats/calls/{request_id}"),
    "/stats/calls/{request_id}/content",
    *("/stats/providers", "/stats/models", "/stats/endpoints", "/stats/errors", "/stats/keys"),
    *("/stats/timeseries", "/stats/rate-limits", "/stats/health", "/stats/health/events"),
    *("/stats/tps", "/stats/system", "/stats/events"),
    *("/stats/costs/daily", "/stats/database"),
    *("/stats/recent", "/stats/compare", "/stats/waste", "/stats/errors/fingerprints"),
    *("/stats/savings", "/stats/credits", "/stats/groups"),
]

SECTIONS = ("server", "auth", "routing", "state", "telemetry")
NAMED = {"providers": "providers.NAME", "models": "models.NAME", "prices": "prices.MODEL"}


LISTS = ("providers.NAME.keys", "models.NAME.targets", "budgets", "limits")


def settings(model: type[BaseModel], at: str = "") -> Iterator[str]:
    """The dotted name of every setting: ``providers.NAME.keys[].weight``. What is a limit, in three
    places, is told once."""
    if not at:
        yield from (f"LIMITS.{name}" for name in LimitSettings.model_fields)
    for name, field in model.model_fields.items():
        place = f"{at}.{name}" if at else NAMED.get(name, name)
        place += ".NAME" if get_origin(field.annotation) is dict and at else ""
        found = [part for part in parts(field.annotation) if issubclass(part, BaseModel)]
        if not found or LimitSettings in found:
            yield place
        for part in found:
            if part is not LimitSettings:
                yield from settings(part, f"{place}[]" if place in LISTS else place)


def parts(annotation: Any) -> list[type]:
    """The classes that an annotation is made of."""
    inner = [part for each in get_args(annotation) for part in parts(each)]
    return [annotation] if isinstance(annotation, type) and not inner else inner


def documented() -> dict[str, str]:
    """The settings of the page and their defaults, as they stand there."""
    found = [row for row in rows(CONFIGURATION) if len(row) == 3]
    return {name.strip("`"): default for name, default, _ in found}


def test_every_setting_is_documented_and_no_other() -> None:
    assert sorted(documented()) == sorted(settings(Settings))


@pytest.mark.parametrize("name", [name for name in documented() if name.split(".")[0] in SECTIONS])
def test_a_documented_default_is_the_default(name: str) -> None:
    section, *members = name.split(".")
    default = documented()[name].strip("`")
    value: Any = None if default == "unset" else yaml.safe_load(default)
    for member in reversed(members):
        value = {member: value}
    with_it = Settings(**{section: value})
    assert getattr(with_it, section) == getattr(Settings(), section)


def test_the_documented_timeouts_are_the_defaults() -> None:
    found = {
        name.rpartition(".")[2]: [float(seconds) for seconds in re.findall(r"(\d+)s", default)]
        for name, default in documented().items()
        if ".timeouts." in name
    }
    settings = TimeoutSettings()
    assert found == {
        "connect": [settings.connect],
        "first_byte": [Dialect.first_byte, Ollama.first_byte],
        "idle": [settings.idle],
    }


def test_every_variable_that_is_named_is_read() -> None:
    named = set(re.findall(r"TOLLKEEPER_\w+\b", README + CONFIGURATION + STATS))
    settable = {"TOLLKEEPER_" + name.upper().replace(".", "__") for name in settings(Settings)}
    settable |= {"TOLLKEEPER_PROVIDERS", "TOLLKEEPER_CONFIG", "TOLLKEEPER_MASTER_KEY"}
    assert named - {"TOLLKEEPER_"} <= settable


def test_the_example_shows_every_setting() -> None:
    example = (ROOT / "config" / "tollkeeper.example.yaml").read_text()
    for name in settings(Settings):
        assert re.search(rf"\b{name.removesuffix('.NAME').rpartition('.')[2]}\b", example), name


def test_every_stats_path_is_documented_with_its_output() -> None:
    for path in STATS_PATHS:
        assert f"`{path}`" in STATS, path
    shown = re.findall(r"<!-- test: GET ([^\s?]+)", README + STATS)
    assert {path for path in STATS_PATHS if "{" not in path} == set(shown)


def test_there_are_no_other_stats_paths() -> None:
    routers = (stats_router(Store(None), mock.Mock()), savings_router(*[mock.Mock()] * 3))
    paths = [route.path for router in routers for route in router.routes]  # type: ignore[attr-defined]
    assert sorted(paths) == sorted(STATS_PATHS)


def test_every_parameter_is_documented() -> None:
    for parameters in (Parameters, SeriesParameters, CompareParameters, RankingParameters):
        for name in parameters.model_fields:
            assert f"`{name}`" in STATS, name


def test_every_reason_is_documented() -> None:
    for reason in ErrorReason:
        assert f"`{reason}`" in STATS, reason


def test_the_columns_that_are_explained_exist() -> None:
    table = STATS[STATS.index("| Column |") :].partition("\n\n")[0] + "\n"
    names = [name for row in rows(table) for name in re.findall(r"`(\w+)`", row[0])]
    assert len(names) > 20
    assert set(names) <= set(api_calls.c.keys())


def test_the_figures_are_the_programs() -> None:
    assert f"{', '.join(f'{seconds:g}' for seconds in BACKOFF)} s" in README
    assert f"{KEY_SECONDS / 60:g} minutes" in README
    assert f"{HELD:,} more in memory" in README
    assert f"{Settings().telemetry.journal.max_bytes / 2**30:g} GiB of rows" in README


def refusals() -> Iterator[tuple[int, bytes, str, str]]:
    """Of the README's table each status, a body, what happens to the key and to the request."""
    for says, key, request in [row for row in rows(README) if len(row) == 3]:
        code = "rate_limit_exceeded" if "Groq" in says else None
        body = json.dumps({"error": {"message": "No", "code": code}}).encode()
        for status in re.findall(r"\b[45](?:\d\d|xx)\b", says.partition("(")[0]):
            yield int(status.replace("xx", "00")), body, key, request


@pytest.mark.parametrize(("status", "body", "key", "request_"), list(refusals()))
def test_what_follows_a_refusal_is_what_the_table_says(
    status: int, body: bytes, key: str, request_: str
) -> None:
    verdict = judge(OpenAI().classify(status, [], body, 0.0))
    said = {"next key": Action.NEXT_KEY, "next target": Action.NEXT_TARGET, "comes": Action.STOP}
    assert verdict.action == next(said[words] for words in said if request_.startswith(words))
    assert (verdict.rests == "none") == (key == "stays")


def test_the_headers_that_name_the_caller_are_the_ones_that_are_read() -> None:
    paragraph = README[README.index("**Say who is calling.**") :].partition("\n\n")[0]
    names = [name for name in re.findall(r"`([\w-]+)`", paragraph) if name[0] == "X"]
    for name in [*names, "traceparent"]:
        value = f"00-{'a' * 32}-{'b' * 16}-01".encode()
        assert attribution([(name.lower().encode(), value)]) != attribution([]), name


def test_links_lead_somewhere() -> None:
    for page in pages():
        text = page.read_text()
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
            file, _, anchor = target.partition("#")
            found = page.parent / file if file else page
            assert found.exists(), f"{page}: {target}"
            if anchor:
                titles = re.findall(r"^#+ (.+)$", found.read_text(), re.M)
                assert anchor in [title.lower().replace(" ", "-") for title in titles], target


def test_the_short_file_of_the_readme_can_stand_alone(tmp_path: Path) -> None:
    """Without any of its variables it still serves what is left."""
    block = README[README.index("A file can be as short") :].split("```")[1]
    file = tmp_path / "tollkeeper.yaml"
    file.write_text(block.removeprefix("yaml\n"))
    assert list(load(file, {}, {}).providers) == ["lab"]


def test_the_connections_are_as_many_as_the_readme_says() -> None:
    """That they are no more is tested in ``tests/store/test_databases.py``."""
    formula = f"processes * ({WRITERS} for writing + {READERS['postgresql']} for reading)"
    assert formula in README
