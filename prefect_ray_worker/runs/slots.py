"""`DeploymentSlots`: keeps the slots of deployments' concurrency limits while jobs start.

Prefect takes the slot with the claim and gives it a lease of 300 s by default (3.8.8). The flow
engine renews the lease, but only from Running on: a job that waits for a node, or builds its
environment, for longer loses the slot. Another run then starts, and this one is Cancelled as it
begins.
"""

import logging
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from logging import Logger, LoggerAdapter
from typing import Any
from uuid import UUID

import anyio

_LOST = (
    "The run has lost its slot of the deployment's concurrency limit while its job was starting: "
    "its lease ended before this worker renewed it. If the limit is used up when the flow begins, "
    "Prefect cancels the run. Raise `concurrency_limit.grace_period_seconds` of the deployment, or "
    "PREFECT_SERVER_CONCURRENCY_INITIAL_DEPLOYMENT_LEASE_DURATION of the server."
)

_log = logging.getLogger("prefect.workers.ray.slots")


class DeploymentSlots:
    """Renews leases, all of them in one loop.

    Args:
        renew: Renews a lease; returns False if the server does not have it any more.
        interval: Seconds between two renewals. The shortest lease of a server is 30 s (3.8.8).
    """

    def __init__(self, renew: Callable[[UUID], Awaitable[bool]], *, interval: float) -> None:
        self._renew = renew
        self._interval = interval
        self._kept: dict[UUID, Logger | LoggerAdapter[Any]] = {}
        self._wake = anyio.Event()

    def keep(self, lease_id: UUID, log: "Logger | LoggerAdapter[Any]") -> None:
        """Renew a lease from now on.

        Args:
            lease_id: The lease.
            log: Logs to the flow run.
        """
        self._kept[lease_id] = log
        self._wake.set()

    def let_go(self, lease_id: UUID) -> None:
        """Leave a lease to the flow engine, or to its end."""
        self._kept.pop(lease_id, None)

    @contextmanager
    def kept(
        self, lease_id: UUID | None, log: "Logger | LoggerAdapter[Any]"
    ) -> Generator[None, None, None]:
        """Renew a lease, if there is one, for as long as the context is open."""
        if lease_id is not None:
            self.keep(lease_id, log)
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
            for lease_id, log in list(self._kept.items()):
                await self._renew_one(lease_id, log)
            await anyio.sleep(self._interval)

    async def _renew_one(self, lease_id: UUID, log: "Logger | LoggerAdapter[Any]") -> None:
        if lease_id not in self._kept:
            return
        try:
            renewed = await self._renew(lease_id)
        except Exception as exc:  # noqa: BLE001 (the next round tries again)
            _log.warning("The lease %s of a deployment's slot was not renewed: %s", lease_id, exc)
            return
        if not renewed and lease_id in self._kept:
            self.let_go(lease_id)
            log.warning(_LOST)
