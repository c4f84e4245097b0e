"""Look regularly for runs of the pool that no worker follows.

Level-triggered: each look compares the runs that Prefect calls active with those that this process
follows, and acts on the difference, whatever the cause: a worker that was killed or asleep, a
follower that failed, a run that was deleted. This module collects the facts and does what
`ownership.decide` says. If two workers take the same run at once, each writes its label, waits, and
reads the label back; the worker whose label stands goes on.

A look at a large pool is expensive for the Prefect server, and every worker of the pool looks.
`LookPace` therefore lets most looks of a large pool cover the worker's own runs only.
"""

import logging
import math
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import UUID

import anyio
from anyio.lowlevel import checkpoint
from prefect.client.schemas.objects import TERMINAL_STATES, StateType, WorkPool

from prefect_ray_worker.prefect_api.active_runs import GOES_ON, ActiveRun
from prefect_ray_worker.prefect_api.flow_runs import INFRASTRUCTURE_PENDING
from prefect_ray_worker.runs.lease import Moment
from prefect_ray_worker.runs.recovery.adopt import Adoption
from prefect_ray_worker.runs.recovery.labels import (
    UPLOADING_LABEL,
    Worker,
    claimed_by,
    is_unfinished,
    labelled_cluster,
    labelled_owner,
    labelled_owner_of,
    owner_in,
    recorded_pid,
    submitter_in,
)
from prefect_ray_worker.runs.recovery.ownership import REMEMBER_SECONDS, Decision, Facts, decide
from prefect_ray_worker.runs.registry import FollowedRuns
from prefect_ray_worker.runs.run import OrphanedRun
from prefect_ray_worker.runs.services import Services
from prefect_ray_worker.shared.backoff import Backoff, jittered
from prefect_ray_worker.shared.ids import (
    STARTING,
    attempt_in,
    attempt_name,
    job_of_attempt,
    present_claim,
)

# Two workers that saw different lists of workers may both claim a run: the label that stands
# after this time is the one that counts.
_CLAIM_SECONDS = 1.0
# As long as the first heir of a run may take to claim it before it is the next one's turn.
_LOOKS_PER_TURN = 4
# How often runs that have ended are looked at, and how much further back than the last time: a run
# may have ended just then, and the clocks may differ.
_LOOKS_PER_ENDED = 4
_ENDED_OVERLAP = timedelta(minutes=2)
# A list of up to so many runs is one page: no look at it is spared.
_FEW_RUNS = 200
# The lists of all workers of a pool together keep the server busy for a fifth of the time.
_REST_FACTOR = 4
_LONGEST_REST_SECONDS = 300.0
# Name of the Pending state that the server grants with a claim.
_CLAIM = "Pending"
# Names of Pending states that nobody reports before the job is submitted.
_SUBMITTED = frozenset({STARTING, INFRASTRUCTURE_PENDING})

_log = logging.getLogger("prefect.workers.ray.recovery")


@dataclass(frozen=True)
class _KnownAttempt:
    """The present attempt at a run, for as long as the run is in this state."""

    state_id: UUID
    name: str
    began: datetime


class LookPace:
    """Decides which looks cover all active runs of a pool, and which the worker's own runs only.

    To list 10,000 runs takes a Prefect server about 4 s of CPU (3.8.8, SQLite). Ten workers that
    list them every 15 s would need more than two servers, so the workers share the time. With few
    runs, every look covers all. After a worker has gone offline, the next look does too: the worker
    may have left runs behind.
    """

    def __init__(self) -> None:
        self._due = -math.inf
        self._online: frozenset[str] = frozenset()

    def covers_all(self) -> bool:
        """Return whether the next look covers all runs of the pool."""
        return anyio.current_time() >= self._due

    def listed(self, runs: int, *, took: float) -> None:
        """Note that all runs were listed.

        Args:
            runs: How many there are.
            took: Seconds that it took.
        """
        workers = max(len(self._online), 1)
        rest = min(took * workers * _REST_FACTOR, _LONGEST_REST_SECONDS)
        self._due = -math.inf if runs <= _FEW_RUNS else anyio.current_time() + rest

    def saw_online(self, online: frozenset[str]) -> None:
        """Note which workers are online."""
        if self._online - online:
            self._due = -math.inf
        self._online = online


