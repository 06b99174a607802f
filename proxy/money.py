"""Money: whole nano-dollars wherever it is added up, dollars wherever it is shown."""

from __future__ import annotations

from typing import overload

NANO = 10**9
"""Nano-dollars in a dollar."""


@overload
def dollars(nano: int) -> float: ...
@overload
def dollars(nano: None) -> None: ...
@overload
def dollars(nano: int | None) -> float | None: ...
def dollars(nano: int | None) -> float | None:
    """Nano-dollars as dollars; what is not known stays so."""
    return None if nano is None else nano / NANO


@overload
def nano(usd: float) -> int: ...
@overload
def nano(usd: None) -> None: ...
@overload
def nano(usd: float | None) -> int | None: ...
def nano(usd: float | None) -> int | None:
    """Dollars as whole nano-dollars; what is not known stays so."""
    return None if usd is None else round(usd * NANO)
