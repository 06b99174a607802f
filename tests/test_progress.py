from __future__ import annotations

from io import StringIO

import pytest

from proxy import progress
from proxy.progress import Progress, bar


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("done", "total", "text"),
    [
        (0, 1000, f"[{'.' * 30}]   0%  0 of 1,000 rows"),
        (250, 1000, f"[{'#' * 7}{'.' * 23}]  25%  250 of 1,000 rows, 30 s left"),
        (1000, 1000, f"[{'#' * 30}] 100%  1,000 of 1,000 rows"),
        (1500, 1000, f"[{'#' * 30}] 100%  1,500 of 1,500 rows"),
        (0, 0, f"[{'#' * 30}] 100%  0 of 0 rows"),
    ],
)
def test_a_bar_says_how_far_it_is_and_how_long_it_will_take(
    done: int, total: int, text: str
) -> None:
    assert bar(done, total, 10.0) == text


def test_a_terminal_sees_it_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    terminal = Terminal()
    shown = Progress(4, terminal)
    for now[0] in (0.05, 0.2, 0.25):
        shown.add(1)
    shown.close()
    pictures = terminal.getvalue().split("\r")
    assert ["2 of 4" in pictures[1], "3 of 4" in pictures[2], len(pictures)] == [True, True, 3]
    assert terminal.getvalue().endswith("\n")


def test_nobody_else_sees_anything() -> None:
    stream = StringIO()
    shown = Progress(1, stream)
    shown.add(1)
    shown.close()
    assert stream.getvalue() == ""