class Reconciler:
    """Looks after the runs of a pool, for one worker process.

    Args:
        me: This process.
        pool: Returns the worker's pool, which has another id once it is made anew.
        services: What the worker's runs share.
        followed: What this process follows.
        adoption: Adopts runs.
        interval: Seconds between two looks; half a heartbeat is a good measure.
    """

    def __init__(
        self,
        me: Worker,
        pool: Callable[[], WorkPool],
        services: Services,
        followed: FollowedRuns,
        adoption: Adoption,
        *,
        interval: float,
    ) -> None:
        self._me = me
        self._pool = pool
        self._api = services.flow_runs
        self._lease = services.lease
        self._unreachable_limit = services.unreachable_limit
        self._claim_grace = services.timing.claim_grace
        self._followed = followed
        self._adoption = adoption
        self._interval = interval
        self.online: frozenset[str] = frozenset()  # as of the last look
        self._pace = LookPace()
        self._starting = True
        self._born = datetime.now(UTC)
        self._attempts: dict[UUID, _KnownAttempt] = {}
        self._waits_since: dict[UUID, float] = {}
        self._looks = 0
        self._unfinished: set[UUID] = set()
        self._ended_since = self._born - timedelta(seconds=REMEMBER_SECONDS)

    async def run(self) -> None:
        """Look until cancelled; run this in a background task."""
        backoff = Backoff(initial=self._interval)
        while True:
            try:
                await self.look()
            except Exception as exc:  # noqa: BLE001 (the next look tries again)
                _log.warning("Cannot look for orphaned runs: %s", exc, exc_info=exc)
                await anyio.sleep(backoff.next())
                continue
            backoff.reset()
            await anyio.sleep(jittered(self._interval))

    async def look(self) -> None:
        """Compare the active runs with the followed ones once, and act on the difference."""
        api = self._api
        # In this order: a run that is claimed after it was listed is its worker's.
        followed_before = self._followed.followers
        began = Moment.now()
        pool = self._pool()
        covers_all = self._pace.covers_all()
        if covers_all:
            runs = await api.active(pool.id, pool.name)
            self._pace.listed(len(runs), took=anyio.current_time() - began.steady)
        else:
            own = await api.some([follower.attempt.run_id for follower in followed_before])
            runs = {run.id: run for run in own.values() if run.state in GOES_ON}
        self.online = online = await api.online_workers(pool.name)
        self._pace.saw_online(online)
        if self._me.name not in online:
            return  # just started, or asleep for long: the next heartbeat puts that right
        runs |= await self._left_unfinished(pool.id)
        to_take: list[tuple[ActiveRun, str]] = []
        for run in runs.values():
            await checkpoint()  # there may be thousands, and most take no request
            with _going_on_without(run.id):
                decision, attempt = await self._decided(run, online)
                await self._act(decision, run, attempt, to_take)
        self._lease.renew(began)
        if covers_all:
            self._starting = False
            self._forget_all_but(runs.keys() | self._unfinished)
        for found in await self._claimed(to_take):
            self._followed.in_background(
                partial(self._adoption.adopt, found), f"ray-adopt {found.flow_run.id}"
            )
        for follower in followed_before:
            run_id = follower.attempt.run_id
            if run_id not in runs and await api.read(run_id) is None:
                # Twice over: the pool's list, which was answered, does not have it either.
                follower.attempt.log.warning("The flow run was deleted; its Ray Job is stopped.")
                follower.run_was_deleted()

    async def _left_unfinished(self, pool_id: UUID) -> dict[UUID, ActiveRun]:
        """Return the runs that have ended, and of which something is left to do.

        A worker may die between the end of a run and the end of its log. What has ended since the
        last time is listed; what was unfinished then is read again.
        """
        self._looks += 1
        if self._looks % _LOOKS_PER_ENDED != 1:
            return {}
        now = datetime.now(UTC)
        ended = await self._api.ended(pool_id, self._ended_since)
        earlier = self._unfinished - ended.keys()
        ended |= await self._api.some(earlier)
        left = {run.id: run for run in ended.values() if _is_left_unfinished(run)}
        # Only now: if a request fails, the next look at ended runs lists these again.
        self._unfinished, self._ended_since = set(left), now - _ENDED_OVERLAP
        return left

    async def _act(
        self,
        decision: Decision,
        run: ActiveRun,
        attempt: str,
        to_take: list[tuple[ActiveRun, str]],
    ) -> None:
        job_id = job_of_attempt(run.id, attempt)
        if decision is Decision.WAIT:
            self._waits_since.setdefault(run.id, anyio.current_time())
        else:
            self._waits_since.pop(run.id, None)
        match decision:
            case Decision.TAKE:
                to_take.append((run, job_id))
            case Decision.DROP:
                self._followed.drop(job_id)
            case Decision.BURY:
                await self._bury(run, attempt)
            case _:
                pass

    def _forget_all_but(self, runs: Collection[UUID]) -> None:
        """Keep no notes about runs that have ended."""
        for notes in (self._attempts, self._waits_since):
            for run_id in notes.keys() - set(runs):
                del notes[run_id]

    async def _decided(self, run: ActiveRun, online: frozenset[str]) -> tuple[Decision, str]:
        """Decide about a run; return that, and the name of its present attempt."""
        attempt, facts = self._facts_of(run, online)
        while True:
            decision = decide(facts)
            match decision:
                case Decision.READ_HISTORY:
                    attempt, facts = await self._with_history(run, facts)
                case Decision.READ_PLACE:
                    place = await self._adoption.place_of(run, attempt)
                    facts = replace(facts, place=place)
                case Decision.READ_LIFE:
                    limit = self._unreachable_limit
                    alive = await self._api.shows_life(run.id, within=limit)
                    facts = replace(facts, shows_life=alive)
                case _:
                    return decision, attempt

    def _facts_of(self, run: ActiveRun, online: frozenset[str]) -> tuple[str, Facts]:
        """Return what is known of a run without a request for it."""
        labelled = labelled_owner(run.labels)
        attempt, owner = labelled if labelled is not None else ("", None)
        is_current = None
        if run.state == StateType.PENDING and run.state_name == _CLAIM:
            # The state that the listing shows is the claim itself.
            attempt = attempt_name(run.state_id)
            own = labelled_owner_of(run.labels, attempt)
            owner, is_current = own or owner, own is not None
        waits_since = self._waits_since.get(run.id)
        return attempt, Facts(
            run.id,
            self._me,
            online,
            labelled=owner,
            submitter=submitter_in(run.labels),
            follows=job_of_attempt(run.id, attempt) in self._followed,
            in_hand=self._followed.has_in_hand(run.id),
            queueing=self._followed.has_any_in_hand,
            starting=self._starting,
            uploading=run.labels.get(UPLOADING_LABEL) == attempt,
            spoke=run.state == StateType.RUNNING or run.state_name in _SUBMITTED,
            pending=run.state == StateType.PENDING,
            over=run.state in TERMINAL_STATES,
            age=run.age,
            orphaned_for=0 if waits_since is None else anyio.current_time() - waits_since,
            turn=self._interval * _LOOKS_PER_TURN,
            silence_limit=self._unreachable_limit,
            claim_grace=self._claim_grace,
            label_is_current=is_current,
        )

    async def _with_history(self, run: ActiveRun, facts: Facts) -> tuple[str, Facts]:
        """Return the name of the present attempt, and the facts that the run's history tells."""
        known = self._attempts.get(run.id)
        if known is None or known.state_id != run.state_id:
            history = await self._api.states(run.id)
            claim = present_claim(history) or run.id
            began = next((s.timestamp for s in history if s.id == claim), run.since)
            known = _KnownAttempt(run.state_id, attempt_name(claim), began)
            self._attempts[run.id] = known
        own = labelled_owner_of(run.labels, known.name)
        return known.name, replace(
            facts,
            labelled=own or facts.labelled,
            label_is_current=own is not None,
            uploading=run.labels.get(UPLOADING_LABEL) == known.name,
            predates_me=known.began < self._born,
            follows=job_of_attempt(run.id, known.name) in self._followed,
        )

    async def _claimed(self, to_take: list[tuple[ActiveRun, str]]) -> list[OrphanedRun]:
        """Label runs as ours, and return those whose label still says so a moment later."""
        api = self._api
        for run, job_id in to_take:
            attempt = attempt_in(job_id)
            host = owner_in(run.labels, attempt).host
            with _going_on_without(run.id):
                await api.label(run.id, claimed_by(self._me, attempt, host))
        if to_take:
            await anyio.sleep(_CLAIM_SECONDS)
        claimed: list[OrphanedRun] = []
        for listed, job_id in to_take:
            run = await api.read(listed.id)
            if run is None:
                continue
            owner = owner_in(run.labels, attempt_in(job_id))
            # What is followed already needed the label only.
            if owner.instance == self._me.instance and job_id not in self._followed:
                pid = recorded_pid(run.infrastructure_pid, run.labels, job_id)
                claimed.append(OrphanedRun(run, job_id, pid))
        return claimed

    async def _bury(self, run: ActiveRun, attempt: str) -> None:
        """Settle a run of which no worker can find out more."""
        host = owner_in(run.labels, attempt).host
        where, what_to_do = (
            f"the cluster {labelled_cluster(run.labels, attempt)}, which no online worker uses",
            "Start a worker that does, or run the flow again.",
        )
        if host not in (None, self._me.host):
            where, what_to_do = (
                f"a Ray of the machine {host}, and no worker is online there any more",
                "Start a worker on that machine to have such runs looked after, or give the pool "
                "the address of a shared cluster.",
            )
        if run.labels.get(UPLOADING_LABEL) == attempt and labelled_owner(run.labels) is None:
            where = "its way to the cluster: the process that calls it has not uploaded its code"
            what_to_do = "Run the flow again."
        message = (
            f"The run was on {where}. It has given no sign of life for "
            f"{self._unreachable_limit:g} s. {what_to_do}"
        )
        if run.state == StateType.CANCELLING:
            await self._api.cancelled(run.id, f"Cancelled. {message}")
        else:
            await self._api.crash(run.id, message)


def _is_left_unfinished(run: ActiveRun) -> bool:
    labelled = labelled_owner(run.labels)
    over = run.state in TERMINAL_STATES and run.age < REMEMBER_SECONDS
    return over and labelled is not None and is_unfinished(run.labels, labelled[0])


@contextmanager
def _going_on_without(run_id: UUID) -> Generator[None, None, None]:
    """Leave a run that raises, a deleted one for example, for the next look."""
    try:
        yield
    except Exception as exc:  # noqa: BLE001 (one run must not hide all the others)
        _log.warning("Cannot look after the run %s now: %s", run_id, exc)
