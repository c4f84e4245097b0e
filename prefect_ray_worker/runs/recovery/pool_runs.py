"""`PoolRuns`: what the sweep of clusters has to know of a pool and its runs."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect_ray_worker.clusters.source import RunAndAttempt, RunOfCluster
from prefect_ray_worker.prefect_api.active_runs import ENDED_BADLY, GOES_ON, ActiveRun
from prefect_ray_worker.prefect_api.flow_runs import FlowRuns
from prefect_ray_worker.runs.recovery.labels import (
    CLUSTER_LABEL,
    is_unfinished,
    kept_in,
    labelled_cluster,
    labelled_owner,
)
from prefect_ray_worker.shared.ids import ClusterRef, InfrastructurePid, attempt_name

# For so long after the end of its run, the log of a job is still forwarded from a shared cluster.
_DRAIN_SECONDS = 600.0


@dataclass(frozen=True)
class PoolRuns:
    """What the sweep of clusters has to know of a pool and its runs.

    Attributes:
        pool_id: The pool.
        flow_runs: The Prefect side.
        is_mine: Returns whether this worker is the first to sweep the object with a uid.
        pool_name: The pool's name.
    """

    pool_id: UUID
    flow_runs: FlowRuns
    is_mine: Callable[[str], bool]
    pool_name: str = ""

    async def runs(
        self, attempts: frozenset[RunAndAttempt]
    ) -> Mapping[RunAndAttempt, RunOfCluster]:
        """Return the runs of attempts, without those that Prefect does not have."""
        runs = await self.flow_runs.some({of.run_id for of in attempts})
        return {
            of: _seen_from(run, of.attempt, await self._present_attempt(run, of.attempt))
            for of in attempts
            if (run := runs.get(of.run_id)) is not None
        }

    async def _present_attempt(self, run: ActiveRun, attempt: str) -> str | None:
        """Return the present attempt at a run, seen from a cluster of one of its attempts.

        A label that names another one is checked: the job of the present attempt must not lose its
        cluster because a worker was late with its label.
        """
        labelled = labelled_owner(run.labels)
        named = labelled[0] if labelled is not None else None
        if named in (None, attempt) or run.state not in GOES_ON:
            return named
        return attempt_name(await self.flow_runs.claim_id(run.id))

    async def in_use(self) -> frozenset[ClusterRef]:
        """Return the planned references of all clusters that a run of the pool names."""
        since = datetime.now(UTC) - timedelta(seconds=_DRAIN_SECONDS)
        # In this order: a run that ends in between is in the second answer.
        active = await self.flow_runs.active(self.pool_id, self.pool_name)
        ended = await self.flow_runs.ended(self.pool_id, since)
        named = {ref for run in active.values() for ref in _named_by(run)}
        for run in ended.values():
            labelled = labelled_owner(run.labels)
            if labelled is not None and is_unfinished(run.labels, labelled[0]):
                named |= _named_by(run)
        return frozenset(ref.planned for ref in named)


def _seen_from(run: ActiveRun, attempt: str, present: str | None) -> RunOfCluster:
    return RunOfCluster(
        goes_on=run.state in GOES_ON,
        failed=run.state in ENDED_BADLY,
        attempt=present,
        is_unfinished=is_unfinished(run.labels, attempt),
        age=run.age,
        kept=kept_in(run.labels, attempt),
    )


def _named_by(run: ActiveRun) -> set[ClusterRef]:
    """Return the clusters that a run names, an earlier attempt's included: it may be at its end."""
    named: set[ClusterRef] = set()
    attempt, _, _ = str(run.labels.get(CLUSTER_LABEL, "")).partition(" ")
    if (labelled := labelled_cluster(run.labels, attempt)) is not None:
        named.add(labelled)
    with suppress(ValueError):
        named.add(InfrastructurePid.parse(run.infrastructure_pid or "").cluster)
    return named
