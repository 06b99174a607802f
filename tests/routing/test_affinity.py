from __future__ import annotations

import subprocess
import sys
from itertools import permutations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.routing.affinity import Affinity, rendezvous

SESSIONS = [f"session-{n}" for n in range(20_000)]

# Where a session belongs.


def test_a_session_belongs_to_one_name_whatever_their_order() -> None:
    weights = {"groq": 1.0, "gemini": 2.0, "lab": 0.5}
    for session in SESSIONS[:200]:
        found = {
            order[rendezvous(session, order, [weights[name] for name in order])]
            for order in permutations(weights)
        }
        assert len(found) == 1


def test_every_process_agrees() -> None:
    names, weights = ["groq", "gemini", "lab"], [1.0, 2.0, 0.5]
    here = [rendezvous(session, names, weights) for session in SESSIONS[:50]]
    code = (
        "from proxy.routing.affinity import rendezvous\n"
        f"print([rendezvous(f'session-{{n}}', {names}, {weights}) for n in range(50)])"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert there.stdout.strip() == str(here)
    assert here[:10] == [2, 1, 0, 1, 1, 1, 0, 1, 1, 1]  # nor may it change between versions


@pytest.mark.parametrize("weights", [[1, 1, 1, 1], [1, 2, 3, 4], [0.5, 0.5, 9, 10]])
def test_sessions_are_shared_by_weight(weights: list[float]) -> None:
    names = ["groq/a", "groq/b", "gemini/a", "lab/a"]
    taken = [rendezvous(session, names, weights) for session in SESSIONS]
    for index, weight in enumerate(weights):
        share = taken.count(index) / len(SESSIONS)
        assert share == pytest.approx(weight / sum(weights), abs=0.0125)


def test_only_the_sessions_of_a_name_that_leaves_move_and_by_weight() -> None:
    names, weights = ["a", "b", "c", "d"], [1.0, 2.0, 1.0, 4.0]
    before = [names[rendezvous(session, names, weights)] for session in SESSIONS]
    left, left_weights = ["a", "b", "c"], [1.0, 2.0, 1.0]
    after = [left[rendezvous(session, left, left_weights)] for session in SESSIONS]
    moved = [new for old, new in zip(before, after, strict=True) if old == "d"]
    assert all(old == new for old, new in zip(before, after, strict=True) if old != "d")
    assert moved.count("b") / len(moved) == pytest.approx(0.5, abs=0.025)


def test_a_name_without_weight_is_never_taken_before_another() -> None:
    assert {rendezvous(session, ["a", "b"], [0, 1e-9]) for session in SESSIONS[:200]} == {1}
    assert rendezvous("s", ["a", "b"], [0, 0]) == 0


@example("\ud800", ["half a pair"])
@given(st.text(), st.lists(st.text(), min_size=1))
def test_any_text_is_a_session(session: str, names: list[str]) -> None:
    assert 0 <= rendezvous(session, names, [1.0] * len(names)) < len(names)


# What is remembered.


def test_a_session_keeps_its_name() -> None:
    affinity = Affinity()
    assert affinity.get("s", 0) is None
    affinity.keep("s", "groq", 0)
    affinity.keep("t", "lab", 0)
    affinity.keep("s", "gemini", 1)
    assert (affinity.get("s", 2), affinity.get("t", 2)) == ("gemini", "lab")


def test_a_session_is_forgotten_some_time_after_its_last_use() -> None:
    affinity = Affinity(ttl=100)
    affinity.keep("s", "groq", 0)
    assert affinity.get("s", 99) == "groq"
    assert affinity.get("s", 198) == "groq"
    assert affinity.get("s", 298) is None
    assert len(affinity) == 0


def test_the_session_not_used_for_longest_makes_room() -> None:
    affinity = Affinity(capacity=2)
    affinity.keep("a", "groq", 0)
    affinity.keep("b", "groq", 1)
    affinity.get("a", 2)
    affinity.keep("c", "groq", 3)
    assert [affinity.get(session, 4) for session in "abc"] == ["groq", None, "groq"]


@settings(deadline=None)
@given(
    st.integers(0, 4),
    st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans(), st.integers(0, 5))),
)
def test_it_agrees_with_a_plain_list_of_uses(
    capacity: int, steps: list[tuple[str, bool, int]]
) -> None:
    affinity, now = Affinity(capacity, ttl=8), 0.0
    kept: list[tuple[str, str, float]] = []  # session, name, last use; the oldest first
    for number, (session, keeps, wait) in enumerate(steps):
        now += wait
        mine = [each for each in kept if each[0] == session]
        kept = [each for each in kept if each[0] != session]
        if keeps:
            affinity.keep(session, f"name-{number}", now)
            kept = [*kept, (session, f"name-{number}", now)][-capacity:] if capacity else []
        else:
            alive = [name for _, name, used in mine if now - used < 8]
            assert affinity.get(session, now) == (alive[0] if alive else None)
            kept += [(session, name, now) for name in alive]
        assert len(affinity) == len(kept)
