"""`StartNews`: tells what the start of a run's cluster waits for, and what came of it."""

import math
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from logging import Logger, LoggerAdapter
from typing import Any

import anyio
from prefect.events import RelatedResource

from prefect_ray_worker import metrics
from prefect_ray_worker.errors import ClusterFailed
from prefect_ray_worker.prefect_api.cluster_events import ClusterEvents, ClusterHappening
from prefect_ray_worker.shared.ids import ClusterRef

# The same reason is told again after this time.
_REPEAT_SECONDS = 300.0
# Sooner after a claim no other worker has gone on with the attempt.
_TAKEN_OVER_SECONDS = 30.0


class StartNews:
    """Takes what the start of a cluster waits for: logs each reason once, and sends the events.

    Attributes:
        began: When the attempt was claimed.
        reason: What the start waits for, by its last word.
        news: Set with each reason.

    Args:
        log: Logs to the flow run.
        record: Writes on the run which cluster it gets.
        events: Sends what happens to clusters.
        job_id: The submission id of the attempt's job.
        related: What the events are related to.
        began: When the attempt was claimed.
    """

    def __init__(
        self,
        log: "Logger | LoggerAdapter[Any]",
        record: Callable[[ClusterRef], Awaitable[None]],
        events: ClusterEvents,
        *,
        job_id: str,
        related: Sequence[RelatedResource],
        began: datetime,
    ) -> None:
        self._log = log
        self._record = record
        self._events = events
        self._job_id = job_id
        self._related = related
        self._told_at: dict[str, float] = {}
        self._ref: ClusterRef | None = None
        self._has_joined = False
        self.began = began
        self.reason = ""
        self.news = anyio.Event()

    async def will_use(self, ref: ClusterRef) -> None:
        """Record on the run which cluster it gets."""
        await self._record(ref)

    def tell(self, line: str) -> None:
        """Log a line."""
        self._log.info("%s", line)

    def waits(self, reason: str) -> None:
        """Log a reason that is new, or has not been told for long."""
        now = anyio.current_time()
        if now - self._told_at.get(reason, -math.inf) >= _REPEAT_SECONDS:
            self._told_at[reason] = now
            self._log.info("%s", reason)
        self.reason = reason
        self.news.set()

    async def happened(
        self,
        happening: ClusterHappening,
        ref: ClusterRef,
        *,
        is_news: bool = True,
        occurred: datetime | None = None,
    ) -> None:
        """Send the event of what a source has done."""
        self._ref = ref
        begins = happening is ClusterHappening.REQUESTED
        self._has_joined |= happening is ClusterHappening.JOINED
        await self._events.tell(
            happening,
            ref,
            related=self._related,
            occasion=self._job_id if happening is ClusterHappening.JOINED else "",
            occurred=occurred,
            may_be_told=not is_news or (begins and self._is_taken_over),
        )

    async def ready(self, ref: ClusterRef) -> None:
        """Tell that the cluster takes jobs, unless another run or worker has told so."""
        is_news = await self._events.tell(
            ClusterHappening.READY,
            ref,
            related=self._related,
            may_be_told=self._has_joined or self._is_taken_over,
        )
        if is_news and not self._has_joined:
            took = max(self._age, 0.0)
            metrics.CLUSTER_READY_SECONDS.labels(ref.kind).observe(took)
            self._log.info("The cluster %s takes jobs, %.0f s after the claim.", ref.planned, took)

    async def failed(self, planned: ClusterRef | None, failure: ClusterFailed) -> None:
        """Tell that the cluster cannot be created, or does not take jobs."""
        ref = self._ref or planned
        if ref is not None:
            await self._events.tell(
                ClusterHappening.FAILED,
                ref,
                related=self._related,
                category=failure.category,
                message=str(failure),
            )

    @property
    def _age(self) -> float:
        return (datetime.now(UTC) - self.began).total_seconds()

    @property
    def _is_taken_over(self) -> bool:
        """Whether another worker may have begun with the attempt."""
        return self._age >= _TAKEN_OVER_SECONDS
