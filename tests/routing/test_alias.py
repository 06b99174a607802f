from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import ErrorReason
from proxy.routing.alias import OUTPUT_TOKENS, Alias, Candidate, Strategy
from proxy.routing.counters import Counters
from proxy.routing.key import Key
from proxy.routing.keypool import KeyLease, KeyPool
from proxy.types import Action, Demand, Target, Verdict

NOBODY = Demand()
A, B, C = (Target(name, "m") for name in "abc")
STRATEGIES: tuple[Strategy, ...] = (
    "fallback",
    "weighted",
    "round_robin",
    "least_busy",
    "lowest_latency",
    "lowest_cost",
    "sticky",
)


def pools(names: str = "abc") -> dict[str, KeyPool]:
    """Providers with one key each."""
    return {
        name: KeyPool(name, [Key("k", "s", "g")], Counters(None, lambda: 0.0), chance=lambda: 1.0)
        for name in names
    }


def weighing(**weights: float) -> list[Candidate]:
    return [Candidate(Target(name, "m"), 1, weight) for name, weight in weights.items()]


def alias(strategy: Strategy, *candidates: Candidate, **others: object) -> Alias:
    each = candidates or weighing(a=1, b=1, c=1)
    return Alias(each, strategy, **({"pools": pools()} | others))  # type: ignore[arg-type]


def take(pool: KeyPool, now: float = 0, *, stream: bool = False) -> KeyLease:
    lease = pool.lease("m", now, stream=stream)
    assert lease is not None
    return lease


def rest(pool: KeyPool, seconds: float = 60, now: float = 0) -> None:
    """The provider's only key rests."""
    verdict = Verdict(Action.NEXT_KEY, rests="group", cooldown=seconds)
    pool.park(pool.keys[0], "m", verdict, ErrorReason.RATE_LIMIT, now)


def measure(pool: KeyPool, seconds: float, *, stream: bool = False) -> None:
    lease = take(pool, stream=stream)
    lease.succeeded(0, seconds)
    lease.release()


def firsts(found: Alias, rounds: int, demand: Demand = NOBODY, now: float = 0) -> Counter[str]:
    return Counter(found.order(demand, now)[0].provider for _ in range(rounds))


# Tiers, and who cannot serve.


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_lower_tier_comes_first_whatever_the_strategy(strategy: Strategy) -> None:
    found = alias(strategy, Candidate(A, 3), Candidate(B, 1, 0.01), Candidate(C, 2, 100))
    for _ in range(5):
        assert found.order(NOBODY, 0) == (B, C, A)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_tier_keeps_its_place_though_none_of_it_can_serve(strategy: Strategy) -> None:
    """It is passed over when it has no key to give, and serves again as soon as it can."""
    each = pools()
    rest(each["a"])
    rest(each["b"])
    found = alias(strategy, Candidate(A), Candidate(B), Candidate(C, 2), pools=each)
    assert set(found.order(NOBODY, 0)[:2]) == {A, B}


@pytest.mark.parametrize("strategy", [each for each in STRATEGIES if each != "fallback"])
@pytest.mark.parametrize("session", [None, "s"])
def test_who_cannot_serve_comes_last_in_its_tier_and_back_when_it_can(
    strategy: Strategy, session: str | None
) -> None:
    each = pools("abcd")
    candidates = [*weighing(a=100, b=1, c=1), Candidate(Target("d", "m"), 2)]
    found = alias(strategy, *candidates, pools=each, cost=lambda *_: 1)
    demand = Demand(session=session)
    rest(each["a"], 60)
    for _ in range(20):
        order = found.order(demand, 30)
        assert [target.provider for target in order[2:]] == ["a", "d"]
    assert "a" in {found.order(demand, 60)[0].provider for _ in range(3)} or strategy == "sticky"
    assert found.order(demand, 60)[2] != A


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_to_look_takes_no_turn(strategy: Strategy) -> None:
    found, other = alias(strategy), alias(strategy)
    for _ in range(5):
        assert found.order(NOBODY, 0, take=False) == other.order(NOBODY, 0, take=False)
        assert found.order(NOBODY, 0, take=False) == found.order(NOBODY, 0)
        other.order(NOBODY, 0)


