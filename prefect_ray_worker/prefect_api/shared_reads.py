"""`SharedReads`: answers callers that read the same object at the same time with one request.

Prefect's worker reads the deployment twice and the flow once for each run that it submits (3.8.8).
In a burst of runs of one deployment these are a quarter of all its requests.

It also cancels a run if it gets `ObjectNotFound` for the deployment, which Prefect's client raises
for the 404 of a proxy too. Here, only Prefect itself can say that an object is gone.
"""

import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from uuid import UUID

import anyio
from prefect.client.orchestration import PrefectClient
from prefect.exceptions import ObjectNotFound
from pydantic import BaseModel

from prefect_ray_worker.prefect_api.answers import is_gone

M = TypeVar("M", bound=BaseModel)


@dataclass
class _Round(Generic[M]):
    turn: anyio.Lock = field(default_factory=anyio.Lock)
    readers: int = 0
    sent: int = 0
    answer: M | None = None


class SharedReads(Generic[M]):
    """Reads objects; caches nothing.

    Each caller gets an answer to a request that was sent after the call. While a request is under
    way, all further callers for the same object wait for the next one and share its answer. An
    error is raised for one caller only; the next caller tries itself.

    Args:
        read: Sends a request for an object.
    """

    def __init__(self, read: Callable[[UUID], Awaitable[M]]) -> None:
        self._read = read
        self._readings: dict[UUID, _Round[M]] = {}
        self._moments = itertools.count(1)

    async def __call__(self, object_id: UUID) -> M:
        """Return an object, as a copy of the caller's own.

        Raises:
            ObjectNotFound: Prefect says that it does not exist.
            httpx.HTTPStatusError: Any other error, the 404 of a proxy included.
        """
        asked = next(self._moments)
        key = UUID(str(object_id))
        reading = self._readings.setdefault(key, _Round())
        reading.readers += 1
        try:
            async with reading.turn:
                if reading.answer is None or reading.sent < asked:
                    reading.sent, reading.answer = next(self._moments), None
                    reading.answer = await self._asked(object_id)
                return reading.answer.model_copy(deep=True)
        finally:
            reading.readers -= 1
            if not reading.readers:
                del self._readings[key]

    async def _asked(self, object_id: UUID) -> M:
        try:
            return await self._read(object_id)
        except ObjectNotFound as exc:
            if is_gone(exc):
                raise
            raise exc.http_exc from None


def share_reads(client: PrefectClient) -> None:
    """Make a client share its concurrent reads of a deployment, and those of a flow.

    Args:
        client: The client; only this one changes.
    """
    client.read_deployment = SharedReads(client.read_deployment)  # type: ignore[method-assign]
    client.read_flow = SharedReads(client.read_flow)  # type: ignore[method-assign]
