"""What Prefect's API says of the runs of a flow."""

import time
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import State, TaskRun

_SECONDS = 60


def task_runs(flow_run_id: UUID, count: int, *, at_least: bool = False) -> list[TaskRun]:
    """Wait until the API knows this many runs of tasks, all ended, and return them by name."""
    deadline = time.monotonic() + _SECONDS
    with get_client(sync_client=True) as client:
        while True:
            found = client.read_task_runs(
                flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])), limit=200
            )
            ended = [r for r in found if r.state and is_ended(r.state)]
            enough = len(ended) >= count if at_least else len(ended) == count
            if len(ended) == len(found) and enough:
                return sorted(found, key=lambda run: run.name)
            if time.monotonic() > deadline:
                raise AssertionError(f"{count} runs wanted: {[(r.name, r.state) for r in found]}")
            time.sleep(0.1)


def await_known(flow_run_id: UUID, count: int) -> None:
    """Wait until the API knows this many runs of tasks, in whatever state."""
    where = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    deadline = time.monotonic() + _SECONDS
    with get_client(sync_client=True) as client:
        while len(client.read_task_runs(flow_run_filter=where)) < count:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def is_ended(state: State[Any]) -> bool:
    return state.is_final() or state.name == "NotReady"


def states(flow_run_id: UUID, count: int) -> list[str]:
    """Wait for this many ended runs; return the names of their states, sorted."""
    return sorted(run.state_name or "" for run in task_runs(flow_run_id, count))


def logs(flow_run_id: UUID) -> list[str]:
    with get_client(sync_client=True) as client:
        where = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id]))
        lines: list[str] = []
        while batch := client.read_logs(where, limit=200, offset=len(lines)):
            lines += [log.message for log in batch]
        return lines


def wait_for_log(flow_run_id: UUID, text: str) -> None:
    deadline = time.monotonic() + _SECONDS
    while not any(text in line for line in logs(flow_run_id)):
        assert time.monotonic() < deadline, f"no line with {text!r} in {logs(flow_run_id)}"
        time.sleep(0.1)
