"""Private names around a flow run: loading, running and ending it."""

from functools import partial
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from prefect.client.schemas.objects import FlowRun
    from prefect.flows import Flow


Intent = Literal["cancel", "reschedule", "relinquish"]
"""Why a flow must end (`prefect._internal.attempt_control.Intent`, 3.8.8)."""


def set_termination_intent(intent: Intent) -> None:
    """Tell this process's flow engine what the next `TerminationSignal` means.

    The engine reads the intent from `prefect._internal.control_listener` (3.8.8). Prefect's own
    supervisor process sends it there over a socket; our supervisor sets it from the same process.
    """
    from prefect._internal import control_listener

    control_listener._set_intent(intent)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


async def prepare_workspace(flow_run_id: UUID, folder: "Path") -> str:
    """Run a deployment's pull steps, enter their directory and return the flow's entrypoint.

    `prefect flow-run execute` does this in a separate process (3.8.8); this function does it in
    the current one.
    """
    from prefect.runner._workspace_resolver import prepare_workspace_for_flow_run

    workspace = await prepare_workspace_for_flow_run(flow_run_id, folder)
    return workspace.runtime_entrypoint


def load_flow(flow_run: "FlowRun") -> "Flow[..., Any]":
    """Load the flow of `PREFECT__FLOW_ENTRYPOINT`, as `prefect.engine` does (3.8.8)."""
    from prefect.flow_engine import load_flow as load

    return load(flow_run)


def do_not_join_heartbeats() -> None:
    """End runs without waiting for their heartbeat thread, which sleeps 1 s at a time.

    `flow_engine._send_heartbeats` (3.8.8) joins this daemon thread for sync flows, but not for
    async ones. The thread checks before each heartbeat whether the run has ended.
    """
    from prefect import flow_engine

    beat = getattr(flow_engine, "_send_heartbeats", None)
    if beat is not None:
        flow_engine._send_heartbeats = partial(beat, join_on_exit=False)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def run_metrics(flow_run: "FlowRun", flow: "Flow[..., Any]") -> "AbstractContextManager[Any]":
    """Return the metrics context that `prefect.engine` opens around a run (3.8.8)."""
    from prefect._internal.metrics import RunMetrics

    return RunMetrics(flow_run, flow)


def drive_flow_result(flow: "Flow[..., Any]", result: object) -> None:
    """Run the result of `run_flow` for async and generator flows (`prefect.engine`, 3.8.8)."""
    from prefect.engine import (
        _drive_run_flow_result,  # pyright: ignore[reportPrivateUsage]
    )

    _drive_run_flow_result(flow, result)


def raise_if_suspended() -> None:
    """Stop the flow here if its run was asked to suspend.

    Every Prefect future does this after a wait (`prefect/_flow_run_suspension.py`, 3.8.8). Does
    nothing on Prefect versions without this mechanism.
    """
    try:
        from prefect._flow_run_suspension import raise_if_flow_run_suspension_requested
    except ImportError:
        return
    raise_if_flow_run_suspension_requested()
