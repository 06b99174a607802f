from __future__ import annotations

import httpx
from fastapi import FastAPI

from proxy.api.health import health_router


async def test_the_process_is_up_even_while_it_takes_no_requests() -> None:
    ready = False
    app = FastAPI()
    app.include_router(health_router(lambda: ready))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/readyz")).status_code == 503
        ready = True
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()) == (200, {"status": "ready"})
        ready = False
        assert (await client.get("/readyz")).status_code == 503
