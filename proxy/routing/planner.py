"""From the model name that a client sends to the targets that may serve it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable

from proxy.errors import ErrorReason, GatewayError
from proxy.routing.alias import Alias
from proxy.types import Demand, Plan, Target

LONGEST_MODEL = 256
"""Characters of a model's name. Clients may name any, and of thousands something is remembered."""


class Planner:
    """Resolves names: ``provider/model``, then an alias, then a bare model that a provider lists.

    ``listed`` gives the provider that lists a bare model, or None; ``names`` all names that could
    have been meant, for the message about an unknown one.
    """

    def __init__(
        self,
        providers: Iterable[str],
        aliases: dict[str, Alias],
        listed: Callable[[str], str | None],
        names: Callable[[], Iterable[str]],
    ) -> None:
        self._providers = frozenset(providers)
        self._aliases = aliases
        self._listed = listed
        self._names = names

    def known(self, model: str) -> bool:
        """Whether a name needs no model list to be resolved."""
        return model.partition("/")[0] in self._providers or model in self._aliases

    def plan(self, model: str, demand: Demand, now: float, *, take: bool = True) -> Plan:
        """The plan for a name; GatewayError 404 ``model_not_found`` if nothing answers to it.

        ``take`` False: nothing will be sent, and nobody's turn is taken.
        """
        provider, slash, rest = model.partition("/")
        if slash and 0 < len(rest) <= LONGEST_MODEL and provider in self._providers:
            return Plan(model, (Target(provider, rest),))
        alias = self._aliases.get(model)
        if alias is not None:
            instead = {
                ErrorReason.CONTEXT_LENGTH: alias.context_window,
                ErrorReason.CONTENT_FILTER: alias.content_filter,
            }
            return Plan(
                model, alias.order(demand, now, take=take), model, alias.rewrite_model, instead
            )
        found = self._listed(model)
        if found is not None:
            return Plan(model, (Target(found, model),))
        raise self._unknown(model)

    def alias(self, name: str) -> Alias | None:
        """A configured alias."""
        return self._aliases.get(name)

    def served(self, plan: Plan, target: Target, demand: Demand, now: float) -> None:
        """A target of a plan has served."""
        if plan.alias is not None:
            self._aliases[plan.alias].served(target, demand, now)

    def _unknown(self, model: str) -> GatewayError:
        shown = model if len(model) <= 100 else model[:100] + "..."
        message = f"The model '{shown}' does not exist here."
        near = difflib.get_close_matches(model[:200], sorted(set(self._names()))[:5000], n=3)
        if near:
            message += " Did you mean " + " or ".join(f"'{name}'" for name in near) + "?"
        else:
            message += " GET /v1/models lists those that do."
        return GatewayError(
            404, message, ErrorReason.NOT_FOUND, code="model_not_found", param="model"
        )
