"""The configuration file as plain data: YAML, read strictly, with ``${NAME}`` filled in."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from proxy.errors import ConfigError

Location = tuple[str | int, ...]

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C parser where it was built

_REFERENCE = re.compile(
    r"\$(?:(?P<literal>\$)|\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^{}]*))?\}|(?P<bad>\{))"
)


class Document(NamedTuple):
    """A file's data, and for each text that refers to an unset variable its place and the name.

    Such a text stands as "" in the data: what an unset variable means is not known here.
    """

    data: dict[str, Any]
    unset: dict[Location, str]


def read(path: Path, environ: Mapping[str, str]) -> Document:
    """Read a file; ``${NAME}`` and ``${NAME:-default}`` stand for variables of ``environ``.

    As in a shell the default also replaces an empty value, and ``$$`` is a dollar sign. Raises
    ConfigError, and quotes nothing from the file: any word in it may be a secret.
    """
    try:
        content = _parse(path)
        if content is None:
            return Document({}, {})
        if not isinstance(content, dict):
            raise ConfigError([f"{path}: must be a mapping of settings"])
        filling = _Filling(path, environ)
        data = filling.fill(content, ())
    except RecursionError:  # an anchor that holds itself
        raise ConfigError([f"{path}: is nested without end"]) from None
    if filling.mistakes:
        raise ConfigError(filling.mistakes)
    return Document(data, filling.unset)


def line(source: str, at: Location, words: str) -> str:
    """One mistake as one line: ``FILE: providers.groq.keys[0].weight: must be ...``."""
    return f"{source}: {dotted(at)}: {words}" if at else f"{source}: {words}"


def dotted(location: Location) -> str:
    """A place in the configuration as users write it: ``providers.groq.keys[0].weight``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".")


def _parse(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(encoding="utf-8-sig"), _StrictLoader)
    except FileNotFoundError:
        raise ConfigError([f"{path}: no such file"]) from None
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: is not text in UTF-8"]) from None
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" line {mark.line + 1}, column {mark.column + 1}:" if mark else ""
        raise ConfigError([f"{path}:{where} {_problem(error)}"]) from None
    except (yaml.YAMLError, ValueError):
        raise ConfigError([f"{path}: is not YAML"]) from None


def _problem(error: yaml.MarkedYAMLError) -> str:
    """The parser's words, without those that it quotes from the file."""
    problem = error.problem or error.context or "is not YAML"
    return re.sub(r"""(['"])[^'"\s]{2,}\1""", "this", problem.splitlines()[0])


class _StrictLoader(_Loader):  # type: ignore[misc]
    """Refuses a key that stands twice in one mapping, where YAML lets the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            if (key_node.tag, key_node.value) in seen:
                raise yaml.constructor.ConstructorError(
                    problem="this key stands here twice", problem_mark=key_node.start_mark
                )
            seen.add((key_node.tag, key_node.value))
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping


class _Filling:
    """One walk over the data that fills in the variables."""

    def __init__(self, path: Path, environ: Mapping[str, str]) -> None:
        self.path = path
        self.environ = environ
        self.mistakes: list[str] = []
        self.unset: dict[Location, str] = {}

    def fill(self, node: Any, at: Location) -> Any:
        """``node`` with its texts filled in."""
        if isinstance(node, dict):
            if not all(isinstance(key, str) for key in node):
                self._mistake(at, "each name in it must be text (put it in quotes)")
            return {key: self.fill(value, (*at, key)) for key, value in node.items()}
        if isinstance(node, list):
            return [self.fill(item, (*at, index)) for index, item in enumerate(node)]
        if isinstance(node, str) and "$" in node:
            text = _REFERENCE.sub(lambda match: self._value(match, at), node)
            return "" if at in self.unset else text
        return node

    def _value(self, match: re.Match[str], at: Location) -> str:
        if match["literal"]:
            return "$"
        if match["bad"]:
            self._mistake(at, "write ${NAME} or ${NAME:-default}, and $$ for a dollar sign")
            return ""
        value = self.environ.get(match["name"])
        if match["default"] is not None:
            return value or str(match["default"])
        if value is None:
            self.unset.setdefault(at, match["name"])
        return value or ""

    def _mistake(self, at: Location, words: str) -> None:
        self.mistakes.append(line(str(self.path), at, words))
