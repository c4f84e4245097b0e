"""`Lease`: tells whether this process may still act on an attempt, at no cost as a rule.

It grants nothing: who follows a run is decided in `recovery/reconcile` and `recovery/ownership`.
"""

import math
import time
from dataclasses import dataclass
from typing import Protocol, Self
from uuid import UUID

import anyio

from prefect_ray_worker.prefect_api.flow_runs import FlowRuns
from prefect_ray_worker.runs.recovery.labels import owner_in
from prefect_ray_worker.shared.ids import attempt_in


@dataclass(frozen=True)
class Moment:
    """A moment by two clocks, because either alone can hide for how long a process did nothing.

    Attributes:
        steady: By `anyio.current_time`: it never jumps, and stands still while the machine is
            suspended (Linux, macOS).
        wall: By the clock of the machine.
    """

    steady: float
    wall: float

    @classmethod
    def now(cls) -> Self:
        """Return the present."""
        return cls(anyio.current_time(), time.time())


FOR_EVER = Moment(math.inf, math.inf)
"""A lease that is renewed at this moment stays fresh."""


class Followed(Protocol):
    """The attempts that this process submits or follows, by the submission ids of their jobs."""

    @property
    def job_ids(self) -> frozenset[str]:
        """All of them at this moment."""
        ...

    def __contains__(self, job_id: object, /) -> bool: ...


class Lease:
    """Tells whether this process still owns an attempt that it follows.

    Recovery renews the lease with each look at the pool's runs. While it is fresh, an answer
    costs nothing. A process that was frozen has no fresh lease: it asks Prefect, because another
    worker may have taken over its runs. Once it looks again, it still asks once about each attempt
    that it had then: a look tells about present attempts only, and a log may be an earlier one's.

    Args:
        instance: This process, as the runs' owner labels name it.
        flow_runs: The Prefect side.
        followed: What this process submits or follows.
        seconds: How long a renewal lasts.
    """

    def __init__(
        self, instance: str, flow_runs: FlowRuns, followed: Followed, *, seconds: float
    ) -> None:
        self._instance = instance
        self._flow_runs = flow_runs
        self._followed = followed
        self._seconds = seconds
        self._renewed_at = Moment(-math.inf, -math.inf)
        self._doubtful: set[str] = set()

    def renew(self, looked_at: Moment) -> None:
        """Extend the lease: this process has dropped the runs that other workers own.

        Args:
            looked_at: When the look at the pool's runs began.
        """
        if math.isfinite(self._renewed_at.steady) and not self._is_fresh:
            self._doubtful = set(self._followed.job_ids)
        self._renewed_at = looked_at

    async def holds(self, flow_run_id: UUID, submission_id: str) -> bool:
        """Return whether an attempt is still this process's own to act on.

        Ask this before anything that two workers must not both do.

        Args:
            flow_run_id: The run.
            submission_id: The job of the attempt.
        """
        if self._is_fresh and submission_id not in self._doubtful:
            return submission_id in self._followed
        if not await self.is_free(flow_run_id, submission_id):
            return False
        self._doubtful.discard(submission_id)
        return True

    async def is_free(self, flow_run_id: UUID, submission_id: str) -> bool:
        """Return whether no other process owns an attempt, by its labels as they are now.

        Ask this before this process writes its own label: that would hide the other owner.

        Args:
            flow_run_id: The run.
            submission_id: The job of the attempt.
        """
        run = await self._flow_runs.read(flow_run_id)
        if run is None:
            return False
        owner = owner_in(run.labels, attempt_in(submission_id))
        return owner.instance in (None, self._instance)

    @property
    def _is_fresh(self) -> bool:
        now, then = Moment.now(), self._renewed_at
        return max(now.steady - then.steady, now.wall - then.wall) < self._seconds
