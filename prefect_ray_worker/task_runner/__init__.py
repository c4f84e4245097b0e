"""`RayTaskRunner`: fans the tasks of a flow out over a Ray cluster.

The floor plan, in the order in which a task walks through it:

    driver:        runner -> inputs -> surroundings -> calls -> landing -> futures
    task process:  execution -> process (settings, clients, event loop, kept between tasks)
    both:          parcels (pickling), outcomes (how a run ended), mail (events and logs)

    connection joins or starts a Ray, code brings the flow's code to its nodes, options are what
    a task asks of Ray, losses says what became of a task whose process died, helpers is for code
    that calls Ray itself.

Two clocks govern the shape of it. Preparing a task costs what it costs once for a flow run, not
once for a task: settings, clients and contexts are pickled once here and rebuilt once for each
process there. And nothing of a task may be lost when Ray ends its process, which it does without
warning: so what a task has to tell Prefect comes back with its state.
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
