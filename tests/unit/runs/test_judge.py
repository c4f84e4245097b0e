"""The fold from observations to verdicts, without a clock."""

import pytest

from prefect_ray_worker.clusters.poller import Gone, Missing, Observation, Seen, Unreachable
from prefect_ray_worker.ray_api.models import JobDetails
from prefect_ray_worker.runs.judge import Limits, Verdict, judge
from prefect_ray_worker.runs.watch import Watched

LIMITS = Limits(start=60, run=100, stop_grace=10, left_behind=12, unreachable=300, quiet=60)
NO_LIMITS = Limits(start=None, run=None, stop_grace=10, left_behind=12, unreachable=300, quiet=60)


def seen(status: str) -> Seen:
    return Seen(JobDetails.model_validate({"status": status}))


DOWN = Unreachable("connection refused")
GONE = Missing("session_2")

# (seconds, observation) in order, seconds of the judgement, limits, verdict
CASES: dict[str, tuple[list[tuple[float, Observation]], float, Limits, Verdict]] = {
    "pending in time": ([(1, seen("PENDING"))], 59, LIMITS, Verdict.WAIT),
    "pending too long": ([(1, seen("PENDING"))], 60, LIMITS, Verdict.START_OVERDUE),
    "pending without limit": ([(1, seen("PENDING"))], 9999, NO_LIMITS, Verdict.WAIT),
    "running in time": ([(50, seen("RUNNING"))], 149, LIMITS, Verdict.WAIT),
    "running too long": ([(50, seen("RUNNING"))], 150, LIMITS, Verdict.RUN_OVERDUE),
    "the run's time counts from RUNNING, not from the last look": (
        [(10, seen("RUNNING")), (109, seen("RUNNING"))], 110, LIMITS, Verdict.RUN_OVERDUE,
    ),
    "unknown status is alive": ([(1, seen("PAUSED_BY_RAY_3"))], 50, LIMITS, Verdict.WAIT),
    "succeeded": ([(1, seen("SUCCEEDED"))], 2, LIMITS, Verdict.ENDED),
    "failed": ([(1, seen("FAILED"))], 2, LIMITS, Verdict.ENDED),
    "stopped": ([(1, seen("STOPPED"))], 2, LIMITS, Verdict.ENDED),
    "ended late is ended, not overdue": ([(1, seen("FAILED"))], 9999, LIMITS, Verdict.ENDED),
    "silent for a moment": ([(1, seen("RUNNING")), (2, DOWN)], 61, LIMITS, Verdict.WAIT),
    "unreachable is not dead": ([(1, seen("RUNNING")), (2, DOWN)], 301, LIMITS, Verdict.QUIET),
    "unreachable past the run timeout still waits": (
        [(1, seen("RUNNING")), (100, DOWN)], 399, LIMITS, Verdict.QUIET,
    ),
    "unreachable for too long": (
        [(1, seen("RUNNING")), (2, DOWN), (200, DOWN)], 302, LIMITS, Verdict.SILENT_TOO_LONG,
    ),
    "one answer ends the silence": (
        [(2, DOWN), (250, seen("RUNNING")), (260, DOWN)], 310, LIMITS, Verdict.WAIT,
    ),
    "missing after it was seen is lost": (
        [(1, seen("RUNNING")), (2, GONE)], 3, LIMITS, Verdict.LOST,
    ),
    "unreachable after missing says nothing": (
        [(1, seen("RUNNING")), (2, GONE), (3, DOWN)], 4, LIMITS, Verdict.WAIT,
    ),
    "a cluster that is gone takes the job with it": (
        [(1, seen("RUNNING")), (2, DOWN), (3, Gone("deleted"))], 4, LIMITS, Verdict.CLUSTER_GONE,
    ),
    "never seen and unreachable": ([(1, DOWN)], 2, LIMITS, Verdict.WAIT),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_verdict(name: str) -> None:
    observations, now, limits, expected = CASES[name]
    watched = Watched(submitted_at=0, arrived=True)
    for at, observation in observations:
        watched = watched.after(observation, at)
    assert judge(watched, limits, now) is expected


def test_missing_before_it_was_ever_there_is_submitted_again() -> None:
    watched = Watched(submitted_at=0, arrived=False).after(GONE, 1)
    assert judge(watched, LIMITS, 1) is Verdict.NEVER_ARRIVED


def test_job_that_never_arrived_may_still_show_up() -> None:
    watched = Watched(submitted_at=0, arrived=False).after(GONE, 1).after(seen("PENDING"), 2)
    assert judge(watched, LIMITS, 2) is Verdict.WAIT
    assert judge(watched.after(GONE, 3), LIMITS, 3) is Verdict.LOST


@pytest.mark.parametrize(
    ("status", "waited", "expected"),
    [
        ("RUNNING", 9, Verdict.WAIT),
        ("RUNNING", 10, Verdict.CANCEL_OVERDUE),
        ("PENDING", 0, Verdict.CANCEL_OVERDUE),
        ("STOPPED", 0, Verdict.ENDED),
    ],
)
def test_cancelling(status: str, waited: float, expected: Verdict) -> None:
    """A driver that runs gets its grace; a job that has not started has no driver to wait for."""
    watched = Watched(submitted_at=0, arrived=True).after(seen(status), 5).cancelled_at(20)
    assert judge(watched, LIMITS, 20 + waited) is expected


def test_cancelling_counts_from_its_first_sight() -> None:
    watched = Watched(submitted_at=0, arrived=True).after(seen("RUNNING"), 1)
    watched = watched.cancelled_at(20).cancelled_at(29)
    assert judge(watched, LIMITS, 30) is Verdict.CANCEL_OVERDUE


def test_cancelling_waits_for_an_unreachable_cluster() -> None:
    watched = Watched(submitted_at=0, arrived=True).after(seen("RUNNING"), 1)
    watched = watched.cancelled_at(2).after(DOWN, 3)
    assert judge(watched, LIMITS, 60) is Verdict.WAIT


@pytest.mark.parametrize("observation", [seen("RUNNING"), GONE, DOWN])
def test_nobody_wants_the_job_of_a_deleted_run(observation: Observation) -> None:
    watched = Watched(submitted_at=0, arrived=True, run_is_deleted=True).after(observation, 1)
    assert judge(watched, LIMITS, 2) is Verdict.UNWANTED


def test_the_job_of_a_deleted_run_is_given_up_with_its_cluster() -> None:
    """It was to be stopped for ever on a cluster that was dead, and held a slot of `--limit`."""
    watched = Watched(submitted_at=0, arrived=True, run_is_deleted=True).after(DOWN, 1)
    assert judge(watched, LIMITS, 300) is Verdict.UNWANTED
    assert judge(watched, LIMITS, 301) is Verdict.SILENT_TOO_LONG


@pytest.mark.parametrize(
    ("status", "waited", "expected"),
    [
        ("RUNNING", 11, Verdict.WAIT),
        ("RUNNING", 12, Verdict.LEFT_BEHIND),
        ("PENDING", 0, Verdict.LEFT_BEHIND),
        ("FAILED", 99, Verdict.ENDED),
    ],
)
def test_state_from_outside(status: str, waited: float, expected: Verdict) -> None:
    """A driver that runs gets the time to see the state; a job without one is stopped at once."""
    watched = Watched(submitted_at=0, arrived=True).after(seen(status), 5)
    watched = watched.settled_at(20, True, outside=True).settled_at(25, True, outside=True)
    assert judge(watched, LIMITS, 20 + waited) is expected
    back = watched.settled_at(30, False, outside=False)
    assert judge(back, NO_LIMITS, 50) in (Verdict.WAIT, Verdict.ENDED)


@pytest.mark.parametrize(
    ("status", "waited", "expected"),
    [
        ("RUNNING", 99, Verdict.WAIT),
        ("PENDING", 11, Verdict.WAIT),
        ("PENDING", 12, Verdict.LEFT_BEHIND),
    ],
)
def test_state_that_the_driver_may_have_set(status: str, waited: float, expected: Verdict) -> None:
    """It has all the time for its hooks, and a job that does not start has no driver."""
    watched = Watched(submitted_at=0, arrived=True).after(seen(status), 5)
    watched = watched.settled_at(20, True, outside=False).settled_at(25, True, outside=False)
    assert judge(watched, NO_LIMITS, 20 + waited) is expected
    back = watched.settled_at(30, False, outside=False)
    assert judge(back, NO_LIMITS, 50) is Verdict.WAIT


def test_a_cluster_that_is_gone_stops_no_job_of_a_deleted_run() -> None:
    """Stopping the job would be tried again and again."""
    watched = Watched(submitted_at=0, arrived=True, run_is_deleted=True, gone="deleted")
    assert judge(watched, LIMITS, 1) is Verdict.CLUSTER_GONE


@pytest.mark.parametrize(
    ("ago", "expected"), [(20, 80), (80, 40), (-5, 100)], ids=["later", "before claim", "future"]
)
def test_submission_that_ray_tells_is_between_the_claim_and_now(ago: float, expected: int) -> None:
    """The clocks of Ray and of the Prefect server may differ."""
    watched = Watched(submitted_at=40, arrived=True).accepted(ago, now=100)
    assert watched.submitted_at == expected
