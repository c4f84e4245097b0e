"""`ClusterSource`: what provides clusters, and `Cluster`, what it provides."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol
from uuid import UUID

from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.prefect_api.cluster_events import ClusterHappening
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.shared.ids import ClusterRef

Tell = Callable[[str], None]
"""Takes one line for the user."""


@dataclass(frozen=True)
class Cluster:
    """A cluster, and how to reach it.

    Attributes:
        ref: Identifies it, in this process and in others.
        connection: How this process reaches it, with credentials.
        reachable_from: Name of the only machine that can reach it; None if others can.
        is_on_demand: Whether workers make it when a run needs it, and delete it afterwards. Its
            reference then has a uid.
        is_for_one_run: Whether it was made for one attempt at a run, and goes after it.
        dashboard: Where people find its dashboard; None if only programs reach it.
    """

    ref: ClusterRef
    connection: Connection
    reachable_from: str | None = None
    is_on_demand: bool = False
    is_for_one_run: bool = False
    dashboard: str | None = None


@dataclass(frozen=True)
class ClusterPlan:
    """What a source will give to a run.

    Attributes:
        cluster: The cluster, where it is known before anything is started.
        ref: Its name, where that is known before it is started: it follows from the attempt, or
            the run's record has it.
        is_on_demand: Whether any worker can make the cluster, which can take minutes.
        is_for_one_run: Whether it is made for the attempt alone.
        only_here: Name of the only machine that will reach it; None if others can.
        home: Which of several places will have it, or would: the `home` of references.
        kept: Seconds for which it stays after a failure of the run, for the run's record; None if
            the cluster itself has them, or none is made.
    """

    cluster: Cluster | None = None
    ref: ClusterRef | None = None
    is_on_demand: bool = False
    is_for_one_run: bool = False
    only_here: str | None = None
    home: str | None = None
    kept: float | None = None

    @property
    def may_have_job(self) -> bool:
        """Whether a cluster that is made on demand can have the attempt's job already.

        A shared one is recorded with its uid before the job is submitted to it.
        """
        if not self.is_on_demand or self.ref is None:
            return False
        return self.is_for_one_run or self.ref.uid is not None

    def names(self, ref: ClusterRef) -> bool:
        """Return whether a recorded reference can be to the planned cluster.

        False as well if it is to a cluster of that name at another place, where nobody has looked.
        """
        return self.decides(ref)

    def decides(self, ref: ClusterRef) -> bool:
        """Return whether a recorded cluster is gone if the source does not find the planned one."""
        planned = self.cluster.ref if self.cluster is not None else self.ref
        return planned is not None and planned.may_be(ref) and ref.may_be_at(self.home)


class StartProgress(Protocol):
    """Told how far the start of a cluster is."""

    async def will_use(self, ref: ClusterRef) -> None:
        """Record on the run which cluster it gets, before that is created or joined.

        Call it if the cluster's name was not in the plan. Another worker that goes on with the run
        then gets the name as `recorded`, and finds the same cluster.

        Raises:
            Exception: It cannot be recorded: change nothing.
        """
        ...

    @property
    def began(self) -> datetime:
        """When the attempt began: every worker that goes on with it counts its limits from here."""
        ...

    def tell(self, line: str) -> None:
        """Take one line for the user: what was started or found."""
        ...

    def waits(self, reason: str) -> None:
        """Take a sentence: why the cluster is not ready yet. Called again and again."""
        ...

    async def happened(
        self,
        happening: ClusterHappening,
        ref: ClusterRef,
        *,
        is_news: bool = True,
        occurred: datetime | None = None,
    ) -> None:
        """Take what happened to the cluster, for the events: REQUESTED, CREATED or JOINED.

        Args:
            happening: What happened.
            ref: The cluster; with its uid as soon as it has one.
            is_news: False if another worker may have said so: a cluster was found, not created.
            occurred: When it happened; by default now.
        """
        ...


class RunAndAttempt(NamedTuple):
    """One attempt at a run: what a cluster was made for."""

    run_id: UUID
    attempt: str


@dataclass(frozen=True)
class RunOfCluster:
    """What a sweep has to know of the run that a cluster was made for.

    Attributes:
        goes_on: Whether an attempt at it has begun and not ended.
        failed: Whether it ended without success: Crashed or Failed.
        attempt: Its present attempt, if its labels name one.
        is_unfinished: Whether the log of the cluster's attempt is still being forwarded.
        age: Seconds since it came into its state.
        kept: Seconds for which the cluster of the attempt stays after a failure, as the run's
            record has it; None if it has nothing.
    """

    goes_on: bool
    failed: bool
    attempt: str | None
    is_unfinished: bool
    age: float
    kept: float | None = None


class PoolView(Protocol):
    """What a sweep has to know of the work pool and its runs."""

    @property
    def pool_id(self) -> UUID:
        """The work pool."""
        ...

    def is_mine(self, key: str, /) -> bool:
        """Return whether this worker is the first to sweep an object; `key` is its uid.

        It may not know where the object is: the others delete it a little later.
        """
        ...

    async def runs(
        self, attempts: frozenset[RunAndAttempt]
    ) -> Mapping[RunAndAttempt, RunOfCluster]:
        """Return the runs of attempts, without those that Prefect does not have.

        Raises:
            Exception: Prefect did not answer.
        """
        ...

    async def in_use(self) -> frozenset[ClusterRef]:
        """Return the planned references of all clusters that a run of the pool names.

        That is each run that goes on, and each whose log is still forwarded. A run names its
        cluster before it joins it; so read the cluster first, then this.

        Raises:
            Exception: Prefect did not answer.
        """
        ...


class ClusterSource(Protocol):
    """Provides clusters of one kind.

    A worker calls `take_over` once when it starts, `sweep` about once a minute, and `close` once
    when it ends.
    """

    async def plan(
        self,
        configuration: RayJobConfiguration,
        job_id: str | None,
        recorded: ClusterRef | None = None,
    ) -> ClusterPlan | None:
        """Return what a run will get, without asking anything; None for a run of another source.

        Args:
            configuration: Of the run; of the pool if there is no run.
            job_id: The submission id of the attempt's job; None if there is no run.
            recorded: The cluster that the record of this attempt names, if it does. Plan that one
                if it can be the source's own, whatever the configuration has become.
        """
        ...

    async def acquire(self, plan: ClusterPlan, progress: StartProgress) -> Cluster:
        """Return a planned cluster that takes jobs, and start it if it is not there. Idempotent.

        Cancel it to stop waiting; a cluster that was started meanwhile stays. If the plan names a
        cluster with its uid, the attempt's job may be there: return that cluster, or fail.

        Args:
            plan: From `plan`.
            progress: Told what was started or found, and what it waits for.

        Raises:
            LocalClusterError: It cannot be started.
            ClusterFailed: It cannot be started, or did not become ready in time.
        """
        ...

    async def look(self, plan: ClusterPlan) -> Cluster | None:
        """Return a planned cluster; None if it is not there. Starts and changes nothing.

        Not None does not mean that the cluster answers.
        """
        ...

    async def why_gone(self, ref: ClusterRef) -> str | None:
        """Return why a cluster is certainly gone, as a clause; None if it is not, or not certainly.

        Asked when the cluster does not answer.
        """
        ...

    async def release(self, ref: ClusterRef, *, failed: bool) -> str | None:
        """Let go of a cluster whose run has ended; one that was made for the run goes. Idempotent.

        Never raises: what cannot be deleted now is left to the sweep.

        Args:
            ref: The cluster, as it was planned or acquired.
            failed: Whether the run ended without success, and the cluster may be looked at.

        Returns:
            What was done, in a sentence for the run's log; None for nothing.
        """
        ...

    async def take_over(self, tell: Tell) -> None:
        """Take charge of what earlier workers have started on this machine and left."""
        ...

    async def sweep(
        self, view: PoolView, pool_configuration: RayJobConfiguration | None, tell: Tell
    ) -> None:
        """Delete clusters of the pool that nobody needs any more.

        Args:
            view: The pool and its runs.
            pool_configuration: That of a run which sets nothing; None if it cannot be read.
            tell: Told in one line what was deleted, and why.
        """
        ...

    async def close(self, tell: Tell, ended: frozenset[str]) -> None:
        """Let go of every acquired cluster; stop what this machine runs and nobody else uses.

        Args:
            tell: Told in one line what was stopped or left.
            ended: Submission ids of jobs that count as ended, whatever Ray says.
        """
        ...
