"""Every error of the FastAPI app in OpenAI's envelope: unknown routes and wrong methods too."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from proxy.errors import ErrorReason, GatewayError
from proxy.store.address import StoreError


def install(app: FastAPI) -> None:
    """Register the handlers that turn what an endpoint raises into an answer.

    What none of them expects is told to ``app.state.broken``, with the request's id and path.
    """
    app.add_exception_handler(GatewayError, _own)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(StoreError, _no_database)
    app.add_exception_handler(Exception, _unexpected)


def answer(error: GatewayError, headers: Any = None) -> Response:
    """An error as a response."""
    fields = {name.decode(): value.decode() for name, value in error.headers()}
    return Response(
        error.body(), error.status, {**(headers or {}), **fields}, media_type="application/json"
    )


async def _unexpected(request: Request, exc: Exception) -> Response:
    request.app.state.broken(exc, request.scope.get("request_id"), request.url.path)
    return answer(GatewayError(500, "The gateway made a mistake.", ErrorReason.INTERNAL))


async def _no_database(_: Request, exc: Exception) -> Response:
    return answer(GatewayError(503, str(exc), ErrorReason.INTERNAL, code="database_unavailable"))


async def _own(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, GatewayError)
    return answer(exc)


async def _http(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    message = str(exc.detail)
    if exc.status_code == 404:
        message = f"Unknown route: {request.method} {request.url.path[:200]}"
    elif exc.status_code == 405:
        message = f"{request.method} is not allowed on {request.url.path[:200]}"
    error = GatewayError(exc.status_code, message, ErrorReason.INVALID_REQUEST)
    return answer(error, exc.headers)


async def _invalid(_: Request, exc: Exception) -> Response:
    """The first parameter that does not hold, by its name."""
    assert isinstance(exc, RequestValidationError)
    first = exc.errors()[0]
    name = str(first["loc"][min(1, len(first["loc"]) - 1)])  # behind it, the place in a list
    error = GatewayError(422, f"{name}: {first['msg']}", ErrorReason.INVALID_REQUEST, param=name)
    return answer(error)
