"""What may go wrong between a client and Ray, one scripted fault at a time."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum, auto

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_LOGIN_PAGE = "<!DOCTYPE html><html><body><form>Sign in to continue</form></body></html>"


class Kind(Enum):
    """How a request goes wrong."""

    STATUS = auto()
    """Answer with `status` and `body`, without acting."""

    HANG = auto()
    """Accept the request and never answer, until `Faults.release`; then act as usual."""

    DROP = auto()
    """Break the connection before acting."""

    ACT_THEN_DROP = auto()
    """Act, then break the connection: the submission is recorded, the client sees an error."""

    ACT_THEN_500 = auto()
    """Act, then answer as if it had failed."""

    HALF_BODY = auto()
    """Act, then break the connection in the middle of the answer's body."""

    SLOW = auto()
    """Answer as usual after `delay` seconds."""

    LOGIN_PAGE = auto()
    """Answer 200 with an HTML page, as a login proxy does."""

    REDIRECT = auto()
    """Answer 302 to a login page."""


@dataclass
class Fault:
    """One fault for the next matching requests.

    Attributes:
        method: HTTP method, or `*` for all.
        path: Regular expression, searched in the path.
        kind: How the request goes wrong.
        times: For how many requests; None for all until `Faults.clear`.
        status: For STATUS.
        body: For STATUS and ACT_THEN_500.
        content_type: Of that body.
        delay: For SLOW, in seconds.
        hits: How many requests it has spoilt.
    """

    method: str
    path: str
    kind: Kind
    times: int | None = 1
    status: int = 503
    body: str = "Service Unavailable"
    content_type: str = "text/plain"
    delay: float = 0.2
    hits: int = 0

    def matches(self, request: web.Request) -> bool:
        if self.times is not None and self.hits >= self.times:
            return False
        return self.method in ("*", request.method) and bool(re.search(self.path, request.path))


class Faults:
    """The faults of one fake Ray; the first that matches a request spoils it."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._released = asyncio.Event()

    def add(self, fault: Fault) -> Fault:
        """Arm a fault and return it, so that a test can watch its `hits`."""
        self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """Forget all faults; hanging requests keep hanging."""
        self._faults.clear()

    def keep_last(self) -> None:
        """Forget all faults but the one that was added last, without a moment of health."""
        del self._faults[:-1]

    def release(self) -> None:
        """Let the requests go on that hang now."""
        released, self._released = self._released, asyncio.Event()
        released.set()

    async def handle(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer the request, spoilt if a fault is armed for it."""
        fault = next((fault for fault in self._faults if fault.matches(request)), None)
        if fault is None:
            return await handler(request)
        fault.hits += 1
        # Ray has the body before anything goes wrong, even if the client leaves meanwhile.
        await request.read()
        answer = await self._without_acting(fault, request)
        if answer is not None:
            return answer
        response = await handler(request)
        if fault.kind is Kind.ACT_THEN_DROP:
            return _drop(request)
        if fault.kind is Kind.ACT_THEN_500:
            return web.Response(status=500, text=fault.body)
        if fault.kind is Kind.HALF_BODY:
            return await _half(request, response)
        return response

    async def _without_acting(
        self, fault: Fault, request: web.Request
    ) -> web.StreamResponse | None:
        match fault.kind:
            case Kind.STATUS:
                return web.Response(
                    status=fault.status, text=fault.body, content_type=fault.content_type
                )
            case Kind.DROP:
                return _drop(request)
            case Kind.LOGIN_PAGE:
                return web.Response(text=_LOGIN_PAGE, content_type="text/html")
            case Kind.REDIRECT:
                return web.Response(status=302, headers={"Location": "/login"})
            case Kind.HANG:
                await self._released.wait()
            case Kind.SLOW:
                await asyncio.sleep(fault.delay)
            case _:
                pass
        return None


def _drop(request: web.Request) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    # aiohttp wants a response from every handler; this one has nowhere to go.
    return web.Response()


async def _half(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    body = response.body if isinstance(response, web.Response) else b""
    whole = body if isinstance(body, bytes) else b""
    half = web.StreamResponse(
        status=response.status,
        headers={"Content-Type": response.content_type, "Content-Length": str(len(whole))},
    )
    await half.prepare(request)
    await half.write(whole[: len(whole) // 2])
    if request.transport is not None:
        # Not abort(): the half must arrive before the connection ends.
        request.transport.close()
    return half
