from __future__ import annotations

import pytest

from proxy.routing import health as module
from proxy.routing.breaker import BreakerRules
from proxy.routing.health import Health, Turned

RULES = BreakerRules(failures=2, open_for=10, longest=40)


def health() -> tuple[Health, list[Turned]]:
    turns: list[Turned] = []
    return Health("lab", RULES, turns.append), turns


def test_a_breaker_is_for_one_model_and_tells_its_turns() -> None:
    each, turns = health()
    for _ in range(2):
        each.failed("m", "timeout", False, 5)
    assert (each.wait("m", 5), each.wait("other", 5)) == (10, 0)
    assert each.troubled()
    assert each.begin("m", 15)
    each.succeeded("m", True, 16)
    assert not each.troubled()
    told = [(t.provider, t.model, t.transition.to_state, t.transition.reason) for t in turns]
    assert told == [
        ("lab", "m", "open", "timeout"),
        ("lab", "m", "half_open", "elapsed"),
        ("lab", "m", "closed", "recovered"),
    ]


def test_a_probe_that_said_nothing_leaves_its_place() -> None:
    each, _ = health()
    for _ in range(2):
        each.failed("m", "timeout", False, 0)
    probe = each.begin("m", 10)
    assert probe
    assert each.wait("m", 10) > 0
    each.end("m", probe)
    assert each.wait("m", 10) == 0


def test_a_provider_that_can_be_reached_is_tried_at_once() -> None:
    each, _ = health()
    for _ in range(2):
        each.failed("m", "timeout", False, 0)
    each.relieve(3)
    assert each.wait("m", 3) == 0
    assert each.begin("m", 3)  # by one call


def test_new_rules_hold_for_breakers_that_there_are() -> None:
    each, _ = health()
    each.failed("m", "timeout", False, 0)
    each.configure(BreakerRules(failures=3))
    each.failed("m", "timeout", False, 0)
    assert each.wait("m", 0) == 0
    each.failed("m", "timeout", False, 0)
    assert each.wait("m", 0) > 0


def test_calls_under_way_are_counted_by_model() -> None:
    each, _ = health()
    each.begin("m", 0)
    each.begin("m", 0)
    each.begin("n", 0)
    each.end("m", False)
    assert (each.busy("m"), each.busy("n"), each.busy("o")) == (1, 1, 0)
    each.end("m", False)
    assert each.busy("m") == 0


def test_speed_is_measured_by_key_model_and_kind_of_answer() -> None:
    each, _ = health()
    each.measure("k", "m", True, 0, 0.5)
    each.measure("", "m", True, 0, 0.25)
    assert each.latency("k", "m", True, 0) == 0.5
    assert each.latency("", "m", True, 0) == 0.25
    assert each.latency("k", "m", False, 0) is None
    assert each.latencies(["x", "k", ""], "m", True, 0) == [None, 0.5, 0.25]
    assert each.latencies(["x", "k"], "n", True, 0) == [None, None]


def test_a_failure_counts_as_slow() -> None:
    each, _ = health()
    each.measure("k", "m", True, 0, 0.5)
    each.measure("k", "m", True, 0, None)
    value = each.latency("k", "m", True, 0)
    assert value is not None
    assert value > 5


def test_ten_thousand_models_leave_few_of_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 100)
    each, _ = health()
    for _ in range(2):
        each.failed("ill", "timeout", False, 0)
    for number in range(10_000):
        model = f"m{number}"
        each.begin(model, 0)
        each.measure("k", model, True, 0, 1)
        each.failed(model, "timeout", False, 0)
        each.end(model, False)
        assert len(each.breakers) <= 100
        assert len(each._latencies) <= 100
    assert not each._busy
    assert each.wait("ill", 0) > 0  # an open breaker is not forgotten for closed ones


def test_other_rules_with_another_window_begin_with_an_empty_one() -> None:
    by_rate = BreakerRules(failures=100, rate=0.5, minimum=4, window=30)
    for window, state in ((30.0, "open"), (60.0, "closed")):
        health = Health("lab", by_rate, lambda _: None)
        for _ in range(3):
            health.failed("m", "server_error", False, 1.0)
        health.configure(BreakerRules(failures=100, rate=0.5, minimum=4, window=window))
        health.failed("m", "server_error", False, 1.0)
        assert health.breakers["m"].state == state
