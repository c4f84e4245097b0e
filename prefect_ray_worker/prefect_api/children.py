"""Settle what a run left open when its process died: its task runs, and its subflow runs.

A process that is killed reports nothing, so the server shows its tasks and subflows as Running for
ever. What runs in a process of its own stays: a subflow that has a job (`run_deployment`, a call of
a `ray_job` flow) with the task run that shows its states, and background tasks (`task.delay()`).
"""

import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Literal
from uuid import UUID

import anyio
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import State, StateType
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

from prefect_ray_worker.prefect_api.pages import pages

Patiently = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]
"""Repeats a request until the API answers it."""

BeganAnew = Callable[[], Awaitable[datetime | None]]
"""Returns when a newer attempt at the run began; None if none has."""

_Kind = Literal["flow_runs", "task_runs"]

_OPEN = ("SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING")
# States of runs come first. A server on SQLite takes about 50 task runs a second.
_AT_ONCE = 4
# The last events of a dead engine may be recorded after its run has ended: look again.
_LOOKS = 3
_PAUSE_SECONDS = 5.0
_LONGEST_SECONDS = 1800.0

_log = logging.getLogger("prefect.workers.ray.children")


@dataclass(frozen=True)
class Ending:
    """How the children of a run end.

    Attributes:
        type: Crashed or Cancelled, as their run.
        message: Why.
        before: When their process was dead. What is younger belongs to another attempt.
    """

    type: StateType
    message: str
    before: datetime

    @property
    def state(self) -> State[Any]:
        """The state that each of them gets."""
        return State(type=self.type, message=self.message)


async def end_children(
    client: PrefectClient,
    flow_run_id: UUID,
    ending: Ending,
    patiently: Patiently,
    *,
    began_anew: BeganAnew,
) -> int:
    """Settle the open task runs and subflow runs of a run, and theirs; return how many.

    Args:
        client: An open client.
        flow_run_id: The run. The attempt that they belong to has ended.
        ending: How they end.
        patiently: Repeats a request until the API answers it.
        began_anew: Tells of a newer attempt, whose children are left alone.
    """
    ended: set[UUID] = set()
    with anyio.move_on_after(_LONGEST_SECONDS):
        for look in range(_LOOKS):
            known = len(ended)
            if look:
                await anyio.sleep(_PAUSE_SECONDS)
            await _Family(client, ending, patiently, began_anew, ended).end(flow_run_id)
            if len(ended) == known:
                break
    return len(ended)


@dataclass(frozen=True)
class _Family:
    client: PrefectClient
    ending: Ending
    patiently: Patiently
    began_anew: BeganAnew
    ended: set[UUID]

    async def end(self, flow_run_id: UUID) -> None:
        parents = [flow_run_id]
        while parents:
            parent = parents.pop()
            of_parent = {"any_": [str(parent)]}
            subflows = await self._open("flow_runs", {"parent_flow_run_id": of_parent})
            elsewhere = {run["id"] for run in subflows if _has_own_process(run)}
            own = [UUID(run["id"]) for run in subflows if run["id"] not in elsewhere]
            parents += own
            open_tasks = await self._open("task_runs", {"flow_run_id": of_parent})
            tasks = [run for run in open_tasks if not _runs_elsewhere(run, elsewhere)]
            await self._set_all([UUID(run["id"]) for run in tasks], self._set_task_run)
            await self._set_all(own, self._set_flow_run)

    async def _open(self, kind: _Kind, filters: dict[str, Any]) -> list[dict[str, Any]]:
        body = {kind: {**filters, "state": {"type": {"any_": _OPEN}}}}
        ask = partial(self._filter, kind)
        found = [run async for page in pages(ask, body) for run in page]
        if not found:
            return []
        # Asked afterwards: a newer attempt that has children among them has begun by now.
        began_anew = await self.began_anew()
        before = min(self.ending.before, began_anew or self.ending.before)
        return [run for run in found if self._is_left(run, before)]

    async def _filter(self, kind: _Kind, body: dict[str, Any]) -> list[dict[str, Any]]:
        path = "/flow_runs/filter" if kind == "flow_runs" else "/task_runs/filter"
        return (await self.patiently(lambda: self.client.request("POST", path, json=body))).json()

    def _is_left(self, run: dict[str, Any], before: datetime) -> bool:
        since = datetime.fromisoformat(run["state"]["timestamp"])
        return UUID(run["id"]) not in self.ended and since <= before

    async def _set_all(self, ids: list[UUID], set_one: Callable[[UUID], Awaitable[Any]]) -> None:
        limiter = anyio.CapacityLimiter(_AT_ONCE)

        async def end_one(run_id: UUID) -> None:
            async with limiter:
                try:
                    await self.patiently(lambda: set_one(run_id))
                except (ObjectNotFound, PrefectHTTPStatusError) as exc:
                    _log.warning("The state of %s could not be set: %s", run_id, exc)
                self.ended.add(run_id)

        async with anyio.create_task_group() as tasks:
            for run_id in ids:
                tasks.start_soon(end_one, run_id)

    async def _set_task_run(self, run_id: UUID) -> None:
        await self.client.set_task_run_state(run_id, self.ending.state, force=True)

    async def _set_flow_run(self, run_id: UUID) -> None:
        await self.client.set_flow_run_state(run_id, self.ending.state, force=True)


def _has_own_process(subflow: dict[str, Any]) -> bool:
    """Return whether a subflow run does not run in the process of its parent.

    A run that a worker has begun keeps its `infrastructure_pid` when its pool is deleted.
    """
    fields = ("deployment_id", "work_pool_id", "infrastructure_pid")
    return any(subflow.get(field) is not None for field in fields)


def _runs_elsewhere(task_run: dict[str, Any], subflows_elsewhere: Collection[str]) -> bool:
    """Return whether a task run does not run in the process of its flow run.

    It stands for a subflow, whose states the server gives it, or waits for a task worker. Once that
    runs it, nothing in its state says so (3.8.8): it is then settled with the others, until its
    task worker reports the next state.
    """
    details = task_run["state"].get("state_details") or {}
    return details.get("child_flow_run_id") in subflows_elsewhere or bool(details.get("deferred"))
