"""The table of job status and flow-run state, row by row."""

from typing import Any

import pytest
from prefect.client.schemas.objects import StateType

from prefect_ray_worker.diagnosis.job import Context
from prefect_ray_worker.ray_api.models import JobDetails
from prefect_ray_worker.runs.judge import (
    Outcome,
    Resolution,
    of_ended_job,
    of_late_start,
    of_long_run,
    of_lost_job,
    of_refusal,
    of_silence,
)
from prefect_ray_worker.shared.exits import describe_exit
from prefect_ray_worker.shared.resources import Asked, ClusterResources, Node

S = StateType
LEFT_ALONE = [S.COMPLETED, S.FAILED, S.CRASHED, S.CANCELLED, S.PAUSED, S.SCHEDULED, None]


def job(status: str, **fields: Any) -> JobDetails:
    return JobDetails.model_validate({"status": status, **fields})


@pytest.mark.parametrize("status", ["SUCCEEDED", "FAILED", "STOPPED"])
@pytest.mark.parametrize("state", LEFT_ALONE)
def test_settled_run_is_left_alone(status: str, state: StateType | None) -> None:
    result = of_ended_job(job(status, driver_exit_code=1), state)
    assert result.resolution is Resolution.LEAVE


@pytest.mark.parametrize("status", ["SUCCEEDED", "FAILED", "STOPPED"])
def test_cancelling_run_is_cancelled(status: str) -> None:
    result = of_ended_job(job(status), S.CANCELLING)
    assert result.resolution is Resolution.CANCEL


@pytest.mark.parametrize("state", [S.PENDING, S.RUNNING])
@pytest.mark.parametrize(
    ("details", "says"),
    [
        (job("SUCCEEDED", driver_exit_code=0), "without reporting a final state"),
        (job("STOPPED"), "stopped outside Prefect"),
        (job("FAILED", driver_exit_code=3, message="log line"), "exit code 3."),
        (job("FAILED", driver_exit_code=3, message="log line"), "\nlog line"),
        (job("FAILED", driver_exit_code=-9), "signal SIGKILL"),
        (
            job("FAILED", error_type="RUNTIME_ENV_SETUP_FAILURE", message="no such package"),
            "RuntimeEnvFailed: The runtime environment could not be set up: no such package.",
        ),
        (job("FAILED"), "Ray gives no reason"),
    ],
)
def test_run_without_result_is_crashed(state: StateType, details: JobDetails, says: str) -> None:
    result = of_ended_job(details, state)
    assert result.resolution is Resolution.CRASH
    assert says in result.message


def test_long_messages_keep_their_end() -> None:
    """Ray's message ends in the last log lines: those say what happened."""
    result = of_ended_job(job("FAILED", message="x" * 20_000 + "the end"), S.RUNNING)
    assert len(result.message) < 2_000
    assert "xthe end" in result.message


def test_lost_job_says_why_as_far_as_it_is_known() -> None:
    restarted = of_lost_job("prefect-1", then="session_1", now="session_2")
    deleted = of_lost_job("prefect-1", then="session_1", now="session_1")
    assert "head was restarted" in restarted.message
    assert "deleted its record" in deleted.message
    assert {restarted.resolution, deleted.resolution} == {Resolution.CRASH}
    assert [restarted.category, deleted.category] == ["HeadLost", "JobDeleted"]


PENDING = job("PENDING", message="Job has not started yet.")
HUNGRY = Context(Asked({"CPU": 8}), ClusterResources((Node({"CPU": 4}, {"CPU": 4}),)))


@pytest.mark.parametrize(
    ("outcome", "category", "says"),
    [
        (of_late_start(5, PENDING, context=HUNGRY), "ResourcesInfeasible", "asks for 8 CPU"),
        (of_late_start(5, PENDING), "StartTimeout", "after 5 s (start_timeout_seconds)"),
        (of_late_start(5, None), "StartTimeout", "after 5 s (start_timeout_seconds)"),
        (of_long_run(7), "RunTimeout", "run timeout of 7 s (run_timeout_seconds)"),
        (of_silence("http://a:1", 9, "boom"), "ClusterUnreachable", "http://a:1 has not answered"),
        (of_refusal("It said no."), "JobRejected", "It said no."),
    ],
)
def test_every_crash_has_a_category_in_front(outcome: Outcome, category: str, says: str) -> None:
    assert outcome.resolution is Resolution.CRASH
    assert outcome.category == category
    assert outcome.message.startswith(f"{category}: ")
    assert says in outcome.message


def test_what_is_no_crash_has_no_category() -> None:
    assert of_ended_job(job("STOPPED"), S.CANCELLING).category is None
    assert of_ended_job(job("STOPPED"), S.COMPLETED).category is None


@pytest.mark.parametrize(
    ("code", "words"),
    [(1, "exit code 1"), (-9, "signal SIGKILL"), (137, "signal SIGKILL"), (-11, "signal SIGSEGV"),
     (143, "signal SIGTERM"), (127, "exit code 127"), (255, "exit code 255")],
)  # fmt: skip
def test_exit_codes_in_words(code: int, words: str) -> None:
    assert describe_exit(code) == words
