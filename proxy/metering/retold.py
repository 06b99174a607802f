"""A provider's own words about a fault, as far as they are kept where what was said is not."""

from __future__ import annotations

from proxy.metering.echo import UNTOLD, without_echo
from proxy.metering.names import outline
from proxy.types import Fault

SHORT = 80
"""Characters. What breaks inside a provider may quote the answer that it was at work on; a message
no longer than this says what broke, and hardly more."""


def retold(fault: Fault, request: bytes | None, answered: bool) -> str:
    """The message, less what it quotes of the request; its codes alone where that cannot be known:
    once the request is forgotten, when there has been some answer, or for a long message of a
    provider that broke."""
    broke = fault.status is None or fault.status >= 500
    if request is None or answered or (broke and len(fault.message) > SHORT):
        return outline(fault)
    kept = without_echo(fault.message, request)
    return outline(fault) if kept == UNTOLD else kept
