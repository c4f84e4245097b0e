"""`ClusterPoller`: one loop that looks at one cluster for all the runs of a worker."""

import logging
from collections.abc import Generator
from contextlib import contextmanager

import anyio

from prefect_ray_worker.clusters.observation import Missing, Observation, Seen, Unreachable
from prefect_ray_worker.clusters.poking import Poker
from prefect_ray_worker.errors import JobNotFound, JobsApiError
from prefect_ray_worker.metrics import Polls
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.shared.backoff import Backoff, jittered

# Ray's list costs one look-up for each job that the cluster remembers, a single job a scan of
# all drivers: below this many, single look-ups are cheaper for the head, above it the list is.
_FEW_ENOUGH_TO_ASK_ONE_BY_ONE = 3
_FEW_ENOUGH_TO_LOOK_OFTEN = 10
_QUICK_INTERVAL_SECONDS = 1.0
# A head that takes long to answer is busy: leave it alone for this many times as long.
_REST_FACTOR = 4
_LONGEST_REST_SECONDS = 60.0
_LOOK_UPS_AT_ONCE = 4

_log = logging.getLogger("prefect.workers.ray.watching")


class JobWatch:
    """The news of one job, for the one run that waits for it."""

    def __init__(self) -> None:
        self._latest: Observation | None = None
        self._news = anyio.Event()

    def deliver(self, observation: Observation) -> None:
        """Keep an observation; an older one that nobody read is of no use any more."""
        self._latest = observation
        self._news.set()

    async def next(self) -> Observation:
        """Wait for an observation made after the last call, and return it."""
        while self._latest is None:
            await self._news.wait()
            self._news = anyio.Event()
        observation, self._latest = self._latest, None
        return observation


class ClusterPoller:
    """Looks at the jobs of one cluster, and tells each watch what it saw.

    It looks every second while it watches at most 10 jobs, every `interval` seconds with more,
    and less often while the cluster is slow or does not answer. It asks for one list, whatever
    the number of jobs (for up to 3, for those jobs alone). Without watches it sends nothing.

    Args:
        client: The cluster.
        interval: Seconds between two looks when many jobs are watched.
    """

    def __init__(self, client: JobsClient, *, interval: float) -> None:
        self._client = client
        self._interval = interval
        self._watches: dict[str, JobWatch] = {}
        self._wake = anyio.Event()
        self._polls = Polls(client.connection.address)
        self._poker = Poker(client)

    def doubt(self) -> None:
        """Take note that the head may have been away, unseen by this poller."""
        self._poker.doubt()

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
        """Look, for ever; meant for a background task of whoever owns the poller."""
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
            if reached:
                backoff.reset()
                await self._poker.poke_if_in_doubt()
                await self._rest(self._pace(), min(took * _REST_FACTOR, _LONGEST_REST_SECONDS))
            else:
                await anyio.sleep(backoff.next())

    def _pace(self) -> float:
        few = len(self._watches) <= _FEW_ENOUGH_TO_LOOK_OFTEN
        return min(_QUICK_INTERVAL_SECONDS, self._interval) if few else self._interval

    async def _rest(self, seconds: float, at_least: float) -> None:
        """Sleep, but once the head has had its rest look at once for a job that was added."""
        await anyio.sleep(at_least)
        with anyio.move_on_after(max(jittered(seconds) - at_least, 0)):
            await self._wake.wait()

    async def _look_and_tell(self) -> bool:
        """Look once and tell each watch as soon as its job is seen; say if anything answered."""
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
        # A list can be older than a submission: "not listed" is worth a second look.
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
        self._poker.take_note(submission_id, observation)
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
            return Unreachable(str(exc))
        # One odd answer must not end the watching of every run.
        _log.error("Looking at %s failed", self._client.connection.address, exc_info=exc)
        return Unreachable(f"{type(exc).__name__}: {exc}")
