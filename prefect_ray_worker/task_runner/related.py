"""Relates events to the runs that emit them, without a request to the API for each event."""

import asyncio
import threading
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext, TaskRunContext
from prefect.events.related import related_resources_from_run_context
from prefect.events.schemas.events import Event, RelatedResource
from prefect.logging import get_logger

_log = get_logger("task_runner.ray")


@dataclass(frozen=True)
class Related:
    """What Prefect relates to every event of a flow run.

    Attributes:
        flow_run_id: The flow run.
        resources: The labels of each resource.
    """

    flow_run_id: UUID
    resources: list[dict[str, str]]

    @cached_property
    def parsed(self) -> list[RelatedResource]:
        """The resources as events have them."""
        return [RelatedResource(labels) for labels in self.resources]


# Travels with Prefect's own context variables, so the threads of a flow have it too.
_kept: ContextVar[Related | None] = ContextVar("related", default=None)


def keep_related(related: Related | None) -> None:
    """Use these resources for the events of their flow run, in this context and its copies."""
    _kept.set(related)


def attach_related(event: Event) -> None:
    """Add the resources that Prefect's own sender of events would add; it asks the API for them.

    Call it in the context that emits the event.
    """
    involved = {resource.id for resource in event.involved_resources}
    task_run = TaskRunContext.get()
    more = _of_flow_run(task_run)
    if task_run is not None:
        more.insert(1, _resource("task-run", task_run.task_run.id, task_run.task_run.name))
        more += map(_tag, sorted(task_run.task_run.tags))
    for resource in more:
        if resource.id not in involved:
            involved.add(resource.id)
            event.related.append(resource)


def related_here() -> Related | None:
    """Return the resources of the present flow run; None outside a flow.

    The first call in a context asks the API.
    """
    context, kept = FlowRunContext.get(), _kept.get()
    if context is None or context.flow_run is None:
        return None
    if kept is None or kept.flow_run_id != context.flow_run.id or not kept.resources:
        kept = Related(context.flow_run.id, _asked_for())
        keep_related(kept)
    return kept


def _asked_for() -> list[dict[str, str]]:
    found: list[dict[str, str]] = []

    async def ask() -> None:
        async with get_client() as client:
            resources = await related_resources_from_run_context(client)
            found.extend(dict(r.root) for r in resources if r.role != "task-run")

    context = copy_context()
    # In a thread: the flow may be running in an event loop of its own here.
    thread = threading.Thread(target=context.run, args=(_quietly, ask), name="ray-related")
    thread.start()
    thread.join()
    return found


def _quietly(ask: Any) -> None:
    try:
        asyncio.run(ask())
    except Exception:
        _log.warning("Cannot tell what the events of this flow run relate to", exc_info=True)


def _of_flow_run(task_run: TaskRunContext | None) -> list[RelatedResource]:
    context, kept = FlowRunContext.get(), _kept.get()
    flow_run = context.flow_run if context is not None else None
    if flow_run is not None:
        run_id: UUID | None = flow_run.id
    else:
        run_id = task_run.task_run.flow_run_id if task_run is not None else None
    if kept is not None and kept.flow_run_id == run_id and kept.resources:
        return list(kept.parsed)
    if context is None or flow_run is None:
        return [_resource("flow-run", run_id)] if run_id is not None else []
    return _of_context(flow_run, context.flow.name if context.flow is not None else None)


def _of_context(flow_run: FlowRun, flow_name: str | None) -> list[RelatedResource]:
    """Return what the context knows of a flow run, such as one that a task has called.

    Such a run has neither a deployment nor a work pool.
    """
    return [
        _resource("flow-run", flow_run.id, flow_run.name),
        _resource("flow", flow_run.flow_id, flow_name),
        *map(_tag, sorted(flow_run.tags)),
    ]


def _resource(kind: str, of: UUID, name: str | None = None) -> RelatedResource:
    labels = {"prefect.resource.id": f"prefect.{kind}.{of}", "prefect.resource.role": kind}
    return RelatedResource({**labels, "prefect.resource.name": name} if name else labels)


def _tag(tag: str) -> RelatedResource:
    return RelatedResource(
        {"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"}
    )
