"""`ClusterPoller`: one loop that polls one cluster for all runs of a worker."""

import logging
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

import anyio

from prefect_ray_worker.errors import (
    JobAlreadyExists,
    JobNotFound,
    JobsApiError,
    NotAuthorized,
    RequestRejected,
)
from prefect_ray_worker.metrics import Polls
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.models import JobDetails, JobSubmitRequest
from prefect_ray_worker.shared.backoff import Backoff, jittered

# Listing costs Ray one look-up per remembered job; reading one job costs a scan of all drivers.
# Up to this many jobs, single reads are cheaper for the head.
_FEW_ENOUGH_TO_ASK_ONE_BY_ONE = 3
_FEW_ENOUGH_TO_LOOK_OFTEN = 10
_QUICK_INTERVAL_SECONDS = 1.0
# A slow answer means a busy head: pause for this many times as long. With lists, the workers of a
# pool share that time, as each of them gets the jobs of all.
_REST_FACTOR = 4
_LONGEST_REST_SECONDS = 60.0
_LOOK_UPS_AT_ONCE = 4
_RENEW_SECONDS = 30.0
# A submission waits up to 10 s for an agent; once sent, it has its effect without an answer.
_WAKE_SECONDS = 5.0

_log = logging.getLogger("prefect.workers.ray.watching")


@dataclass(frozen=True)
class Seen:
    """The cluster returned the job.

    Attributes:
        details: The job as it was.
    """

    details: JobDetails


@dataclass(frozen=True)
class Missing:
    """The cluster answered, and does not have the job.

    Attributes:
        session_name: Name of the cluster's current session, if it says so.
    """

    session_name: str | None


@dataclass(frozen=True)
class Unreachable:
    """The cluster gave no usable answer. This says nothing about the job.

    Attributes:
        reason: Why, in words for the user.
    """

    reason: str


@dataclass(frozen=True)
class Gone:
    """The cluster does not answer, and it is certain that it never will again.

    Attributes:
        reason: Why, as a clause for the user.
    """

    reason: str


Observation = Seen | Missing | Unreachable | Gone
"""What one poll can tell about one job."""


class JobWatch:
    """The latest observation of one job, for the run that waits for it."""

    def __init__(self) -> None:
        self._latest: Observation | None = None
        self._news = anyio.Event()

    def deliver(self, observation: Observation) -> None:
        """Keep an observation; it replaces an older one that was not read."""
        self._latest = observation
        self._news.set()

    async def next(self) -> Observation:
        """Return the next observation that was made after the last call."""
        while self._latest is None:
            await self._news.wait()
            self._news = anyio.Event()
        observation, self._latest = self._latest, None
        return observation


