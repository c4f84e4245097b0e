"""What a task finds around it: settings, flow run, tags, parent task, assets.

Most of it is the same for every task of a flow run: that is the flow context, pickled once. Only
the rest, the submit context, is pickled for each submit. Serializing a whole context costs 15 ms.
"""

import copy
import functools
from collections.abc import Callable
from typing import Any, NoReturn, ParamSpec, TypeVar
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.context import (
    AssetContext,
    FlowRunContext,
    SettingsContext,
    TagsContext,
    TaskRunContext,
    hydrated_context,
    serialize_context,
)
from prefect.flows import Flow
from prefect.logging import get_logger
from prefect.tasks import MaterializingTask, Task

from prefect_ray_worker.prefect_api.marking import install_in_ray_process, present_seal
from prefect_ray_worker.task_runner.call import FlowContext
from prefect_ray_worker.task_runner.modules import OwnModules
from prefect_ray_worker.task_runner.pickling import Blob, Packed, pack_whole, unpack
from prefect_ray_worker.task_runner.process import TaskProcess, collect_telemetry
from prefect_ray_worker.task_runner.related import keep_related, related_here
from prefect_ray_worker.task_runner.telemetry import telemetry

_log = get_logger("task_runner.ray")


class ContextPickler:
    """Pickle the contexts of submitted tasks, and keep those that many tasks share.

    Args:
        paths: Folders that imports shall find in a task's process.
        own: The modules that a task's process can load.
    """

    def __init__(self, paths: list[str], own: OwnModules) -> None:
        present = TaskProcess.present()
        self._paths = present.content.paths if present else paths
        self._own = present.content.own if present else own
        # The contexts are kept with the blob: an `id` names nothing that has gone.
        self._kept: dict[tuple[object, int], tuple[Blob, Any]] = {}
        self._parents: dict[UUID, Packed] = {}

    def for_flow_run(self) -> Blob:
        """Return the pickled flow context of a task that is submitted here and now."""
        flow_run = FlowRunContext.get()
        settings = SettingsContext.get()
        run_id = flow_run.flow_run.id if flow_run and flow_run.flow_run else None
        key = run_id, id(settings)
        if key not in self._kept:
            outer = TaskProcess.around(run_id, settings) if run_id else None
            blob = outer.blob if outer else Blob.of(self._pickle())
            self._kept[key] = blob, settings
        return self._kept[key][0]

    def for_submit(
        self, task: Task[Any, Any], task_run_id: UUID, inputs: dict[str, set[Any]]
    ) -> Packed | None:
        """Return the packed context of one submit; None if it has nothing of its own."""
        content: dict[str, Any] = {}
        tags = TagsContext.get().current_tags
        if tags:
            content["tags_context"] = {"current_tags": tags}
        if _has_assets(task):
            assets = AssetContext.from_task_and_inputs(
                task, task_run_id, inputs, copy_to_child_ctx=True
            )
            content["asset_context"] = assets.serialize()
        parent = TaskRunContext.get()
        if parent is not None:
            content["task_run_context"] = _Pickled(self._parent(parent))
        if not content:
            return None
        return pack_whole(content)

    def _parent(self, parent: TaskRunContext) -> Packed:
        run_id = parent.task_run.id
        packed = self._parents.get(run_id)
        if packed is None:
            packed = pack_whole(_outline(parent))
            self._parents = {run_id: packed}
        return packed

    def _pickle(self) -> Packed:
        context = portable_context(serialize_context())
        content = FlowContext(
            settings=context["settings_context"],
            flow_run=pack_whole(context["flow_run_context"]),
            deployment_id=context["deployment_id"],
            deployment_parameters=context["deployment_parameters"],
            related=related_here(),
            paths=self._paths,
            own=self._own,
            seal=present_seal(),
        )
        return pack_whole(content)


class _Pickled:
    """A packed value that is unpacked together with what holds it."""

    def __init__(self, packed: Packed) -> None:
        self._packed = packed

    def __reduce__(self) -> tuple[Any, ...]:
        return unpack, (self._packed,)


