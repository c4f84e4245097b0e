"""`OnceHooks`: a flow's cancellation hooks, run by whoever comes first and by nobody twice."""

import functools
import inspect
import threading
from collections.abc import Callable, Iterable
from typing import Any

import anyio
from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import Flow
from prefect.logging.loggers import flow_run_logger
from prefect.states import Cancelling


def run_hooks(
    hooks: Iterable[Callable[..., Any]], flow: Flow[..., Any], flow_run: FlowRun, state: State
) -> None:
    """Run hooks as the flow engine does; one that fails does not stop the others."""
    logger = flow_run_logger(flow_run, flow)
    for hook in hooks:
        name = getattr(hook, "__name__", repr(hook))
        logger.info("Running hook %r in response to entering state %r", name, state.name)
        try:
            result = hook(flow, flow_run, state)
            if inspect.isawaitable(result):
                anyio.run(_awaited, result)
        except Exception:
            logger.exception("The hook %r failed", name)


class OnceHooks:
    """Lets the engine run a flow's `on_cancellation` hooks, or us where the engine cannot.

    Args:
        flow: The loaded flow; its hooks are replaced by ones that know whether they have run.
    """

    def __init__(self, flow: Flow[..., Any]) -> None:
        self._flow = flow
        self._begun: set[int] = set()
        self._lock = threading.Lock()
        self._hooks = [(hook, self._once(hook)) for hook in flow.on_cancellation_hooks or []]
        flow.on_cancellation_hooks = [once for _, once in self._hooks]

    def run_cancellation_hooks(self, flow_run: FlowRun) -> None:
        """Run those hooks that nobody has begun."""
        left = [once for hook, once in self._hooks if id(hook) not in self._begun]
        run_hooks(left, self._flow, flow_run, Cancelling())

    def run_crashed_hooks(self, flow_run: FlowRun, state: State) -> None:
        """Run the hooks for a crash that the engine knows nothing of."""
        run_hooks(self._flow.on_crashed_hooks or [], self._flow, flow_run, state)

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
