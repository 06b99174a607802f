"""What is installed: the lock files against ``pyproject.toml``."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOCKS = ["requirements.lock", "requirements-dev.lock", "requirements-build.lock"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins(lock: str) -> dict[str, str]:
    """Name to version and marker; fails on a line that is neither a pin nor a hash."""
    found = {}
    for line in (ROOT / lock).read_text().replace("\\\n", "").splitlines():
        match = re.fullmatch(
            r"([a-z0-9-]+)==([^\s;]+(?: ; [^#@/]+?)?)\s+(--hash=sha256:[0-9a-f]{64}\s*)+", line
        )
        assert match, f"{lock}: {line[:80]}"
        found[match[1]] = match[2].strip()
    return found


def names(requirements: list[str]) -> set[str]:
    found = {re.split(r"[\[<>=;! ]", requirement)[0] for requirement in requirements}
    return {name.lower().replace("_", "-") for name in found}


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_versions_and_hashes_and_names_no_registry(lock: str) -> None:
    assert pins(lock)


def test_every_dependency_is_locked() -> None:
    runtime = names(PROJECT["project"]["dependencies"])
    test = names(PROJECT["project"]["optional-dependencies"]["test"])
    assert runtime <= pins("requirements.lock").keys()
    assert runtime | test <= pins("requirements-dev.lock").keys()
    assert names(PROJECT["build-system"]["requires"]) <= pins("requirements-build.lock").keys()


def test_the_locks_agree() -> None:
    dev = pins("requirements-dev.lock")
    for lock in LOCKS:
        for name, version in pins(lock).items():
            # A marker may differ: what one lock needs everywhere, another needs on one system.
            assert dev[name].partition(" ;")[0] == version.partition(" ;")[0]