def test_an_open_breaker_puts_a_target_behind_the_others() -> None:
    each = pools()
    for _ in range(5):
        lease = take(each["a"])
        lease.failed(Verdict(Action.NEXT_KEY, failure=True), ErrorReason.SERVER_ERROR, 0)
        lease.release()
    found = alias("lowest_cost", pools=each)
    assert found.order(NOBODY, 9) == (B, C, A)
    assert found.order(NOBODY, 10) == (A, B, C)  # a call may probe


def test_a_fallback_never_changes_its_order() -> None:
    each = pools()
    rest(each["a"])
    take(each["b"])
    assert alias("fallback", pools=each).order(NOBODY, 0) == (A, B, C)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcd"), st.sampled_from("mn"), st.integers(1, 3), st.floats(0.01, 100)
        ),
        min_size=1,
        unique_by=lambda each: each[:2],
    ),
    st.sampled_from(STRATEGIES),
    st.lists(
        st.tuples(
            st.sampled_from(["rest", "take", "serve"]),
            st.sampled_from("abcd"),
            st.none() | st.sampled_from(["s", "t"]),
        ),
        max_size=20,
    ),
    st.randoms(use_true_random=False),
)
def test_the_order_is_always_a_permutation_of_the_targets(
    candidates: list[tuple[str, str, int, float]],
    strategy: Strategy,
    steps: list[tuple[str, str, str | None]],
    random: Random,
) -> None:
    each = pools("abcd")
    found = Alias(
        [Candidate(Target(name, model), tier, weight) for name, model, tier, weight in candidates],
        strategy,
        pools=each,
        cost=lambda *_: random.choice([None, 0, 3]),
        chance=random.random,
    )
    tiers = {Target(name, model): tier for name, model, tier, _ in candidates}
    for now, (step, name, session) in enumerate([*steps, ("take", "a", "s")]):
        demand = Demand(session=session, stream=random.random() < 0.5)
        order = found.order(demand, now)
        assert len(order) == len(tiers)
        assert set(order) == set(tiers)
        assert [tiers[target] for target in order] == sorted(tiers.values())
        match step:
            case "rest":
                rest(each[name], 3, now)
            case "serve":
                found.served(random.choice(order), demand, now)
            case "take" if each[name].open("m", now):
                lease = take(each[name], now)
                lease.succeeded(now, random.random())
                if random.random() < 0.5:
                    lease.release()


# Taking turns.


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=4))
def test_targets_are_taken_by_weight(weights: list[float]) -> None:
    named = dict(zip("abcd", weights, strict=False))
    taken = firsts(alias("weighted", *weighing(**named), pools=pools("abcd")), 4000)
    for name, weight in named.items():
        share = 4000 * weight / sum(weights)
        assert abs(taken[name] - share) <= max(2, 0.05 * share)


def test_turns_by_weight_go_smoothly() -> None:
    found = alias("weighted", *weighing(a=5, b=1, c=1))
    order = "".join(found.order(NOBODY, 0)[0].provider for _ in range(14))
    assert order == "aaabcaa" * 2


def test_in_a_round_weights_do_not_count_not_even_at_first() -> None:
    found = alias("round_robin", *weighing(a=0.001, b=1, c=100))
    assert [found.order(NOBODY, 0)[0].provider for _ in range(6)] == list("abcabc")


@pytest.mark.parametrize("strategy", ["weighted", "round_robin", "least_busy"])
def test_after_a_rest_nobody_makes_up_for_lost_turns(strategy: Strategy) -> None:
    each = pools()
    found = alias(strategy, pools=each)
    rest(each["a"], 60)
    assert firsts(found, 300, now=59) == {"b": 150, "c": 150}
    taken = firsts(found, 300, now=60)
    assert all(abs(taken[name] - 100) <= 1 for name in "abc")


