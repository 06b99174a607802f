"""The JSON body of a request that is not relayed, checked against a model."""

from __future__ import annotations

from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from proxy.errors import ErrorReason, GatewayError

MAX_BODY = 64 * 1024
"""Bytes; what is told here is names and numbers."""

_Told = TypeVar("_Told", bound=BaseModel)


async def told(request: Request, kind: type[_Told], most: int = MAX_BODY) -> _Told:
    """The body as what it should be. GatewayError 413 where it is longer than ``most``, and 422
    with the first member that does not hold."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            message = f"The body is longer than {most} bytes."
            raise GatewayError(413, message, ErrorReason.TOO_LARGE)
    try:
        return kind.model_validate_json(bytes(body))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
    place = first["loc"]
    raise bad(str(place[0])[:100] if place else "body", first["msg"])


def bad(name: str, what: str) -> GatewayError:
    """A member that does not hold."""
    return GatewayError(422, f"{name}: {what}", ErrorReason.INVALID_REQUEST, param=name)
