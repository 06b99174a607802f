from __future__ import annotations

import pytest

from proxy.errors import ErrorReason, GatewayError
from proxy.routing.alias import Alias, Candidate
from proxy.routing.counters import Counters
from proxy.routing.key import Key
from proxy.routing.keypool import KeyPool
from proxy.routing.planner import Planner
from proxy.types import Demand, Plan, Target

LISTED = {"llama": "lab", "gpt-5": "lab", "vendor/model": "lab"}
POOLS = {
    name: KeyPool(
        name, [Key("none", None, "none")], Counters(None, lambda: 0.0), chance=lambda: 1.0
    )
    for name in ("groq", "lab")
}
FAST = (Target("groq", "llama"), Target("lab", "gpt-5"))
LONG, FREE = Target("lab", "long"), Target("lab", "free")
ALIASES = {
    "fast": Alias(
        [Candidate(each) for each in FAST],
        rewrite_model=True,
        context_window=(LONG, FREE),
        content_filter=(FREE,),
        pools=POOLS,
    ),
    "our/fast": Alias([Candidate(FAST[1])], pools=POOLS),
    "llama": Alias([Candidate(FAST[0])], pools=POOLS),
    "kept": Alias([Candidate(each) for each in FAST], "sticky", pools=POOLS),
}
PLANNER = Planner(["lab", "groq"], ALIASES, LISTED.get, lambda: [*ALIASES, *LISTED, "lab/gpt-5"])


def plan(model: str, demand: Demand = Demand()) -> Plan:  # noqa: B008 (it is frozen)
    return PLANNER.plan(model, demand, 0)


@pytest.mark.parametrize(
    ("model", "targets"),
    [
        ("lab/gpt-5", "lab/gpt-5"),
        ("lab/never-listed", "lab/never-listed"),
        ("lab/vendor/model:free", "lab/vendor/model:free"),
        ("lab//x", "lab//x"),
        ("groq/fast", "groq/fast"),
        ("gpt-5", "lab/gpt-5"),
        ("vendor/model", "lab/vendor/model"),
    ],
)
def test_a_name_is_a_provider_and_its_model_or_what_a_provider_lists(
    model: str, targets: str
) -> None:
    found = plan(model)
    assert [str(target) for target in found.targets] == [targets]
    assert (found.requested_model, found.alias, found.rewrite_model) == (model, None, False)
    assert not found.instead


@pytest.mark.parametrize("model", ["fast", "our/fast", "llama"])
def test_an_alias_has_its_targets_in_order_and_beats_a_listed_name(model: str) -> None:
    found = plan(model)
    assert found.targets == ALIASES[model].targets
    assert (found.requested_model, found.alias) == (model, model)
    assert found.rewrite_model is ALIASES[model].rewrite_model


def test_what_an_alias_has_for_long_prompts_and_for_filters_stands_in_the_plan() -> None:
    instead = plan("fast").instead
    assert instead[ErrorReason.CONTEXT_LENGTH] == (LONG, FREE)
    assert instead[ErrorReason.CONTENT_FILTER] == (FREE,)
    assert not any(plan("llama").instead.values())


def test_an_alias_hears_who_served_its_plan() -> None:
    demand = Demand(session="s")
    first, second = plan("kept", demand).targets
    PLANNER.served(plan("kept", demand), second, demand, 0)
    assert plan("kept", demand).targets == (second, first)
    PLANNER.served(plan("lab/gpt-5"), first, demand, 0)  # no alias: nobody to tell
    assert plan("kept", demand).targets == (second, first)


def test_an_alias_is_found_by_its_name() -> None:
    assert PLANNER.alias("fast") is ALIASES["fast"]
    assert PLANNER.alias("gpt-5") is None


@pytest.mark.parametrize(
    "model",
    ["lab", "lab/", "Lab/gpt-5", "gpt-4", "other/gpt-5", "/", "x" * 300, "lab/" + "x" * 257],
)
def test_an_unknown_name_is_404(model: str) -> None:
    with pytest.raises(GatewayError) as caught:
        plan(model)
    error = caught.value
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")
    assert error.reason is ErrorReason.NOT_FOUND
    assert len(error.message) < 300


def test_the_message_names_what_may_have_been_meant() -> None:
    with pytest.raises(GatewayError, match=r"Did you mean .*'gpt-5'.*\?"):
        plan("gpt5")
    with pytest.raises(GatewayError, match="GET /v1/models"):
        plan("zzzz")


@pytest.mark.parametrize(
    ("model", "known"),
    [
        ("lab/x", True),
        ("lab", True),
        ("fast", True),
        ("our/fast", True),
        ("gpt-5", False),
        ("other/x", False),
    ],
)
def test_only_bare_names_need_the_lists(model: str, known: bool) -> None:
    assert PLANNER.known(model) is known


@pytest.mark.parametrize(
    ("length", "shown"), [(100, "x" * 100), (101, "x" * 100 + "..."), (10**6, "x" * 100 + "...")]
)
def test_a_long_name_is_shown_in_part(length: int, shown: str) -> None:
    with pytest.raises(GatewayError, match=f"'{shown}' does not exist"):
        plan("x" * length)