def test_whoever_fails_is_followed_by_whose_turn_is_next() -> None:
    found = alias("round_robin")
    assert [found.order(NOBODY, 0) for _ in range(3)] == [(A, B, C), (B, C, A), (C, A, B)]


# The least busy.


def test_the_least_busy_comes_first_by_its_weight() -> None:
    each = pools()
    found = alias("least_busy", *weighing(a=1, b=4, c=2), pools=each)
    for name, calls in {"a": 1, "b": 3, "c": 2}.items():
        for _ in range(calls):
            take(each[name])
    assert found.order(NOBODY, 0)[0] == B  # three quarters of a call, and a whole one twice
    take(each["b"])
    take(each["b"])
    assert found.order(NOBODY, 0)[2] == B


def test_calls_of_other_models_do_not_count() -> None:
    each = pools()
    found = alias("least_busy", pools=each)
    for _ in range(5):
        assert each["a"].lease("other", 0)
    take(each["b"])
    assert found.order(NOBODY, 0)[0] == A


def test_among_equally_busy_ones_turns_go_by_weight() -> None:
    """A gateway with little to do has never a call under way when the next one comes."""
    assert firsts(alias("least_busy", *weighing(a=1, b=2, c=1)), 400) == {
        "a": 100,
        "b": 200,
        "c": 100,
    }


# The soonest.


def test_the_soonest_comes_first_and_then_the_next() -> None:
    each = pools()
    for name, seconds in {"a": 0.4, "b": 0.1, "c": 0.2}.items():
        measure(each[name], seconds)
    assert alias("lowest_latency", pools=each).order(NOBODY, 0) == (B, C, A)


def test_streams_are_measured_by_themselves() -> None:
    each = pools()
    for name, seconds in {"a": 0.1, "b": 0.2, "c": 0.3}.items():
        measure(each[name], seconds)
        measure(each[name], 1 - seconds, stream=True)
    found = alias("lowest_latency", pools=each)
    assert found.order(Demand(stream=False), 0) == (A, B, C)
    assert found.order(Demand(stream=True), 0) == (C, B, A)


def test_an_unmeasured_target_is_measured_and_else_comes_last() -> None:
    each = pools()
    measure(each["b"], 0.2)
    measure(each["c"], 0.1)
    found = alias("lowest_latency", pools=each)
    assert found.order(NOBODY, 0) == (A, C, B)
    take(each["a"])
    assert found.order(NOBODY, 0) == (C, B, A)


def test_now_and_then_another_than_the_soonest_comes_first() -> None:
    each = pools()
    for name, seconds in {"a": 0.4, "b": 0.1, "c": 0.2}.items():
        measure(each[name], seconds)
    found = alias("lowest_latency", pools=each, chance=Random(1).random)
    taken = firsts(found, 2000)
    assert taken["b"] > 1800
    assert taken["a"] > 20 < taken["c"]


# The cheapest.


def costing(prices: Mapping[str, int | None]) -> Alias:
    return alias("lowest_cost", cost=lambda target, *_: prices[target.provider])


def test_the_free_comes_before_the_cheap_and_the_unknown_last() -> None:
    assert costing({"a": None, "b": 7, "c": 0}).order(NOBODY, 0) == (C, B, A)
    assert costing({"a": None, "b": None, "c": 9}).order(NOBODY, 0) == (C, A, B)


def test_equal_prices_keep_their_order() -> None:
    found = costing({"a": 0, "b": 0, "c": 0})
    assert {found.order(NOBODY, 0) for _ in range(5)} == {(A, B, C)}


