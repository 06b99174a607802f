from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr

from proxy.errors import ErrorReason
from proxy.relay.relay import Routes
from proxy.routes import Builder, provider
from proxy.routing.breaker import BreakerRules
from proxy.routing.events import Event, Parked
from proxy.routing.keypool import KeyLease, KeyPool
from proxy.routing.limits import Daily, Limit, Sliding, Slots
from proxy.schema import KeySettings, ProviderSettings, Settings
from proxy.types import Action, Demand, Target, Verdict

URL = "http://127.0.0.1:9000/v1"
NOW = 1000.0
DEMAND = Demand(tokens=10)


def keys(*names: str, **more: Any) -> list[dict[str, Any]]:
    return [{"name": name, "value": f"sk-{name}", **more} for name in names]


class Yard:
    """A builder, with all that its pools tell."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.released = 0
        self.builder = Builder(
            listed=lambda model: "lab" if model == "listed" else None,
            names=lambda: ["listed"],
            cost=lambda target, given, made: {"lab/x": 5, "lab/y": 2}.get(str(target)),
            changed=self.events.append,
            released=self._release,
        )

    def _release(self) -> None:
        self.released += 1

    def routes(
        self, lab: dict[str, Any] | None = None, before: Routes | None = None, **sections: Any
    ) -> Routes:
        """Routes with one provider ``lab``, whose keys are k1 and k2 unless ``lab`` says so."""
        given = {"type": "openai", "base_url": URL, "keys": keys("k1", "k2"), **(lab or {})}
        settings = Settings(providers={"lab": given}, **sections)
        return self.builder.routes(settings, settings.providers, before)


def take(pool: KeyPool, model: str = "m", **more: Any) -> KeyLease:
    lease = pool.lease(model, NOW, **more)
    assert lease is not None
    return lease


def refuse(pool: KeyPool, name: str = "k1", seconds: float = 60.0) -> None:
    key = pool.key(name)
    assert key is not None
    verdict = Verdict(Action.NEXT_KEY, rests="key", cooldown=seconds)
    pool.park(key, "", verdict, ErrorReason.AUTHENTICATION, NOW)


# What the settings say.


def test_keys_have_their_names_secrets_groups_and_weights() -> None:
    lab = {"keys": [*keys("a", quota_group="org", weight=2), *keys("b")]}
    pool = Yard().routes(lab).pools["lab"]
    assert [(key.name, key.secret, key.quota_group, key.weight) for key in pool.keys] == [
        ("a", "sk-a", "org", 2.0),
        ("b", "sk-b", "b", 1.0),
    ]


def test_a_provider_without_keys_has_one_without_a_secret() -> None:
    [key] = Yard().routes({"keys": []}).pools["lab"].keys
    assert (key.name, key.secret, key.quota_group) == ("none", None, "none")


@pytest.mark.parametrize(
    ("strategy", "taken"),
    [("fallback", ["k1", "k1"]), ("least_busy", ["k1", "k2"]), ("round_robin", ["k1", "k2"])],
)
def test_the_strategy_of_a_provider_chooses_its_keys(strategy: str, taken: list[str]) -> None:
    pool = Yard().routes({"strategy": strategy}).pools["lab"]
    assert [take(pool).key.name for _ in range(2)] == taken


def test_limits_of_keys_groups_and_models_are_counted() -> None:
    lab = {
        "keys": [*keys("a", quota_group="org", limits={"rpm": 10, "tpd": 999})],
        "limits": {
            "groups": {"org": {"rpd": 50, "concurrency": 3}},
            "models": {"big-*": {"tpm": 6000}},
        },
    }
    counters = Yard().routes(lab).pools["lab"].counters
    assert [counter.limit for counter in counters.of("a", "org", "big-1")[:2]] == [  # type: ignore[attr-defined]
        Limit("requests", 10, 60),
        Limit("tokens", 999, 86_400),
    ]
    windows = {(owner, window.limit) for owner, window in counters.windows()}
    assert windows == {
        (("a", "org", ""), Limit("requests", 10, 60)),
        (("a", "org", ""), Limit("tokens", 999, 86_400)),
        (("", "org", ""), Limit("requests", 50, 86_400)),
        (("", "org", "big-1"), Limit("tokens", 6000, 60)),
    }
    [(owner, slots)] = counters.slots()
    assert (owner, slots.amount) == (("", "org", ""), 3)
    assert len(counters.of("a", "org", "small")) == 4


@pytest.mark.parametrize(("workers", "part"), [(1, 7), (2, 3), (9, 1)])
def test_of_calls_at_a_time_each_worker_has_its_part(workers: int, part: int) -> None:
    limits = {"groups": {"a": {"rpm": 100, "concurrency": 7}}}
    settings = Settings(
        server={"workers": workers},
        providers={"groq": {"keys": keys("a"), "limits": limits}},
    )
    pool = Yard().builder.routes(settings, settings.providers).pools["groq"]
    window, slots = pool.counters.of("a", "a", "m")
    assert isinstance(window, Sliding)
    assert isinstance(slots, Slots)
    assert (window.room, slots.amount) == (100, part)


def test_a_day_ends_when_the_providers_does() -> None:
    limits = {"models": {"*": {"rpd": 5}}}
    settings = Settings(
        providers={"gemini": {"keys": keys("a"), "limits": limits}},
    )
    pool = Yard().builder.routes(settings, settings.providers).pools["gemini"]
    [day] = pool.counters.of("a", "a", "m")
    assert isinstance(day, Daily)
    [sliding] = Yard().routes({"limits": limits}).pools["lab"].counters.of("k1", "k1", "m")
    assert not isinstance(sliding, Daily)


def test_the_rules_of_routing_reach_every_pool() -> None:
    breaker = {"failures": 2, "rate": 0.25, "minimum": 4, "window": 9}
    more = {"open_for": 3, "longest": 7}
    routing = {
        "max_wait": 0.5,
        "max_cooldown": 77,
        "retry_budget": {"ratio": 0, "minimum": 1},
        "breaker": {**breaker, **more},
    }
    routes = Yard().routes(routing=routing)
    pool = routes.pools["lab"]
    assert pool.health.breaker("m").rules == BreakerRules(2, 0.25, 4, 9.0, 3.0, 7.0)
    refuse(pool, seconds=1e6)
    assert pool.rests.of("k1", "k1", "m", NOW).until == NOW + 77  # type: ignore[union-attr]
    assert routes.max_wait == 0.5
    assert [routes.retries.spend(NOW) for _ in range(2)] == [True, False]


def test_a_provider_has_its_dialect_address_and_patience() -> None:
    made = provider(
        "x",
        ProviderSettings(
            type="openai",
            base_url=URL,
            include_usage=False,
            timeouts={"connect": 1, "first_byte": 2, "idle": 3},  # type: ignore[arg-type]
        ),
    )
    assert (made.name, made.base_url, made.include_usage) == ("x", URL, False)
    assert (made.connect, made.first_byte, made.idle) == (1.0, 2.0, 3.0)
    demo = provider("d", ProviderSettings(type="demo", base_url=URL))
    assert demo.dialect.name == "openai"
    key = KeySettings(name="k", value=SecretStr("v"), quota_group="k")
    cloud = ProviderSettings(type="cloudflare", account_id="abc", keys=[key])
    assert "abc" in provider("cf", cloud).base_url


# Aliases.


def test_an_alias_orders_its_targets_by_tier_and_strategy() -> None:
    fast = {
        "targets": [{"target": "lab/x", "tier": 2}, "lab/y", {"target": "lab/z/1", "tier": 2}],
        "rewrite_model": True,
        "context_window_fallbacks": ["lab/long"],
        "content_filter_fallbacks": ["lab/free", "lab/x"],
    }
    plan = Yard().routes(models={"fast": fast}).planner.plan("fast", DEMAND, NOW)
    assert [str(target) for target in plan.targets] == ["lab/y", "lab/x", "lab/z/1"]
    assert plan.targets[2] == Target("lab", "z/1")
    assert plan.rewrite_model
    assert {reason: [str(t) for t in targets] for reason, targets in plan.instead.items()} == {
        ErrorReason.CONTEXT_LENGTH: ["lab/long"],
        ErrorReason.CONTENT_FILTER: ["lab/free", "lab/x"],
    }


def test_the_cheapest_target_is_found_by_the_prices() -> None:
    fast = {"targets": ["lab/unpriced", "lab/x", "lab/y"], "strategy": "lowest_cost"}
    plan = Yard().routes(models={"fast": fast}).planner.plan("fast", DEMAND, NOW)
    assert [target.model for target in plan.targets] == ["y", "x", "unpriced"]


def test_weights_of_targets_are_shares() -> None:
    fast = {
        "targets": [{"target": "lab/x", "weight": 3}, "lab/y"],
        "strategy": "weighted",
    }
    planner = Yard().routes(models={"fast": fast}).planner
    first = [planner.plan("fast", DEMAND, NOW).targets[0].model for _ in range(8)]
    assert (first.count("x"), first.count("y")) == (6, 2)


def test_names_are_those_of_aliases_and_of_lists() -> None:
    planner = Yard().routes(models={"fast": {"targets": ["lab/x"]}}).planner
    assert planner.known("fast")
    assert planner.known("lab/anything")
    assert planner.plan("listed", DEMAND, NOW).targets == (Target("lab", "listed"),)
    for wrong, meant in (("fastt", "fast"), ("listet", "listed")):
        with pytest.raises(Exception, match=f"Did you mean '{meant}'"):
            planner.plan(wrong, DEMAND, NOW)


# What is told.


def test_what_a_pool_learns_is_heard() -> None:
    yard = Yard()
    pool = yard.routes().pools["lab"]
    refuse(pool)
    assert [type(event) for event in yard.events] == [Parked]
    take(pool).release()
    assert yard.released == 1


# A reload.


def test_what_was_learnt_outlives_a_reload() -> None:
    yard = Yard()
    first = yard.routes({"keys": keys("k1", "k2", limits={"rpm": 9})})
    pool = first.pools["lab"]
    refuse(pool)
    under_way = take(pool)
    pool.switch("k2", disabled=True)
    for _ in range(5):
        pool.health.failed("m", "timeout", False, NOW)
    again = yard.routes({"keys": keys("k1", "k2", limits={"rpm": 8})}, first).pools["lab"]
    assert again.rests.of("k1", "k1", "m", NOW) is not None
    assert again.health.wait("m", NOW) > 0
    k1, k2 = again.keys
    assert (k1.in_flight, k2.in_flight, k2.tried, k2.disabled) == (0, 1, 1, True)
    assert [window.used for _, window in again.counters.windows()] == [1]
    assert again.counters.of("k2", "k2", "m")[0].why == "requests_minute 1/8"
    under_way.release()
    assert k2.in_flight == 0


def test_a_reload_brings_new_keys_rules_and_strategies() -> None:
    yard = Yard()
    first = yard.routes()
    held = take(first.pools["lab"])
    lab = {"keys": keys("k2", "k3", weight=4), "strategy": "fallback"}
    routing = {"max_wait": 0, "breaker": {"failures": 1}}
    second = yard.routes(lab, first, routing=routing)
    pool = second.pools["lab"]
    assert [(key.name, key.weight) for key in pool.keys] == [("k2", 4.0), ("k3", 4.0)]
    assert [take(pool).key.name for _ in range(2)] == ["k2", "k2"]
    assert second.max_wait == 0
    pool.health.failed("m", "timeout", False, NOW)
    assert pool.health.wait("m", NOW) > 0
    held.release()  # the key of the lease is no longer configured
    assert held.key.in_flight == 0


def test_a_key_with_a_new_secret_is_a_new_key() -> None:
    yard = Yard()
    first = yard.routes()
    take(first.pools["lab"])
    changed = [{"name": "k1", "value": "sk-new"}, *keys("k2")]
    k1, _ = yard.routes({"keys": changed}, first).pools["lab"].keys
    assert (k1.secret, k1.in_flight, k1.tried) == ("sk-new", 0, 0)


@pytest.mark.parametrize(
    "changed", [{"base_url": "http://127.0.0.1:9001/v1"}, {"type": "groq"}, {"type": "ollama"}]
)
def test_another_upstream_under_the_same_name_starts_anew(changed: dict[str, Any]) -> None:
    yard = Yard()
    first = yard.routes()
    refuse(first.pools["lab"])
    second = yard.routes(changed, first)
    assert second.pools["lab"] is not first.pools["lab"]
    assert second.pools["lab"].rests.places == []
    assert second.providers["lab"].dialect.name == changed.get("type", "openai")


def test_a_provider_that_left_is_gone_and_one_that_came_is_there() -> None:
    yard = Yard()
    first = yard.routes()
    settings = Settings(providers={"shed": {"type": "openai", "base_url": URL}})
    second = yard.builder.routes(settings, settings.providers, first)
    assert (list(first.pools), list(second.pools)) == (["lab"], ["shed"])
    assert list(second.providers) == ["shed"]


def test_sessions_stay_with_their_targets_and_keys_after_a_reload() -> None:
    yard = Yard()
    targets = [f"lab/{n}" for n in range(6)]
    sticky = {"models": {"fast": {"targets": targets, "strategy": "sticky"}}}
    lab = {"keys": keys(*"abcdef"), "strategy": "sticky"}
    first = yard.routes(lab, **sticky)
    demand = Demand(session="s")
    plan = first.planner.plan("fast", demand, NOW)
    served = plan.targets[3]  # not the one that the hash says
    first.planner.served(plan, served, demand, NOW)
    taken = take(first.pools["lab"], session="s", tried=(take(first.pools["lab"]).key.name,))
    assert first.planner.plan("fast", demand, NOW).targets[0] == served
    sticky["models"]["fast"]["targets"] = [*targets, "lab/6"]
    second = yard.routes(lab, first, **sticky)
    assert second.planner.plan("fast", demand, NOW).targets[0] == served
    assert take(second.pools["lab"], session="s").key.name == taken.key.name
    assert len(second.planner.plan("fast", demand, NOW).targets) == 7


def test_a_reload_grants_no_new_retries_and_takes_the_new_budget() -> None:
    yard = Yard()
    first = yard.routes(routing={"retry_budget": {"minimum": 2}})
    assert [first.retries.spend(NOW) for _ in range(3)] == [True, True, False]
    second = yard.routes(before=first, routing={"retry_budget": {"minimum": 3}})
    assert [second.retries.spend(NOW) for _ in range(2)] == [True, False]
