"""`Reconciler`: looks, again and again, for runs of the pool that nobody looks after.

Level-triggered: it compares what Prefect says goes on with what this process follows, and acts on
the difference, whatever has caused it: a worker that was killed, one that was asleep, a following
that failed, a run that was deleted.
"""

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from uuid import UUID

import anyio
from anyio.lowlevel import checkpoint
from prefect.client.schemas.objects import FlowRun, StateType, WorkPool

from prefect_ray_worker.prefect_api.active_runs import ActiveRun
from prefect_ray_worker.prefect_api.flow_runs import FlowRuns
from prefect_ray_worker.runs.recovery.adopt import Adoption, OrphanedRun
from prefect_ray_worker.runs.recovery.ownership import (
    OWNER_LABEL,
    Decision,
    Worker,
    decide,
    heir,
    is_given_up,
    label_of,
    labelled_owner,
    owner_in,
)
from prefect_ray_worker.runs.registry import FollowedRuns
from prefect_ray_worker.runs.services import Lease
from prefect_ray_worker.shared.backoff import Backoff, jittered
from prefect_ray_worker.shared.ids import (
    InfrastructurePid,
    attempt_in,
    job_of_attempt,
    present_claim,
    submission_id,
)

# A worker labels a run within moments of its claim, unless the Prefect API is slow, or hundreds of
# runs wait for their turn before this one.
_SETTLED_SECONDS = 60.0
_SETTLED_IN_A_BURST_SECONDS = 300.0
# Two workers that saw different lists of workers may both claim a run: the label that stands
# after this time is the one that counts.
_CLAIM_SECONDS = 1.0

_log = logging.getLogger("prefect.workers.ray.recovery")


@dataclass(frozen=True)
class Situation:
    """Where a reconciler stands.

    Attributes:
        me: This process.
        host: This machine.
        pool: Returns the worker's pool, which has another id once it is made anew.
        unreachable_limit: Seconds without a sign of life after which a run on a machine that is
            gone counts as dead.
    """

    me: Worker
    host: str
    pool: Callable[[], WorkPool]
    unreachable_limit: float


