"""Names what keeps a function from being pickled, where pickle only says of what type it is."""

import types
from typing import Any, cast

from prefect.tasks import Task

from prefect_ray_worker.task_runner.parcels import dumps


def culprit(task: Task[Any, Any], exc: Exception) -> str:
    """Describe what of a task cannot be pickled: its function's globals, a hook, a policy.

    Args:
        task: The task that could not be.
        exc: What pickling it has raised.
    """
    said = f"{type(exc).__name__}: {exc}"
    found = _search(task.fn, set()) or _attribute(task)
    if found is None:
        return said
    return (
        f"{found} ({said}). Create it inside the task, or pass what is needed to create it as a "
        "parameter."
    )


def _attribute(task: Task[Any, Any]) -> str | None:
    for name, value in vars(task).items():
        if name == "fn" or _is_picklable(value):
            continue
        parts: list[Any] = [value]
        if isinstance(value, list | tuple):  # of hooks
            parts = list(cast("list[Any]", value))
        inside = next((found for part in parts if (found := _search(part, set()))), None)
        return f"its {name}: {inside}" if inside else f"its {name}, a {type(value).__qualname__}"
    return None


def _search(function: Any, seen: set[int]) -> str | None:
    function = getattr(function, "fn", function)
    if not isinstance(function, types.FunctionType) or id(function) in seen:
        return None
    seen.add(id(function))
    where = f"function {function.__qualname__!r} ({function.__module__})"
    for kind, name, value in _references(function):
        if _is_picklable(value):
            continue
        deeper = _search(value, seen)
        if deeper is not None:
            return deeper
        what = f"{kind} {name!r}, a {type(value).__qualname__}"
        return f"{where} uses the {what}, which cannot be pickled"
    return None


def _references(function: types.FunctionType) -> list[tuple[str, str, Any]]:
    found: list[tuple[str, str, Any]] = []
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            found.append(("variable", name, cell.cell_contents))
        except ValueError:  # not assigned yet
            continue
    present = _global_names(function.__code__) & function.__globals__.keys()
    found += [("global", name, function.__globals__[name]) for name in sorted(present)]
    defaults = function.__defaults__ or ()
    found += [("default value", repr(i), value) for i, value in enumerate(defaults)]
    return found


def _global_names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names


def _is_picklable(value: Any) -> bool:
    try:
        dumps(value)
    except Exception:  # anything may happen in a user's __reduce__
        return False
    return True
