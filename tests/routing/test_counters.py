from __future__ import annotations

from datetime import datetime, tzinfo
from zoneinfo import ZoneInfo

import pytest

from proxy.routing import counters as module
from proxy.routing.counters import Allowance, Allowances, Counters, Owner
from proxy.routing.limits import DAY, MINUTE, Counter, Daily, Limit, Sliding, Slots

UTC = ZoneInfo("UTC")
NOON = datetime(2026, 7, 1, 12, tzinfo=UTC).timestamp()
NOW = 1000.0
TOLD = [
    (b"x-ratelimit-limit-requests", b"100"),
    (b"x-ratelimit-remaining-requests", b"0"),
    (b"x-ratelimit-reset-requests", b"50s"),
]


def rpm(amount: int) -> Allowance:
    return Allowance((Limit("requests", amount, MINUTE),))


def counters(day: tzinfo | None = UTC, **allowances: dict[str, Allowance]) -> Counters:
    """At noon, which is NOW."""
    each = Counters(day, lambda: NOON)
    each.configure(Allowances(**allowances))
    return each


def call(each: Counters, key: str = "k", group: str = "g", model: str = "m") -> tuple[str, ...]:
    """Make a call if every counter has room for it; what says no, of those that do."""
    found = each.of(key, group, model)
    full = tuple(counter.why for counter in found if counter.wait(NOW, 10))
    if not full:
        for counter in found:
            counter.take(NOW, 10)
    return full


def calls(each: Counters, key: str = "k", group: str = "g", model: str = "m") -> int:
    """How many calls can be made, up to 99."""
    return next((number for number in range(99) if call(each, key, group, model)), 99)


def used(each: Counters) -> dict[Owner, int]:
    return {owner: window.used for owner, window in each.windows()}


def test_without_limits_all_goes() -> None:
    each = counters()
    assert each.of("k", "g", "m") == ()
    assert not each.limits(MINUTE)


def test_limits_of_key_group_and_model_hold_together() -> None:
    each = counters(keys={"k": rpm(2)}, groups={"g": rpm(5)}, models={"m": rpm(4)})
    assert calls(each) == 2
    assert calls(each, "sibling") == 2
    assert calls(each, "sibling", model="n") == 1
    assert calls(each, "stranger", "h") == 4
    assert calls(each, "stranger", "h", "n") == 99
    assert used(each) == {
        ("k", "g", ""): 2,
        ("", "g", ""): 5,
        ("", "g", "m"): 4,
        ("", "h", "m"): 4,
    }


def test_a_day_of_the_providers_ends_at_its_midnight_and_any_other_day_slides() -> None:
    day = Allowance((Limit("requests", 1, DAY), Limit("tokens", 9, MINUTE)), 3)
    fixed, sliding = counters(groups={"g": day}), counters(None, groups={"g": day})
    kinds = [[type(each) for each in one.of("k", "g", "m")] for one in (fixed, sliding)]
    assert kinds == [[Daily, Sliding, Slots], [Sliding, Sliding, Slots]]
    assert fixed.limits(DAY)
    assert fixed.limits(MINUTE)
    assert not fixed.limits(3600)


@pytest.mark.parametrize(
    ("pattern", "model", "matches"),
    [
        ("*", "anything/at:all", True),
        ("*", "two\nlines", True),
        ("gemini-*-lite", "gemini-2.5-flash-lite", True),
        ("gemini-*-lite", "gemini-2.5-flash", False),
        ("*:free", "a/b:free", True),
        ("a.b", "axb", False),
        ("m", "mm", False),
    ],
)
def test_a_star_stands_for_any_part_of_a_name(pattern: str, model: str, matches: bool) -> None:
    each = counters(models={pattern: rpm(1)})
    assert bool(each.of("k", "g", model)) is matches


def test_each_model_that_a_pattern_matches_is_counted_by_itself_and_the_first_pattern_holds() -> (
    None
):
    each = counters(models={"a*": rpm(1), "*": rpm(3)})
    assert [calls(each, model=model) for model in ("a1", "a2", "b")] == [1, 1, 3]


def test_what_an_answer_told_holds_for_its_group_and_model() -> None:
    each = counters()
    assert each.of("k", "g", "m") == ()
    each.hear("g", "m", TOLD, NOW, NOW)
    assert len(call(each)) == 1
    assert len(call(each, "sibling")) == 1
    assert not call(each, model="n")
    assert not call(each, "stranger", "h")
    each.hear("g", "m", [(name, value.replace(b"0", b"1")) for name, value in TOLD], NOW, NOW)
    assert not call(each)
    assert [model for model, told in each.told("g") if told.now(NOW)] == ["m"]
    assert list(each.told("h")) == []


def test_headers_of_no_meaning_are_not_heard() -> None:
    each = counters()
    each.hear("g", "m", TOLD[:2], NOW, NOW)
    assert each.of("k", "g", "m") == ()


# A change of configuration.


