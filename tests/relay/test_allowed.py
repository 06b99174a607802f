from __future__ import annotations

import pytest

from proxy.clients import Client
from proxy.errors import ErrorReason, GatewayError
from proxy.relay.allowed import allowed
from proxy.types import Plan, Target

GROQ, GEMINI = Target("groq", "llama"), Target("gemini", "flash")
PLAN = Plan("fast", (GROQ, GEMINI), "fast", instead={ErrorReason.CONTEXT_LENGTH: (GEMINI, GROQ)})


def client(**more: tuple[str, ...]) -> Client:
    return Client(id="ck-1", name="ann", created_at=1, **more)  # type: ignore[arg-type]


def test_what_is_not_limited_stays_as_it_is() -> None:
    assert allowed(PLAN, client()) == PLAN
    assert allowed(PLAN, client(models=("fast",))) == PLAN


def test_targets_that_are_closed_to_the_client_are_left_out_also_as_a_last_resort() -> None:
    plan = allowed(PLAN, client(providers=("groq",)))
    assert plan.targets == (GROQ,)
    assert plan.instead == {ErrorReason.CONTEXT_LENGTH: (GROQ,)}
    assert plan.alias == "fast"


def test_where_nothing_is_left_the_client_is_told() -> None:
    with pytest.raises(GatewayError) as caught:
        allowed(PLAN, client(models=("slow",)))
    assert (caught.value.status, caught.value.code) == (403, "model_not_allowed")
