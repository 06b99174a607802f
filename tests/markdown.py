"""The code blocks of a Markdown page, each with what a comment before it says of its test.

<!-- test: GET /stats -->
```json
{"what": "an answer looks like"}
```
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]

_FENCE = re.compile(
    r"^(?P<fence>`{3,})(?P<language>\S*)[^\n]*\n(?P<text>.*?)^(?P=fence)$", re.M | re.S
)
_NOTE = re.compile(r"<!-- test: (?P<note>.+?) -->\n+$")


@dataclass(frozen=True)
class Block:
    """``note`` is what the comment says, else the language that the fence names."""

    page: str
    line: int
    language: str
    text: str
    note: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """The README and what it leads to."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    source = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(source):
        before = source[: match.start()]
        note = _NOTE.search(before)
        found.append(
            Block(
                page=page.relative_to(ROOT).as_posix(),
                line=before.count("\n") + 1,
                language=match["language"],
                text=match["text"],
                note=note["note"] if note else match["language"],
            )
        )
    return found


def rows(source: str) -> list[list[str]]:
    """The rows of every table in a page, cell by cell, without their heads."""
    found = []
    for table in re.findall(r"(?:^\|.*\|\n)+", source, re.M):
        lines = [re.split(r"(?<!\\)\|", line.strip("|")) for line in table.splitlines()]
        found += [[cell.strip() for cell in line] for line in lines[2:]]
    return found
