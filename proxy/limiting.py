"""Limits of users and tags as they are written in the configuration. Clients have theirs with
their keys."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from proxy.bounds import LONGEST_ID
from proxy.clients import Holder
from proxy.fields import Lower, Part
from proxy.tags import LONGEST, tags

Most = Annotated[int, Field(ge=1, le=10**12)]


class HolderLimits(Part):
    """What the calls for one user, or with one tag, may use together; None: as much as they
    like."""

    scope: Annotated[Literal["user", "tag"], Lower]
    value: Annotated[str, Field(min_length=1)]
    rpm: Most | None = None
    rph: Most | None = None
    rpd: Most | None = None
    tpm: Most | None = None
    tph: Most | None = None
    tpd: Most | None = None
    parallel: Most | None = None
    max_output_tokens: Most | None = None

    @property
    def holder(self) -> Holder:
        return self.scope, self.value

    @model_validator(mode="after")
    def _sayable(self) -> Self:
        said(self.scope, self.value)
        if not self.model_dump(exclude={"scope", "value"}, exclude_none=True):
            raise ValueError("no limit is named, such as rpm, tpd or parallel")
        return self


def said(scope: str, value: str) -> None:
    """ValueError where no call can have such a user, or such a tag."""
    if scope == "tag" and tags((value,)) != (value,):
        raise ValueError(f"value: up to {LONGEST} characters, no comma, no space around them")
    if scope == "user" and not 0 < len(value.strip()) == len(value) <= LONGEST_ID:
        raise ValueError(f"value: up to {LONGEST_ID} characters, no space around them")


def _distinct(limits: list[HolderLimits]) -> list[HolderLimits]:
    names = [" ".join(each.holder) for each in limits]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"one entry for each user and tag (twice: {', '.join(twice)})")
    return limits


Limits = Annotated[list[HolderLimits], AfterValidator(_distinct)]
