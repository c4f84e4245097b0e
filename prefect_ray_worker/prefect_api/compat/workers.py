"""Private names of `BaseWorker` and `BaseJobConfiguration`."""

from typing import TYPE_CHECKING, Any

from prefect_ray_worker.prefect_api.per_settings import PerSettings

if TYPE_CHECKING:
    from contextlib import AsyncExitStack
    from logging import Logger, LoggerAdapter
    from uuid import UUID

    from anyio.abc import TaskGroup
    from prefect.events import RelatedResource
    from prefect.settings import Settings
    from prefect.workers.base import BaseJobConfiguration, BaseWorker


def exit_stack(worker: "BaseWorker[Any, Any, Any]") -> "AsyncExitStack":
    """Return the stack that `BaseWorker.setup` fills and `teardown` exits (3.8.8).

    A context entered before `super().setup()` outlives the worker's runs; no hook allows this.
    """
    return worker._exit_stack  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def runs_task_group(worker: "BaseWorker[Any, Any, Any]") -> "TaskGroup":
    """Return the task group of the worker's runs, which `teardown` waits for (3.8.8).

    Tasks in this group can use Prefect's client until they end. A task group of our own could not
    exit after the runs end and before the client closes.
    """
    group = worker._runs_task_group  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    if group is None:
        raise RuntimeError("Set up the worker first.")
    return group


async def read_work_pool(worker: "BaseWorker[Any, Any, Any]") -> None:
    """Load a worker's pool without a heartbeat, which would mark the worker online (3.8.8)."""
    pool = await worker.client.read_work_pool(worker._work_pool_name)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    worker._record_work_pool_snapshot(pool)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def pool_name(worker: "BaseWorker[Any, Any, Any]") -> str:
    """Return the name of a worker's pool, which need not exist (3.8.8)."""
    return worker._work_pool_name  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def has_pool(worker: "BaseWorker[Any, Any, Any]") -> bool:
    """Return whether a worker has read its pool: until then `work_pool` raises (3.8.8)."""
    return worker._work_pool is not None  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def worker_logger(worker: "BaseWorker[Any, Any, Any]") -> "Logger | LoggerAdapter[Logger]":
    """Return the worker's own logger, which also logs to its page in the UI (3.8.8)."""
    return worker._logger  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def work_queues(worker: "BaseWorker[Any, Any, Any]") -> frozenset[str]:
    """Return the queues that a worker polls; an empty set means all of its pool (3.8.8)."""
    return frozenset(worker._work_queues)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def related_resources(
    worker: "BaseWorker[Any, Any, Any]", configuration: "BaseJobConfiguration"
) -> "list[RelatedResource]":
    """Return the run, flow, tags, pool, worker and so on that Prefect's events name (3.8.8)."""
    return worker._event_related_resources(configuration, include_self=True)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def forget_submission(worker: "BaseWorker[Any, Any, Any]", flow_run_id: "UUID") -> None:
    """Have a worker take a run again with a later poll, after an error of its submission (3.8.8).

    Prefect does this itself at the end of `_submit_run`, which an error leaves early.
    """
    worker._submitting_flow_run_ids.discard(flow_run_id)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    observer = worker._cancelling_observer  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    if observer is not None:
        observer.remove_in_flight_flow_run_id(flow_run_id)


@PerSettings
def settings_as_variables(_: "Settings") -> dict[str, str]:
    """Return the present settings as the variables that Prefect gives to each run (3.8.8)."""
    from prefect.workers.base import BaseJobConfiguration

    return BaseJobConfiguration._base_environment()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


OVERRIDDEN = (
    "_give_worker_labels_to_flow_run",
    "_initiate_run",
    "_propose_pending_state",
    "_propose_submitting_state",
    "_submit_run",
    "_submit_run_and_capture_errors",
    "_submit_scheduled_flow_runs",
    "_documentation_url",
    "_logo_url",
    "_description",
)
"""Private members of `BaseWorker` (3.8.8) that `RayWorker` overrides; no public way exists."""