class Reconciler:
    """Looks after the runs of a pool, for one worker process.

    Args:
        situation: Where it stands.
        flow_runs: The Prefect side.
        followed: What this process follows.
        adoption: Adopts runs.
        lease: Renewed with each look.
        interval: Seconds between two looks; half a heartbeat is a good measure.
    """

    def __init__(
        self,
        situation: Situation,
        flow_runs: FlowRuns,
        followed: FollowedRuns,
        adoption: Adoption,
        lease: Lease,
        *,
        interval: float,
    ) -> None:
        self._here = situation
        self._api = flow_runs
        self._followed = followed
        self._adoption = adoption
        self._interval = interval
        self._starting = True
        self._lease = lease

    async def run(self) -> None:
        """Look, for ever; meant for a background task of whoever owns this."""
        backoff = Backoff(initial=self._interval)
        while True:
            try:
                await self.look()
            except Exception as exc:  # noqa: BLE001 (no trouble may end the looking)
                _log.warning("Cannot look for runs that nobody follows: %s", exc, exc_info=exc)
                await anyio.sleep(backoff.next())
                continue
            backoff.reset()
            await anyio.sleep(jittered(self._interval))

    async def look(self) -> None:
        """Compare once what goes on with what is followed, and act on the difference."""
        api = self._api
        # In this order: a run that is claimed after it was listed is its worker's.
        followed_before = self._followed.followers
        began = anyio.current_time()
        pool = self._here.pool()
        runs = await api.active(pool.id)
        online = await api.online_workers(pool.name)
        if self._here.me.name not in online:
            return  # just started, or asleep for long: the next heartbeat puts that right
        to_take: list[tuple[ActiveRun, str]] = []
        for run in runs.values():
            await checkpoint()  # there may be thousands, and most take no request
            with _going_on_without(run.id):
                job_id = await self._examine(api, run, online)
                to_take += [(run, job_id)] if job_id is not None else []
        self._starting = False
        self._lease.renew(began)
        for found in await self._claimed(api, to_take):
            self._followed.in_background(
                partial(self._adoption.adopt, found), f"ray-adopt {found.flow_run.id}"
            )
        for follower in followed_before:
            run_id = follower.attempt.run_id
            if run_id not in runs and await api.read(run_id) is None:
                # Twice over: the pool's list, which was answered, does not have it either.
                follower.attempt.log.warning("The flow run was deleted; its Ray Job is stopped.")
                follower.run_was_deleted()

    async def _examine(self, api: FlowRuns, run: ActiveRun, online: frozenset[str]) -> str | None:
        """Return the job of a run that this process is to take over; drop it if another has."""
        me = self._here.me
        labelled = labelled_owner(run.labels)
        if self._followed.has_in_hand(run.id) or (labelled is None and self._is_new(run, online)):
            return None
        if labelled is not None and labelled[1].instance and labelled[1].name in online:
            attempt, owner = labelled
            job_id = job_of_attempt(run.id, attempt)
            if owner.instance == me.instance and job_id in self._followed:
                return None
            if owner.name != me.name:
                # Should the label be an earlier attempt's, its owner looks further than this.
                self._followed.drop(job_id)
                return None
        # What is recorded may be an earlier attempt's.
        claim = present_claim(await api.states(run.id)) or run.id
        job_id = submission_id(run.id, claim)
        attempt = attempt_in(job_id)
        owner = owner_in(run.labels, attempt)
        follows = job_id in self._followed
        if owner.host not in (None, self._here.host):
            if not follows and owner.name not in online:
                await self._bury(api, run, online, owner.host)
            return None
        decision = decide(
            owner,
            me,
            online,
            run_id=run.id,
            follows=follows,
            starting=self._starting,
            settled=self._is_settled(run, owner.name, online),
            given_up=is_given_up(run.labels, attempt),
        )
        if decision is Decision.DROP:
            self._followed.drop(job_id)
        return job_id if decision is Decision.TAKE and not follows else None

    def _is_new(self, run: ActiveRun, online: frozenset[str]) -> bool:
        """Say whether a run was claimed a moment ago, by a worker that is at it.

        In a burst there are hundreds, and to find out their attempts takes a request for each.
        """
        submitter = owner_in(run.labels, "").name
        if run.state != StateType.PENDING or self._is_settled(run, submitter, online):
            return False
        if submitter is None:
            return self._followed.has_any_in_hand  # it may be next
        predecessors = self._starting and submitter == self._here.me.name
        return submitter in online and not predecessors

    def _is_settled(self, run: ActiveRun, submitter: str | None, online: frozenset[str]) -> bool:
        """Say whether a run is old enough for its worker's label to have been written."""
        may_queue = submitter in online or self._followed.has_any_in_hand
        return run.age > (_SETTLED_IN_A_BURST_SECONDS if may_queue else _SETTLED_SECONDS)

    async def _claimed(
        self, api: FlowRuns, to_take: list[tuple[ActiveRun, str]]
    ) -> list[OrphanedRun]:
        """Say on the runs that they are ours, and return those of which that is still true."""
        for run, job_id in to_take:
            attempt = attempt_in(job_id)
            host = owner_in(run.labels, attempt).host
            mine = label_of(self._here.me, attempt, host)
            with _going_on_without(run.id):
                await api.label(run.id, {OWNER_LABEL: mine})
        if to_take:
            await anyio.sleep(_CLAIM_SECONDS)
        claimed: list[OrphanedRun] = []
        for listed, job_id in to_take:
            run = await api.read(listed.id)
            if run is None:
                continue
            owner = owner_in(run.labels, attempt_in(job_id))
            if owner.instance == self._here.me.instance:
                claimed.append(OrphanedRun(run, job_id, _pid_if(run, job_id)))
        return claimed

    async def _bury(
        self, api: FlowRuns, run: ActiveRun, online: frozenset[str], host: str | None
    ) -> None:
        """Crash a run whose machine nobody can ask, once it has given no sign of life for long."""
        limit = self._here.unreachable_limit
        if run.age < limit or heir(run.id, online) != self._here.me.name:
            return
        if await api.shows_life(run.id, within=limit):
            return
        await api.crash(
            run.id,
            f"The run was on a Ray of the machine {host}, no worker is online there any more, and "
            f"it has given no sign of life for {limit:g} s. Start a worker on that machine to "
            "have such runs looked after, or give the pool the address of a shared cluster.",
        )


@contextmanager
def _going_on_without(run_id: UUID) -> Generator[None, None, None]:
    """Leave a run that makes trouble, a deleted one for example, for the next look."""
    try:
        yield
    except Exception as exc:  # noqa: BLE001 (one run must not hide all the others)
        _log.warning("Cannot look after the run %s now: %s", run_id, exc)


def _pid_if(run: FlowRun, job_id: str) -> InfrastructurePid | None:
    try:
        pid = InfrastructurePid.parse(run.infrastructure_pid or "")
    except ValueError:
        return None
    return pid if pid.submission_id == job_id else None