class ClusterPoller:
    """Polls the jobs of one cluster, and delivers what it saw to each watch.

    It polls every second for up to 10 jobs, every `interval` seconds for more, and less often
    while the cluster is slow or does not answer. Up to 3 jobs are read one by one; for more, one
    list serves them all. Without watches it sends nothing. Lists take at most a fifth of the head's
    time, for all workers of the pool together.

    Args:
        client: The cluster.
        interval: Seconds between two polls when many jobs are watched.
        renew: Called when the cluster refuses our credentials, at most every 30 s.
        why_gone: Asked when the cluster does not answer; returns why it is certainly gone, or None.
        label: Of the cluster in the metrics; its address by default.
        workers: Returns how many workers of the pool may list the cluster's jobs.
    """

    def __init__(
        self,
        client: JobsClient,
        *,
        interval: float,
        renew: "Callable[[ClusterPoller], Awaitable[None]] | None" = None,
        why_gone: Callable[[], Awaitable[str | None]] | None = None,
        label: str | None = None,
        workers: Callable[[], int] = lambda: 1,
    ) -> None:
        self._client = client
        self._workers = workers
        self._renew = renew
        self._why_gone = why_gone
        self._refused = False
        self._renewed_at = -_RENEW_SECONDS
        self._interval = interval
        self._watches: dict[str, JobWatch] = {}
        self._wake = anyio.Event()
        self._has_own_series = label is None
        self._polls = Polls(label or client.connection.address)
        self._job_monitoring = _JobMonitoring(client)

    @property
    def is_watching(self) -> bool:
        """Whether there is any watch."""
        return bool(self._watches)

    def head_may_have_restarted(self) -> None:
        """Note that the head may have restarted while this poller was not polling."""
        self._job_monitoring.may_have_stopped()

    @contextmanager
    def watch(self, submission_id: str) -> Generator[JobWatch, None, None]:
        """Watch a job for as long as the context is open."""
        watch = self._watches[submission_id] = JobWatch()
        self._wake.set()
        try:
            yield watch
        finally:
            if self._watches.get(submission_id) is watch:
                del self._watches[submission_id]

    async def run(self) -> None:
        """Poll until cancelled; run it in a background task."""
        try:
            await self._run()
        finally:
            # A cluster that is forgotten must not seem to be silent.
            self._polls.close() if self._has_own_series else self._polls.rest()

    async def _run(self) -> None:
        backoff = Backoff(initial=min(_QUICK_INTERVAL_SECONDS, self._interval))
        while True:
            if not self._watches:
                self._polls.rest()
                await self._wake.wait()
            self._wake = anyio.Event()
            began = anyio.current_time()
            with self._polls.look() as look:
                look.answered = reached = await self._look_and_tell()
            took = anyio.current_time() - began
            await self._renew_if_refused()
            if reached:
                backoff.reset()
                await self._job_monitoring.resume_if_needed()
                await self._rest(self._pace(), min(took * self._factor(), _LONGEST_REST_SECONDS))
            else:
                await self._tell_if_gone()
                await anyio.sleep(backoff.next())

    async def _tell_if_gone(self) -> None:
        reason: str | None = None
        if self._why_gone is not None:
            try:
                reason = await self._why_gone()
            except Exception as exc:  # noqa: BLE001 (nothing is known; asked again)
                _log.warning("Whether %s is gone is not known: %s", self._client.connection, exc)
        if reason is not None:
            for watch in self._watches.values():
                watch.deliver(Gone(reason))

    async def _renew_if_refused(self) -> None:
        refused, self._refused = self._refused, False
        now = anyio.current_time()
        if not refused or self._renew is None or now < self._renewed_at + _RENEW_SECONDS:
            return
        self._renewed_at = now
        try:
            with anyio.fail_after(_RENEW_SECONDS):
                await self._renew(self)
        except Exception as exc:  # noqa: BLE001 (must not end the polling; tried again)
            address = self._client.connection.address
            _log.warning("The credentials for %s could not be read anew: %s", address, exc)

    def _factor(self) -> float:
        lists = len(self._watches) > _FEW_ENOUGH_TO_ASK_ONE_BY_ONE
        return _REST_FACTOR * (max(self._workers(), 1) if lists else 1)

    def _pace(self) -> float:
        few = len(self._watches) <= _FEW_ENOUGH_TO_LOOK_OFTEN
        return min(_QUICK_INTERVAL_SECONDS, self._interval) if few else self._interval

    async def _rest(self, seconds: float, at_least: float) -> None:
        """Sleep for some seconds; after the first `at_least`, a new watch ends the sleep."""
        await anyio.sleep(at_least)
        with anyio.move_on_after(max(jittered(seconds) - at_least, 0)):
            await self._wake.wait()

    async def _look_and_tell(self) -> bool:
        """Poll once, deliver each observation at once, and return whether anything answered."""
        watches = dict(self._watches)
        answered = not watches
        if len(watches) > _FEW_ENOUGH_TO_ASK_ONE_BY_ONE:
            listed = await self._list(frozenset(watches))
            if isinstance(listed, Unreachable):
                for submission_id, watch in watches.items():
                    self._tell(watch, submission_id, listed)
                return False
            answered = True
            for submission_id in watches.keys() & listed.keys():
                self._tell(watches.pop(submission_id), submission_id, listed[submission_id])
        # A list can be older than a submission, so a job that is not listed is read by itself.
        limiter = anyio.CapacityLimiter(_LOOK_UPS_AT_ONCE)

        async def look_and_tell(submission_id: str, watch: JobWatch) -> None:
            nonlocal answered
            async with limiter:
                observation = await self._look_at(submission_id)
            answered |= not isinstance(observation, Unreachable)
            self._tell(watch, submission_id, observation)

        async with anyio.create_task_group() as tasks:
            for submission_id, watch in watches.items():
                tasks.start_soon(look_and_tell, submission_id, watch)
        return answered

    def _tell(self, watch: JobWatch, submission_id: str, observation: Observation) -> None:
        self._job_monitoring.saw(submission_id, observation)
        watch.deliver(observation)

    async def _list(self, ids: frozenset[str]) -> dict[str, Seen] | Unreachable:
        try:
            jobs = await self._client.list(lambda record: record.get("submission_id") in ids)
        except Exception as exc:  # noqa: BLE001 (see `_unreachable`)
            return self._unreachable(exc)
        return {job.submission_id: Seen(job) for job in jobs if job.submission_id is not None}

    async def _look_at(self, submission_id: str) -> Observation:
        try:
            try:
                return Seen(await self._client.get(submission_id))
            except JobNotFound:
                return Missing((await self._client.version()).session_name)
        except Exception as exc:  # noqa: BLE001 (see `_unreachable`)
            return self._unreachable(exc)

    def _unreachable(self, exc: Exception) -> Unreachable:
        if isinstance(exc, JobsApiError):
            self._refused |= isinstance(exc, NotAuthorized)
            return Unreachable(str(exc))
        # One odd answer must not end the polling for every run.
        _log.error("Polling %s failed", self._client.connection.address, exc_info=exc)
        return Unreachable(f"{type(exc).__name__}: {exc}")