def test_a_limit_that_stays_goes_on_counting_also_with_another_amount() -> None:
    each = counters(keys={"k": rpm(5)}, groups={"g": rpm(5)}, models={"m": rpm(5)})
    assert calls(each) == 5
    version = each.version
    each.configure(
        Allowances(keys={"k": rpm(5)}, groups={"g": rpm(7)}, models={"m": rpm(6), "x": rpm(1)})
    )
    assert each.version > version
    limits = {owner: (window.limit.amount, window.used) for owner, window in each.windows()}
    assert limits == {("k", "g", ""): (5, 5), ("", "g", ""): (7, 5), ("", "g", "m"): (6, 5)}
    assert calls(each) == 0
    assert calls(each, "sibling") == 1


def test_calls_that_are_under_way_while_a_limit_changes_are_settled_in_it() -> None:
    def allowance(amount: int) -> Allowances:
        return Allowances(groups={"g": Allowance((Limit("tokens", amount, MINUTE),), amount)})

    each = counters()
    each.configure(allowance(50))
    taken = each.of("k", "g", "m")
    for counter in taken:
        counter.take(NOW, 10)
    each.configure(allowance(60))
    assert [_used(counter) for counter in each.of("k", "g", "m")] == [10, 1]
    for counter in taken:
        counter.ended(NOW, 10, 45)
    window, slots = each.of("k", "g", "m")
    assert (_used(window), _used(slots)) == (45, 0)
    assert window.wait(NOW, 20) > 0
    assert window.wait(NOW + 61, 60) == 0
    assert _used(window) == 0


def _used(counter: Counter) -> int:
    assert isinstance(counter, Sliding | Slots)
    return counter.used


def test_a_limit_that_is_gone_is_not_shown_any_more() -> None:
    each = counters(groups={"g": Allowance((Limit("requests", 1, MINUTE),), 1)})
    assert calls(each) == 1
    each.configure(Allowances())
    assert list(each.windows()) == []
    assert list(each.slots()) == []
    assert calls(each) == 99


def test_what_was_told_outlives_a_change_of_configuration() -> None:
    each = counters()
    each.hear("g", "m", TOLD, NOW, NOW)
    each.configure(Allowances())
    assert len(call(each)) == 1


def test_a_key_in_another_group_counts_there() -> None:
    each = counters(groups={"g": rpm(1), "h": rpm(1)})
    assert calls(each, group="g") == 1
    assert calls(each, group="h") == 1


# Several gateways.


def test_a_share_is_a_part_of_each_limit_also_of_one_that_is_new() -> None:
    each = counters(groups={"g": rpm(10)}, keys={"k2": rpm(10)})
    assert calls(each) == 10
    each.share(0.5)
    assert call(each) == ("requests_minute 10/5",)
    each.configure(Allowances(groups={"g": rpm(30)}, keys={"k2": rpm(4)}))
    assert calls(each, "k2") == 2
    each.share(1.0)
    assert calls(each) == 30 - 12


def test_a_window_that_others_have_used_up_is_blocked_by_its_name() -> None:
    each = counters(groups={"g": rpm(10), "h": rpm(10)})
    (window,) = each.of("k", "g", "m")
    assert isinstance(window, Sliding)
    assert window.name == '["","g","","requests_minute"]'
    each.of("k", "h", "m")
    each.block(window.name, NOW + 7)
    assert window.wait(NOW, 1) == 7
    assert not call(each, "k", "h")


# After a restart.


def test_what_was_used_before_a_restart_counts() -> None:
    each = counters(
        keys={"k": rpm(5)},
        groups={"g": Allowance((Limit("tokens", 100, MINUTE), Limit("requests", 50, DAY)))},
    )
    each.replay(MINUTE, ("k", "g", "m"), NOW - 30, 2, 40, NOW)
    each.replay(MINUTE, ("k", "g", "m"), NOW - 90, 2, 40, NOW)
    each.replay(DAY, ("k", "g", "m"), NOW - 3600, 9, 1000, NOW)
    each.replay(DAY, ("k", "g", "m"), NOW - 13 * 3600, 9, 1000, NOW)  # yesterday
    counted = {}
    for (key, _, _), window in each.windows():
        window.forget(NOW)
        counted[key, window.limit.type] = window.used
    assert counted == {
        ("k", "requests_minute"): 2,
        ("", "tokens_minute"): 40,
        ("", "requests_day"): 9,
    }


def test_a_day_ends_when_it_does_also_after_a_restart() -> None:
    each = counters(groups={"g": Allowance((Limit("requests", 1, DAY),))})
    each.replay(DAY, ("k", "g", "m"), NOW - 11 * 3600, 1, 10, NOW)
    (day,) = each.of("k", "g", "m")
    assert day.wait(NOW, 1) == 12 * 3600


# Bounds.


def test_ten_thousand_models_leave_few_counters_and_those_of_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_MOST", 100)
    each = counters(
        keys={"k": rpm(20_000), "idle": rpm(5)}, models={"*": Allowance((), 3), "m*": rpm(5)}
    )
    assert not call(each, "idle")
    for number in range(10_000):
        model = f"{'mx'[number % 2]}{number}"
        assert not call(each, model=model)
        each.hear(
            "g", model, [(name, b"99" if b"rem" in name else v) for name, v in TOLD], NOW, NOW
        )
        assert len(each._counters) <= 103
        assert len(each._of) <= 100
        assert len(each._told) <= 100
    assert used(each)["k", "g", ""] == 10_000
    assert used(each)["idle", "g", ""] == 1
