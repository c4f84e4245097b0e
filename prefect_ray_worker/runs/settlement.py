"""Tells Prefect how one attempt at a run ended, unless the run has gone on without it."""

from logging import Logger, LoggerAdapter
from typing import Any
from uuid import UUID

from prefect.client.schemas.objects import FlowRun

from prefect_ray_worker import metrics
from prefect_ray_worker.prefect_api.flow_runs import FlowRuns
from prefect_ray_worker.runs.outcome import UNTOUCHED, Outcome, Resolution


class Settlement:
    """Settles one attempt at one run.

    Args:
        flow_runs: The Prefect side.
        flow_run: The run.
        claim_id: The Pending state that began the attempt.
        logger: Logs to the flow run.
    """

    def __init__(
        self,
        flow_runs: FlowRuns,
        flow_run: FlowRun,
        claim_id: UUID,
        logger: "Logger | LoggerAdapter[Any]",
    ) -> None:
        self._flow_runs = flow_runs
        self._flow_run = flow_run
        self._claim_id = claim_id
        self._log = logger

    async def settle(self, decided: Outcome, *, rename: bool = False) -> Outcome:
        """Tell Prefect what was decided; return it, or `UNTOUCHED` if it did not apply any more.

        Args:
            decided: How the attempt ended.
            rename: Whether to replace the message of a crash that our own stop has caused.
        """
        if decided.resolution is Resolution.LEAVE or await self.is_superseded():
            return UNTOUCHED
        run_id = self._flow_run.id
        if decided.resolution is Resolution.CRASH:
            settled = await self._flow_runs.crash(run_id, decided.message, rename=rename)
        else:
            settled = await self._flow_runs.cancelled(run_id, decided.message)
        if not settled:
            return UNTOUCHED
        if decided.resolution is Resolution.CRASH:
            metrics.CRASHES.labels(decided.category or "none").inc()
        say = self._log.error if decided.resolution is Resolution.CRASH else self._log.info
        say("%s", decided.message)
        return decided

    async def try_again(self, decided: Outcome, *, allowed: int, delay: float) -> bool:
        """Have the run tried again instead of settling it; see `FlowRuns.try_again`."""
        if allowed < 1 or await self.is_superseded():
            return False
        run_id = self._flow_run.id
        again = await self._flow_runs.try_again(
            run_id, decided.message, allowed=allowed, delay=delay
        )
        if again:
            self._log.warning(
                "%s The run is tried again in %g s (infrastructure_retries).",
                decided.message,
                delay,
            )
        return again

    async def is_superseded(self) -> bool:
        """Say whether another attempt at the run has begun: what it does is not ours to settle."""
        return await self._flow_runs.claim_id(self._flow_run.id) != self._claim_id
