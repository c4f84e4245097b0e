"""What a worker counts and times, for Prometheus: on the endpoint of Prefect's own client metrics.

Prefect serves it where `PREFECT_CLIENT_METRICS_ENABLED` is set, on `PREFECT_CLIENT_METRICS_PORT`.
Counting goes on without it, and costs next to nothing. No label names a run or a job: there would
be a series for each.
"""

import time
from collections.abc import Generator
from contextlib import contextmanager

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

_POLL_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_LAG_BUCKETS = (0.25, 0.5, 1, 2, 5, 10, 15, 30, 60, 300)

SUBMISSIONS = Counter(
    "prefect_ray_submissions",
    "Jobs by what became of their submission: submitted, adopted (Ray had the job already), "
    "unsettled (the cluster does not answer), refused.",
    ["disposition"],
)
ACTIVE_JOBS = Gauge(
    "prefect_ray_active_jobs",
    "Jobs that this worker follows, by Ray's status when they were last seen; unknown for those "
    "that were not seen yet.",
    ["status"],
)
POLL_SECONDS = Histogram(
    "prefect_ray_poll_seconds",
    "Duration of one look at a cluster, by whether the cluster answered.",
    ["address", "answered"],
    buckets=_POLL_BUCKETS,
)
POLL_AGE = Gauge(
    "prefect_ray_poll_age_seconds",
    "How long ago a cluster last answered a look; 0 while none of its jobs is watched.",
    ["address"],
)
LOG_LINES = Counter("prefect_ray_log_lines", "Lines of jobs' output that were sent to Prefect.")
LOG_BYTES = Counter("prefect_ray_log_bytes", "Bytes of jobs' output that were read.")
LOG_LAG = Histogram(
    "prefect_ray_log_lag_seconds",
    "At each look at a job: how long ago its log had last been read to its end and forwarded.",
    buckets=_LAG_BUCKETS,
)
ADOPTIONS = Counter(
    "prefect_ray_adoptions", "Runs of another worker, or of an earlier process, that were taken on."
)
STOPS = Counter(
    "prefect_ray_stops",
    "Requests to stop a job (a run that is cancelled or overdue), by how far they came: ended, "
    "gone, queued, unconfirmed, unreachable.",
    ["result"],
)
ERRORS = Counter(
    "prefect_ray_errors",
    "Requests to Ray that failed, by the class of the error (see the reference of errors).",
    ["error"],
)
CRASHES = Counter(
    "prefect_ray_crashes",
    "Runs that this worker marked Crashed, by the category of the diagnosis.",
    ["category"],
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
)
"""Every metric, for the documentation."""

_UNKNOWN = "unknown"


class ActiveJob:
    """One job in the count of active jobs, under one status at a time."""

    def __init__(self) -> None:
        self._status = _UNKNOWN
        ACTIVE_JOBS.labels(_UNKNOWN).inc()

    def is_now(self, status: str) -> None:
        """Count the job under a status of Ray's from now on."""
        if status.lower() != self._status:
            ACTIVE_JOBS.labels(self._status).dec()
            self._status = status.lower()
            ACTIVE_JOBS.labels(self._status).inc()

    def close(self) -> None:
        """Count the job no more."""
        ACTIVE_JOBS.labels(self._status).dec()


class Polls:
    """Times the looks at one cluster.

    Args:
        address: The cluster's.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._answered_at: float | None = None
        POLL_AGE.labels(address).set_function(self._age)

    @contextmanager
    def look(self) -> Generator["Look", None, None]:
        """Time one look, which takes as long as the context."""
        look = Look()
        began = time.monotonic()
        if self._answered_at is None:
            self._answered_at = began
        try:
            yield look
        finally:
            now = time.monotonic()
            POLL_SECONDS.labels(self._address, str(look.answered).lower()).observe(now - began)
            if look.answered:
                self._answered_at = now

    def rest(self) -> None:
        """Take note that no job of the cluster is watched."""
        self._answered_at = None

    def _age(self) -> float:
        return 0.0 if self._answered_at is None else time.monotonic() - self._answered_at


class Look:
    """One look at a cluster.

    Attributes:
        answered: Whether anything was answered.
    """

    answered = False
