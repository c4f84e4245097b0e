"""`FollowedRuns`: which runs this process looks after, and the tasks that do."""

import gc
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from uuid import UUID

import anyio
import anyio.abc

from prefect_ray_worker.runs.follow import Follower
from prefect_ray_worker.runs.judge import UNTOUCHED, Outcome
from prefect_ray_worker.runs.run import LeftAttempt, RunAttempt
from prefect_ray_worker.shared.ids import ClusterRef, run_in

# From this many runs on, what they hold is left out of full garbage collections.
_MANY = 200

_log = logging.getLogger("prefect.workers.ray.followed")


class FollowedRuns:
    """The attempts that one process submits, follows, or still forwards the log of.

    Args:
        count_as_ended: Called with the id of a job that may start late, and will be stopped then.
    """

    def __init__(self, count_as_ended: Callable[[str], None]) -> None:
        self._count_as_ended = count_as_ended
        self._followers: dict[str, tuple[Follower, anyio.CancelScope]] = {}
        self._forwarding: dict[str, tuple[RunAttempt, anyio.CancelScope]] = {}
        self._tried_since: dict[str, float] = {}
        self._submitting: dict[str, int] = {}
        self._in_hand = Counter[UUID]()
        self._claims: dict[UUID, UUID] = {}
        self._interrupted: dict[str, LeftAttempt] = {}
        self._spared = SparedRuns()
        self._tasks: anyio.abc.TaskGroup | None = None
        self._log_tasks: anyio.abc.TaskGroup | None = None

    def __contains__(self, job_id: object) -> bool:
        return job_id in self._followers or job_id in self._submitting or job_id in self._forwarding

    @property
    def job_ids(self) -> frozenset[str]:
        """The submission ids of all of them at this moment."""
        return frozenset((*self._followers, *self._submitting, *self._forwarding))

    @property
    def followers(self) -> tuple[Follower, ...]:
        """What is followed at this moment."""
        return tuple(follower for follower, _ in self._followers.values())

    def uses(self, cluster: ClusterRef) -> bool:
        """Return whether an attempt on a cluster is followed here, or its log forwarded."""
        attempts = [f.attempt for f in self.followers] + [a for a, _ in self._forwarding.values()]
        return any(attempt.cluster.ref == cluster for attempt in attempts)

    @property
    def interrupted(self) -> tuple[LeftAttempt, ...]:
        """What was submitted, followed or forwarded until this process was told to stop.

        Also what waited for its cluster.
        """
        return tuple(self._interrupted.values())

    def open(self, tasks: anyio.abc.TaskGroup, logs: anyio.abc.TaskGroup) -> None:
        """Take the task groups for work in the background.

        Args:
            tasks: For everything that ends when the worker is closed.
            logs: For the forwarding of logs, which goes on for as long as Prefect's own runs.
        """
        self._tasks, self._log_tasks = tasks, logs

    def close(self) -> None:
        """Start no more work in the background, except for the logs of what is still followed."""
        self._tasks = None

    def has_in_hand(self, run_id: UUID) -> bool:
        """Return whether Prefect has given this process a run that it has not submitted yet."""
        return run_id in self._in_hand

    @property
    def has_any_in_hand(self) -> bool:
        """Whether Prefect has given this process runs that it has not submitted yet."""
        return bool(self._in_hand)

    def is_busy_with(self, run_id: UUID) -> bool:
        """Return whether an attempt at a run is submitted or followed here: the next one waits."""
        return run_id in self._in_hand or any(f.attempt.run_id == run_id for f in self.followers)

    @contextmanager
    def in_hand(self, run_id: UUID) -> Generator[None, None, None]:
        """Count a run as one that is to be submitted for as long as the context is open."""
        self._in_hand[run_id] += 1  # `begin` opens a second one
        try:
            yield
        finally:
            self._in_hand[run_id] -= 1
            if not self._in_hand[run_id]:
                del self._in_hand[run_id]
                self._claims.pop(run_id, None)

    def claimed(self, run_id: UUID, claim_id: UUID) -> None:
        """Note which claim the server has granted this process for a run that it has in hand."""
        self._claims[run_id] = claim_id

    def claim_of(self, run_id: UUID) -> UUID | None:
        """Return the claim of a run in hand; None if this process has not claimed it."""
        return self._claims.get(run_id)

    @contextmanager
    def submitting(
        self, job_id: str, attempt: RunAttempt | None = None
    ) -> Generator[None, None, None]:
        """Count an attempt as looked after for as long as the context is open.

        Args:
            job_id: The submission id of its job.
            attempt: The attempt, once it has a cluster.
        """
        self._submitting[job_id] = self._submitting.get(job_id, 0) + 1
        try:
            yield
        except anyio.get_cancelled_exc_class():
            run_id = run_in(job_id)
            if attempt is not None:
                self._interrupted[job_id] = attempt.left
            elif run_id is not None:
                self._interrupted.setdefault(job_id, LeftAttempt(run_id, job_id))
            raise
        finally:
            self._submitting[job_id] -= 1
            if not self._submitting[job_id]:
                del self._submitting[job_id]

    async def follow(self, follower: Follower) -> Outcome:
        """Follow an attempt until its run is settled, or another worker has taken it over.

        The rest of its log is forwarded in the background.

        Returns:
            What was decided; `UNTOUCHED` if another worker decides.
        """
        job_id = follower.attempt.job_id
        if job_id in self._followers or job_id in self._forwarding:
            return UNTOUCHED
        settled = UNTOUCHED
        # Also while it is settled, when its job is not watched any more.
        with follower.attempt.cluster.use.going_on(), anyio.CancelScope() as scope:
            self._followers[job_id] = (follower, scope)
            self._spared.one_more(len(self._followers))
            self._forward(follower)
            try:
                settled = await follower.follow()
            except BaseException as exc:
                self._stop_forwarding(job_id)
                if isinstance(exc, anyio.get_cancelled_exc_class()) and not scope.cancel_called:
                    # This process is being stopped.
                    self._interrupted[job_id] = follower.attempt.left
                raise
            finally:
                del self._followers[job_id]
        if follower.may_still_start:
            self._count_as_ended(job_id)
            self.in_background(follower.prevent_start, f"ray-prevent-start {job_id}")
        return settled

    def drop(self, job_id: str) -> None:
        """Follow an attempt no more: another worker does."""
        self._stop_forwarding(job_id)
        if job_id in self._followers:
            follower, scope = self._followers[job_id]
            follower.attempt.log.info("Another worker has taken over the watching of this run.")
            scope.cancel()

    def in_background(self, task: Callable[[], Awaitable[object]], name: str) -> None:
        """Start a task whose failure ends nothing else; nothing is started while closing."""
        if self._tasks is not None:
            self._tasks.start_soon(_guarded, task, name, name=name)

    def _forward(self, follower: Follower) -> None:
        """Forward the log of an attempt's job in the background, also after its run is settled."""
        if self._log_tasks is None:
            return
        attempt, job_id = follower.attempt, follower.attempt.job_id
        scope = anyio.CancelScope()
        forwarding = self._forwarding[job_id] = (attempt, scope)
        since = self._tried_since.setdefault(job_id, anyio.current_time())

        async def forward() -> None:
            try:
                with scope, attempt.cluster.use.going_on():
                    if await follower.finish(since):
                        self._tried_since.pop(job_id, None)
            except anyio.get_cancelled_exc_class():
                self._interrupted[job_id] = attempt.left  # this process is being stopped
                raise
            finally:
                if self._forwarding.get(job_id) is forwarding:
                    del self._forwarding[job_id]

        name = f"ray-logs {job_id}"
        self._log_tasks.start_soon(_guarded, forward, name, name=name)

    def _stop_forwarding(self, job_id: str) -> None:
        self._tried_since.pop(job_id, None)
        forwarding = self._forwarding.pop(job_id, None)
        if forwarding is not None:
            forwarding[1].cancel()


async def _guarded(task: Callable[[], Awaitable[object]], name: str) -> None:
    try:
        await task()
    except Exception:  # noqa: BLE001
        # The next look for runs that no worker follows finds what was left undone.
        _log.exception("%s failed", name)


class SparedRuns:
    """Shortens full garbage collections by excluding what followed runs hold, once there are many.

    A full collection visits every container, and nothing else happens meanwhile: 0.15 s with a
    thousand runs. What a run holds has no cycles and goes with its last reference (Python 3.11,
    Prefect 3.8.8).
    """

    def __init__(self) -> None:
        self._since = 0

    def one_more(self, present: int) -> None:
        """Count one more followed run.

        Not each run is worth a freeze, because that also excludes what is there by chance: a few
        open connections, which do have cycles and are then never freed, some kB for each run.

        Args:
            present: How many are followed now.
        """
        self._since += 1
        if present >= _MANY and self._since >= _MANY:
            self._since = 0
            gc.collect(1)
            gc.freeze()
