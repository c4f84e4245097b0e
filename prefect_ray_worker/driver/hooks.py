"""`OnceHooks`: a flow's cancellation hooks, run by whoever comes first and by nobody twice."""

import functools
import inspect
import logging
import threading
from collections.abc import Callable
from typing import Any

import anyio
from prefect.client.schemas.objects import FlowRun
from prefect.flows import Flow
from prefect.states import Cancelling

_log = logging.getLogger("prefect.ray.driver")


class OnceHooks:
    """Lets the engine run a flow's `on_cancellation` hooks, or us where the engine cannot.

    Args:
        flow: The loaded flow; its hooks are replaced by ones that know whether they have run.
    """

    def __init__(self, flow: Flow[..., Any]) -> None:
        self._flow = flow
        self._begun: set[int] = set()
        self._lock = threading.Lock()
        hooks = flow.on_cancellation_hooks or []
        flow.on_cancellation_hooks = [self._once(hook) for hook in hooks]

    def run_cancellation_hooks(self, flow_run: FlowRun) -> None:
        """Run those hooks that nobody has begun; one that fails does not stop the others."""
        for hook in self._flow.on_cancellation_hooks or []:
            try:
                result = hook(self._flow, flow_run, Cancelling())
                if inspect.isawaitable(result):
                    anyio.run(_awaited, result)
            except Exception:
                _log.exception("The hook %r failed", getattr(hook, "__name__", hook))

    def _once(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(hook):

            @functools.wraps(hook)
            async def once_async(*args: Any, **kwargs: Any) -> Any:
                return await hook(*args, **kwargs) if self._is_first(hook) else None

            return once_async

        @functools.wraps(hook)
        def once(*args: Any, **kwargs: Any) -> Any:
            return hook(*args, **kwargs) if self._is_first(hook) else None

        return once

    def _is_first(self, hook: Callable[..., Any]) -> bool:
        with self._lock:
            first = id(hook) not in self._begun
            self._begun.add(id(hook))
        return first


async def _awaited(result: Any) -> None:
    await result
