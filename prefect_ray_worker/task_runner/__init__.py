"""`RayTaskRunner`: runs the tasks of a flow on a Ray cluster.

In: submits (`runner`, `inputs`, `parameters`, `snapshot`, `pending`). Out: futures and states
(`futures`, `task_end`). The driver also has `session`, `code`, `context`, `dispatcher`, `losses`
and `orphans`; a task's process has `execution` and `process`. `call` travels between them; both
use the other modules.
Only this folder imports `ray`. It knows nothing of the worker.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect_ray_worker.task_runner.context import with_run_context as with_run_context
    from prefect_ray_worker.task_runner.futures import RayTaskFuture as RayTaskFuture
    from prefect_ray_worker.task_runner.options import remote_options as remote_options
    from prefect_ray_worker.task_runner.runner import RayTaskRunner as RayTaskRunner

__all__ = ["RayTaskFuture", "RayTaskRunner", "remote_options", "with_run_context"]

_HOMES = {
    "RayTaskFuture": "futures",
    "RayTaskRunner": "runner",
    "remote_options": "options",
    "with_run_context": "context",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # A task process needs a few of these modules, and early: so none is imported unasked.
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
