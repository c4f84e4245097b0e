"""`remote_options`: what tasks ask of Ray, as a `with` block or as a decorator on one task."""

from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, TypeVar, overload

from prefect.flows import Flow
from prefect.tasks import Task

T = TypeVar("T")

_ATTRIBUTE = "_prefect_ray_remote_options"
# Options of the `with` blocks around us, and those that the task around us was submitted with.
_NONE: Mapping[str, Any] = MappingProxyType({})
# Several threads may be in a block of the same `remote_options`, so it keeps nothing itself.
_blocks: ContextVar[tuple[Mapping[str, Any], ...]] = ContextVar("remote_options", default=())
_inherited: ContextVar[Mapping[str, Any]] = ContextVar("inherited_remote_options", default=_NONE)

_OURS = {
    "num_returns": "the runner needs it for states, results and logs; return a tuple instead",
    "name": "tasks are named after their Prefect task; see task_run_name",
}

DEFAULTS: Mapping[str, Any] = {
    "num_cpus": 1,
    # Ray would run the body again without telling Prefect; retries of the task do tell it.
    "max_retries": 0,
}


class remote_options:  # noqa: N801 (a name that flows know from prefect-ray)
    """Options of `ray.remote` for the tasks that are submitted in a block, or for one task.

    Inner blocks win over outer ones, and a block wins over a task's own options. A task's nested
    submits inherit the options of the blocks around the submit of the task; a nested task's own
    options win over inherited ones. A GPU task gets a process of its own that ends with it, as
    Ray has it for any such function; `max_calls=0` keeps the process for further tasks.

    Args:
        **options: `num_cpus`, `num_gpus`, `resources`, `memory` (bytes), `accelerator_type`,
            `label_selector`, `scheduling_strategy`, `max_calls`, `runtime_env`, `max_retries`
            and whatever else the installed Ray's `ray.remote` takes for functions.

    Raises:
        ValueError: For an option that the runner sets itself.

    Example:
        ```python
        @remote_options(num_gpus=1)
        @task
        def train(): ...

        with remote_options(num_cpus=4):
            train.submit()
        ```
    """

    def __init__(self, **options: Any) -> None:
        for name, why in _OURS.items():
            if name in options:
                raise ValueError(f"remote_options({name}={options[name]!r}) cannot be set: {why}.")
        self._options = options

    def __enter__(self) -> None:
        _blocks.set((*_blocks.get(), {**_explicit(), **self._options}))

    def __exit__(self, *_: object) -> None:
        _blocks.set(_blocks.get()[:-1])

    @overload
    def __call__(self, task: Task[Any, Any]) -> Task[Any, Any]: ...
    @overload
    def __call__(self, task: T) -> T: ...
    def __call__(self, task: Any) -> Any:
        """Give a task, or the function below `@task`, these options."""
        if isinstance(task, Flow):
            raise TypeError(
                "remote_options decorates a task, not a flow: write `with remote_options(...):` "
                "around the submits in the flow."
            )
        # On the function, so that `task.with_options(...)` keeps them.
        function = task.fn if isinstance(task, Task) else task
        function.__dict__[_ATTRIBUTE] = {**function.__dict__.get(_ATTRIBUTE, {}), **self._options}
        return task


def _explicit() -> Mapping[str, Any]:
    blocks = _blocks.get()
    return blocks[-1] if blocks else _NONE


def options_for(task: Task[Any, Any]) -> dict[str, Any]:
    """Return the options of a task that is submitted here and now."""
    own: Mapping[str, Any] = getattr(task.fn, "__dict__", {}).get(_ATTRIBUTE, {})
    return {**DEFAULTS, **_inherited.get(), **own, **_explicit()}


def to_inherit() -> dict[str, Any]:
    """Return the options that nested submits of a task, submitted here and now, inherit."""
    return {**_inherited.get(), **_explicit()}


def inherit(options: Mapping[str, Any]) -> None:
    """Have submits in this context inherit options."""
    _inherited.set(options)