def portable_context(context: dict[str, Any]) -> dict[str, Any]:
    """Change what `serialize_context` returns so that it can be pickled and used elsewhere.

    The flow goes without its body, parameters that cannot be pickled stay here, and the settings
    name the API.
    """
    if context["settings_context"]:
        context["settings_context"] = _with_address(context["settings_context"])
    flow_run = context["flow_run_context"]
    if flow_run.get("flow") is not None:
        flow_run["flow"] = _without_body(flow_run["flow"])
    try:
        pack_whole(flow_run.get("parameters"))
    except Exception:  # anything may happen in a user's __reduce__
        flow_run["parameters"] = _portable(flow_run["parameters"])
    return context


def _has_assets(task: Task[Any, Any]) -> bool:
    flow_run = FlowRunContext.get()
    return (
        isinstance(task, MaterializingTask)
        or bool(task.asset_deps)
        or bool(flow_run is not None and flow_run.task_run_assets)
    )


def _with_address(settings: dict[str, Any]) -> dict[str, Any]:
    """Name the API in the settings: a temporary server of this process is also the tasks'."""
    values: dict[str, Any] = settings["settings"]
    with get_client(sync_client=True) as client:
        values.setdefault("api", {})["url"] = str(client.api_url)
    # Checked here; each process of the cluster would ask the server again.
    values.setdefault("client", {})["server_version_check_enabled"] = False
    return settings


def _body_is_elsewhere(*_: object, **__: object) -> NoReturn:
    raise RuntimeError("Nested tasks do not have the function of the flow or the task around them.")


def _without_body(flow: Flow[Any, Any]) -> Flow[Any, Any]:
    """Return what tasks see of their flow: all but its code, which may not even be picklable."""
    stub = copy.copy(flow)
    stub.fn = _body_is_elsewhere
    vars(stub).pop("__wrapped__", None)
    for name in vars(stub):
        if name.startswith("on_") and name.endswith("_hooks"):
            setattr(stub, name, [])
    without_secrets = getattr(flow.task_runner, "without_secrets", None)
    if without_secrets is not None:
        stub.task_runner = without_secrets()
    return stub


def _outline(parent: TaskRunContext) -> dict[str, Any]:
    """Return what nested tasks see of the run around them: all but its code and parameters.

    They see their own context; of this one, Prefect reads which run it is.
    """
    outline = {"task": _task_outline(parent.task), "parameters": {}}
    return parent.model_copy(update=outline).serialize()


def _task_outline(task: Task[Any, Any]) -> Task[Any, Any]:
    """Return what nested tasks see of the task around them: all but its code."""
    stub = copy.copy(task)
    stub.fn = _body_is_elsewhere
    for name, value in list(vars(stub).items()):
        if name.endswith("_hooks"):
            setattr(stub, name, [])
        elif name == "__wrapped__":
            delattr(stub, name)
        elif name != "fn" and callable(value):
            setattr(stub, name, None)
    return stub


def _portable(parameters: dict[str, Any] | None) -> dict[str, Any]:
    portable: dict[str, Any] = {}
    for name, value in (parameters or {}).items():
        try:
            pack_whole(value)
        except Exception as exc:  # anything may happen in a user's __reduce__
            _log.warning(
                "Tasks do not see the flow's parameter %r, a %s: it cannot be pickled (%s)",
                name,
                type(value).__qualname__,
                exc,
            )
        else:
            portable[name] = value
    return portable


P = ParamSpec("P")
R = TypeVar("R")

_FLUSH_SECONDS = 10.0


def with_run_context(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function that runs, wherever Ray runs it, as a part of the present run.

    `get_run_logger`, `prefect.runtime` and events work in it, and what it has logged is in the
    API when it returns. It makes no task run; decorate with `@task` for that. A task's parameters
    stay in the task: `prefect.runtime.task_run.parameters` is empty in the function.

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
    content = portable_context(serialize_context())
    parent = TaskRunContext.get()
    if parent is not None:
        content["task_run_context"] = _outline(parent)
    context = pack_whole(content)
    related = related_here()
    seal = present_seal()

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        collect_telemetry()
        install_in_ray_process(seal)
        keep_related(related)
        with hydrated_context(unpack(context)):
            try:
                return function(*args, **kwargs)
            finally:
                telemetry().flush(_FLUSH_SECONDS)

    return run
