"""`with_run_context`: Prefect's loggers in functions that Ray runs without a task around them."""

import functools
import pickle
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from prefect.context import hydrated_context, serialize_context

from prefect_ray_worker.task_runner.mail import mailbox
from prefect_ray_worker.task_runner.parcels import dumps
from prefect_ray_worker.task_runner.process import report_by_mail
from prefect_ray_worker.task_runner.surroundings import portable_context

P = ParamSpec("P")
R = TypeVar("R")

_FLUSH_SECONDS = 10.0


def with_run_context(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function that runs, wherever Ray runs it, as a part of the present run.

    `get_run_logger`, `prefect.runtime` and events work in it, and what it has logged is in the
    API when it returns. It makes no task run; decorate with `@task` for that.

    Args:
        function: What `ray.remote` shall run, undecorated.

    Example:
        ```python
        @task
        def my_task():
            crunch = ray.remote(with_run_context(crunch_numbers))
            return ray.get([crunch.remote(i) for i in range(10)])
        ```
    """
    context = dumps(portable_context(serialize_context()))

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        report_by_mail()
        with hydrated_context(pickle.loads(context)):  # noqa: S301 (written by our own processes)
            try:
                return function(*args, **kwargs)
            finally:
                mailbox().flush(_FLUSH_SECONDS)

    return run
