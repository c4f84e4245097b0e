"""`DeploymentSlots`: keeps the slots of deployments' concurrency limits while jobs start.

Prefect takes the slot with the claim and gives it a lease of 300 s by default (3.8.8). The flow
engine renews the lease, but only from Running on: a job that waits for a node, or builds its
environment, for longer loses the slot. Another run then starts, and this one is Cancelled as it
begins.
"""

import logging
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from functools import partial
from logging import Logger, LoggerAdapter
from typing import Any, Self
from uuid import UUID

import anyio
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun

from prefect_ray_worker.prefect_api.flow_runs import DEPLOYMENT_SLOT_LOST, FlowRuns
from prefect_ray_worker.prefect_api.slot_leases import SlotLeases

_LOST = (
    "The run has lost its slot of the deployment's concurrency limit before its flow began: the "
    "slot's lease ended, and no worker had renewed it. Another run may have the slot now. If the "
    "limit is used up when the flow begins, Prefect cancels this run. Set "
    "`concurrency_limit.grace_period_seconds` of the deployment to more seconds than the pool is "
    "ever without a worker."
)

Log = Logger | LoggerAdapter[Any]
_log = logging.getLogger("prefect.workers.ray.slots")


class DeploymentSlots:
    """Renews leases, all of them in one loop. Says on its run when one is lost.

    Args:
        renew: Renews a lease of a deployment's slot; returns False if the server does not have it
            any more.
        show: Shows on a run that waits that its slot is lost; returns whether the run waits.
        interval: Seconds between two renewals. The shortest lease of a server is 30 s (3.8.8).
    """

    def __init__(
        self,
        renew: Callable[[UUID, UUID | None], Awaitable[bool]],
        show: Callable[[UUID, str], Awaitable[bool]],
        *,
        interval: float,
    ) -> None:
        self._renew = renew
        self._show = show
        self._interval = interval
        self._kept: dict[UUID, tuple[FlowRun, Log]] = {}
        self._wake = anyio.Event()

    @classmethod
    def of(cls, flow_runs: FlowRuns, client: PrefectClient, *, interval: float) -> Self:
        """Return the slots of the runs of a worker.

        Args:
            flow_runs: The Prefect side.
            client: Renews them.
            interval: Seconds between two renewals.
        """
        show = partial(flow_runs.show_pending, name=DEPLOYMENT_SLOT_LOST)
        return cls(SlotLeases(client).renew, show, interval=interval)

    def let_go(self, lease_id: UUID) -> None:
        """Leave a lease to the flow engine, or to its end."""
        self._kept.pop(lease_id, None)

    @contextmanager
    def kept(
        self, lease_id: UUID | None, flow_run: FlowRun, log: Log
    ) -> Generator[None, None, None]:
        """Renew a lease, if there is one, for as long as the context is open.

        Args:
            lease_id: The lease.
            flow_run: The run that has the slot.
            log: Logs to the run.
        """
        if lease_id is not None:
            self._kept[lease_id] = flow_run, log
            self._wake.set()
        try:
            yield
        finally:
            if lease_id is not None:
                self.let_go(lease_id)

    async def run(self) -> None:
        """Renew, for ever. Run this in a background task."""
        while True:
            if not self._kept:
                await self._wake.wait()
            self._wake = anyio.Event()
            for lease_id, (flow_run, log) in list(self._kept.items()):
                await self._renew_one(lease_id, flow_run, log)
            await anyio.sleep(self._interval)

    async def _renew_one(self, lease_id: UUID, flow_run: FlowRun, log: Log) -> None:
        if lease_id not in self._kept:
            return
        try:
            has_it = await self._renew(lease_id, flow_run.deployment_id)
            if has_it or lease_id not in self._kept:
                return
            # The lease of a flow that has begun, or ended, is not this worker's any more.
            if await self._show(flow_run.id, _LOST):
                log.warning(_LOST)
        except Exception as exc:  # noqa: BLE001 (the next round tries again)
            _log.warning("The lease %s of a deployment's slot was not renewed: %s", lease_id, exc)
            return
        self.let_go(lease_id)
