from __future__ import annotations

import pytest

from proxy.errors import ErrorReason, GatewayError
from proxy.routing.planner import AliasRoute, Planner
from proxy.types import Target

LISTED = {"llama": "lab", "gpt-5": "lab", "vendor/model": "lab"}
FAST = (Target("groq", "llama"), Target("lab", "gpt-5"))
ALIASES = {
    "fast": AliasRoute(FAST, rewrite_model=True),
    "our/fast": AliasRoute(FAST[1:]),
    "llama": AliasRoute(FAST[:1]),
}
PLANNER = Planner(["lab", "groq"], ALIASES, LISTED.get, lambda: [*ALIASES, *LISTED, "lab/gpt-5"])


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
    plan = PLANNER.plan(model)
    assert [str(target) for target in plan.targets] == [targets]
    assert (plan.requested_model, plan.alias, plan.rewrite_model) == (model, None, False)


@pytest.mark.parametrize("model", ALIASES)
def test_an_alias_has_its_targets_in_order_and_beats_a_listed_name(model: str) -> None:
    plan = PLANNER.plan(model)
    assert plan.targets == ALIASES[model].targets
    assert (plan.requested_model, plan.alias) == (model, model)
    assert plan.rewrite_model is ALIASES[model].rewrite_model


@pytest.mark.parametrize(
    "model", ["lab", "lab/", "Lab/gpt-5", "gpt-4", "other/gpt-5", "/", "x" * 300]
)
def test_an_unknown_name_is_404(model: str) -> None:
    with pytest.raises(GatewayError) as caught:
        PLANNER.plan(model)
    error = caught.value
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")
    assert error.reason is ErrorReason.NOT_FOUND
    assert len(error.message) < 300


def test_the_message_names_what_may_have_been_meant() -> None:
    with pytest.raises(GatewayError, match=r"Did you mean .*'gpt-5'.*\?"):
        PLANNER.plan("gpt5")
    with pytest.raises(GatewayError, match="GET /v1/models"):
        PLANNER.plan("zzzz")


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
        PLANNER.plan("x" * length)