@pytest.mark.parametrize(
    ("tokens", "max_tokens", "first"),
    [(10, None, B), (10, 10_000, B), (10, 1, A), (10_000, None, A), (10_000, 100, A)],
)
def test_the_expected_tokens_decide_what_is_cheap(
    tokens: int, max_tokens: int | None, first: Target
) -> None:
    """``a`` takes little for what it reads and much for what it writes, ``b`` the other way."""
    rates = {A: (1, 10), B: (5, 5)}
    found = alias(
        "lowest_cost",
        *weighing(a=1, b=1),
        cost=lambda target, read, written: rates[target][0] * read + rates[target][1] * written,
    )
    assert found.order(Demand(tokens, max_tokens), 0)[0] == first


def test_an_answer_is_taken_to_be_as_long_as_is_usual_and_not_longer_than_is_allowed() -> None:
    asked: list[tuple[int, int]] = []
    found = alias("lowest_cost", cost=lambda _, read, written: asked.append((read, written)))
    for allowed in (None, 20, 10**6):
        found.order(Demand(7, allowed), 0)
    assert list(dict.fromkeys(asked)) == [(7, OUTPUT_TOKENS), (7, 20)]


# Sessions.


def test_a_session_keeps_its_target() -> None:
    found = alias("sticky")
    for number in range(20):
        demand = Demand(session=f"s{number}")
        assert len({found.order(demand, 0)[0] for _ in range(10)}) == 1


def test_sessions_are_spread_by_weight() -> None:
    found = alias("sticky", *weighing(a=1, b=2, c=1))
    taken = Counter(
        found.order(Demand(session=f"s{number}"), 0)[0].provider for number in range(4000)
    )
    assert {name: round(count / 1000) for name, count in taken.items()} == {"a": 1, "b": 2, "c": 1}


def test_a_session_moves_when_its_target_rests_and_stays_where_it_went() -> None:
    each, demand = pools(), Demand(session="s")
    found = alias("sticky", pools=each)
    first = found.order(demand, 0)[0]
    found.served(first, demand, 0)
    rest(each[first.provider], 60)
    second = found.order(demand, 1)[0]
    assert second != first
    found.served(second, demand, 1)
    assert found.order(demand, 61)[0] == second
    assert found.order(Demand(session="t"), 61)[0] in (A, B, C)


def test_a_session_that_nobody_could_serve_meanwhile_is_back_after_the_rest() -> None:
    each, demand = pools(), Demand(session="s")
    found = alias("sticky", pools=each)
    first = found.order(demand, 0)[0]
    found.served(first, demand, 0)
    rest(each[first.provider], 60)
    assert found.order(demand, 1)[0] != first
    assert found.order(demand, 60)[0] == first


def test_who_served_decides_and_not_who_came_first() -> None:
    found, demand = alias("sticky"), Demand(session="s")
    last = found.order(demand, 0)[2]
    found.served(last, demand, 0)
    assert found.order(demand, 0)[0] == last


def test_who_helped_out_with_a_long_prompt_does_not_take_the_session_away() -> None:
    long = Target("a", "long")
    found, demand = alias("sticky", context_window=(long,)), Demand(session="s")
    last = found.order(demand, 0)[2]
    found.served(last, demand, 0)
    found.served(long, demand, 1)
    assert found.order(demand, 2)[0] == last


def test_behind_a_sessions_target_the_least_busy_comes_next() -> None:
    each, demand = pools(), Demand(session="s")
    found = alias("sticky", pools=each)
    found.served(A, demand, 0)
    take(each["b"])
    take(each["a"])
    take(each["a"])
    assert found.order(demand, 0) == (A, C, B)


def test_without_a_session_the_least_busy_comes_first() -> None:
    each = pools()
    found = alias("sticky", pools=each)
    take(each["a"])
    take(each["c"])
    found.served(C, NOBODY, 0)
    assert found.order(NOBODY, 0)[0] == B
    assert len(found.sessions) == 0


@pytest.mark.parametrize("strategy", [each for each in STRATEGIES if each != "sticky"])
def test_other_strategies_remember_no_session(strategy: Strategy) -> None:
    found = alias(strategy)
    found.served(A, Demand(session="s"), 0)
    assert len(found.sessions) == 0
