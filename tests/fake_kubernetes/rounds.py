"""`Rounds`: what happens in a Kubernetes cluster by itself, again and again."""

import asyncio
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress

_SECONDS = 0.03


class Rounds:
    """Calls the controllers in turn, until it is stopped. One that fails does not stop the others.

    Args:
        *controllers: Functions that look at the objects and change them; none waits.
    """

    def __init__(self, *controllers: Callable[[], None]) -> None:
        self._controllers = controllers
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._go_on(), name="fake Kubernetes")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _go_on(self) -> None:
        while True:
            for controller in self._controllers:
                try:
                    controller()
                except Exception:
                    traceback.print_exc(file=sys.stderr)
            await asyncio.sleep(_SECONDS)