WAKE_JOB_ID = "prefect-ray-worker-resumes-monitoring"
"""Submission id of a job that runs `true`; submitting it resumes the monitoring of all jobs."""


class _JobMonitoring:
    """Makes the head of one cluster resume its job monitoring after a restart.

    A head's agent starts to monitor the cluster's jobs with the first request that submits, stops
    or deletes one (`job_agent.py`, Ray 2.60); reads do not count. A job whose supervisor died
    while a head with persistent state restarted therefore stays RUNNING or PENDING until
    such a request arrives.
    """

    def __init__(self, client: JobsClient) -> None:
        self._client = client
        self._may_have_stopped = False
        self._active_job: str | None = None

    def may_have_stopped(self) -> None:
        """Note that the head may have restarted since the last request that wakes its agent."""
        self._may_have_stopped = True

    def saw(self, submission_id: str, observation: Observation) -> None:
        """Note what was seen of a job."""
        match observation:
            case Unreachable():
                self.may_have_stopped()
            case Seen(details) if not details.is_terminal:
                self._active_job = submission_id
            case _:
                if self._active_job == submission_id:
                    self._active_job = None

    async def resume_if_needed(self) -> None:
        """Submit a job that runs `true`, under an id of its own.

        The first such request on a cluster makes that one job. Ray refuses all later ones as
        duplicates, after its agent has resumed monitoring. The id of a run's job would do as well
        until that job is gone: then `true` would be the run's job. A stop has the same effect only
        on a job that has ended, and there may be none.
        """
        if not self._may_have_stopped or self._active_job is None:
            return
        request = JobSubmitRequest(
            entrypoint="true",
            submission_id=WAKE_JOB_ID,
            runtime_env={},
            metadata={"job_name": WAKE_JOB_ID},
        )
        scope = anyio.move_on_after(_WAKE_SECONDS)
        try:
            with scope:
                await self._client.submit(request)
        except (JobAlreadyExists, RequestRejected):
            pass
        except Exception as exc:  # noqa: BLE001 (must not end the polling; the next poll tries again)
            address = self._client.connection.address
            _log.debug("The job monitoring of %s could not be resumed: %s", address, exc)
            return
        self._may_have_stopped = scope.cancelled_caught
