"""The worker's Prometheus metrics, on the endpoint of Prefect's own client metrics.

Prefect serves that endpoint if `PREFECT_CLIENT_METRICS_ENABLED` is set, on
`PREFECT_CLIENT_METRICS_PORT`. Counting without the endpoint costs next to nothing. No label names
a run, a job or a cluster that comes and goes: each would be a time series of its own.
"""

import time
from collections import defaultdict
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import ClassVar

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

_POLL_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_START_BUCKETS = (5, 10, 20, 30, 45, 60, 90, 120, 180, 300, 600, 900, 1800, 3600)
_LAG_BUCKETS = (0.25, 0.5, 1, 2, 5, 10, 15, 30, 60, 300)

SUBMISSIONS = Counter(
    "prefect_ray_submissions",
    "Submissions by result: submitted, adopted (Ray had the job already), unsettled (the cluster "
    "does not answer), refused.",
    ["disposition"],
)
ACTIVE_JOBS = Gauge(
    "prefect_ray_active_jobs",
    "Jobs that this worker follows, by the status that Ray last reported; unknown before the "
    "first report.",
    ["status"],
)
POLL_SECONDS = Histogram(
    "prefect_ray_poll_seconds",
    "Duration of one poll of a cluster, by whether the cluster answered.",
    ["address", "answered"],
    buckets=_POLL_BUCKETS,
)
POLL_AGE = Gauge(
    "prefect_ray_poll_age_seconds",
    "Time since a cluster last answered a poll; 0 while none of its jobs is watched. Clusters that "
    "are made for runs share one: that of the longest silence.",
    ["address"],
)
LOG_LINES = Counter("prefect_ray_log_lines", "Lines of jobs' output that were sent to Prefect.")
LOG_BYTES = Counter("prefect_ray_log_bytes", "Bytes of jobs' output that were read.")
LOG_LAG = Histogram(
    "prefect_ray_log_lag_seconds",
    "At each poll of a job: the time since its log was last read to its end and forwarded.",
    buckets=_LAG_BUCKETS,
)
ADOPTIONS = Counter(
    "prefect_ray_adoptions",
    "Runs of another worker, or of an earlier process, that this worker took over.",
)
STOPS = Counter(
    "prefect_ray_stops",
    "Requests to stop the job of a cancelled or overdue run, by result: ended, gone, queued, "
    "unconfirmed, foreign, unreachable.",
    ["result"],
)
ERRORS = Counter(
    "prefect_ray_errors",
    "Failed requests to Ray, by error class (see the reference of errors).",
    ["error"],
)
CRASHES = Counter(
    "prefect_ray_crashes",
    "Runs that this worker marked Crashed, by the category of the diagnosis.",
    ["category"],
)
CLUSTERS_CREATED = Counter(
    "prefect_ray_clusters_created",
    "Clusters that this worker created for runs, by the source that makes them, such as kuberay.",
    ["source"],
)
CLUSTERS_FAILED = Counter(
    "prefect_ray_clusters_failed",
    "Clusters that could not be created or did not take jobs in time, by source and by the "
    "category of the diagnosis.",
    ["source", "category"],
)
CLUSTERS_DELETED = Counter(
    "prefect_ray_clusters_deleted",
    "Clusters whose deletion this worker asked for, by source.",
    ["source"],
)
CLUSTER_READY_SECONDS = Histogram(
    "prefect_ray_cluster_ready_seconds",
    "Time from the claim of a run until the cluster that was made for it takes jobs, by source.",
    ["source"],
    buckets=_START_BUCKETS,
)

ALL: tuple[MetricWrapperBase, ...] = (
    SUBMISSIONS,
    ACTIVE_JOBS,
    POLL_SECONDS,
    POLL_AGE,
    LOG_LINES,
    LOG_BYTES,
    LOG_LAG,
    ADOPTIONS,
    STOPS,
    ERRORS,
    CRASHES,
    CLUSTERS_CREATED,
    CLUSTERS_FAILED,
    CLUSTERS_DELETED,
    CLUSTER_READY_SECONDS,
)
"""Every metric, for the documentation."""

_UNKNOWN = "unknown"


class ActiveJob:
    """Count one job among the active jobs, under one status at a time."""

    def __init__(self) -> None:
        self._status = _UNKNOWN
        ACTIVE_JOBS.labels(_UNKNOWN).inc()

    def is_now(self, status: str) -> None:
        """Move the job to another status of Ray's."""
        if status.lower() != self._status:
            ACTIVE_JOBS.labels(self._status).dec()
            self._status = status.lower()
            ACTIVE_JOBS.labels(self._status).inc()

    def close(self) -> None:
        """Take the job out of the count."""
        ACTIVE_JOBS.labels(self._status).dec()


class Polls:
    """Time the polls of one cluster.

    Clusters that come and go share a label. Its age is that of the cluster that is silent longest.

    Args:
        address: Address of the cluster, or the label that it shares.
    """

    _answered: ClassVar[defaultdict[str, dict["Polls", float]]] = defaultdict(dict)
    _open: ClassVar[defaultdict[str, int]] = defaultdict(int)

    def __init__(self, address: str) -> None:
        self._address = address
        self._open[address] += 1
        POLL_AGE.labels(address).set_function(lambda: Polls._longest_silence(address))

    @contextmanager
    def look(self) -> Generator["PollTiming", None, None]:
        """Time one poll, which lasts as long as the context."""
        poll = PollTiming()
        began = time.monotonic()
        answered = self._answered[self._address]
        answered.setdefault(self, began)
        try:
            yield poll
        finally:
            now = time.monotonic()
            POLL_SECONDS.labels(self._address, str(poll.answered).lower()).observe(now - began)
            if poll.answered:
                answered[self] = now

    def rest(self) -> None:
        """Set the age to 0: no job of the cluster is watched now."""
        self._answered[self._address].pop(self, None)

    def close(self) -> None:
        """Drop the series of the cluster, unless something else polls it, too.

        Addresses can come and go, and each has some thirty series.
        """
        self.rest()
        self._open[self._address] -= 1
        if self._open[self._address]:
            return
        del self._open[self._address], self._answered[self._address]
        with suppress(KeyError):
            POLL_AGE.remove(self._address)
        for answered in ("true", "false"):
            with suppress(KeyError):
                POLL_SECONDS.remove(self._address, answered)

    @classmethod
    def _longest_silence(cls, address: str) -> float:
        # A copy: the endpoint asks from a thread of its own.
        answered = tuple(cls._answered.get(address, {}).values())
        now = time.monotonic()
        return now - min(answered, default=now)


class PollTiming:
    """One poll of a cluster, as it is timed.

    Attributes:
        answered: Whether the cluster answered; set it during the poll.
    """

    answered = False
