"""A front of a Prefect API that refuses some requests, as a proxy or a rate limit does."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
from aiohttp import web

from tests.ports import free_port

Refuses = Callable[[web.Request], web.Response | None]

LOST = web.Response(status=599)
"""Says that a request is passed on, and that its answer gets lost."""


@asynccontextmanager
async def busy_api(
    api_url: str,
    refuses: Refuses,
    *,
    after: Callable[[web.Request], Awaitable[None]] | None = None,
) -> AsyncGenerator[str]:
    """Yield the URL of an API in front of another one.

    Args:
        api_url: The API behind it.
        refuses: Returns the answer to a request that is not passed on, or `LOST`.
        after: Awaited after each request that was passed on, before its answer is.
    """

    async def answer(request: web.Request) -> web.Response:
        refused = refuses(request)
        if refused is not None and refused is not LOST:
            return refused
        body = await request.read()
        passed = await behind.request(
            request.method,
            request.path_qs.removeprefix("/api"),
            content=body,
            headers={k: v for k, v in request.headers.items() if k.lower() not in _OF_A_HOP},
        )
        if after is not None:
            await after(request)
        if refused is LOST and request.transport is not None:
            request.transport.abort()
        kind = passed.headers.get("content-type", "application/json")
        return web.Response(
            status=passed.status_code, body=passed.content, headers={"content-type": kind}
        )

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    port = free_port()
    async with httpx.AsyncClient(base_url=api_url, timeout=30) as behind:
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", port).start()
            yield f"http://127.0.0.1:{port}/api"
        finally:
            await runner.cleanup()


_OF_A_HOP = frozenset({"host", "content-length", "connection", "transfer-encoding"})
