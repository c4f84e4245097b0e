"""What is told of a job: names, ids, times and labels of its events."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from prefect.events import RelatedResource
from prefect.events.clients import AssertingEventsClient
from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_ray_worker.prefect_api.events import (
    Happening,
    Label,
    Subject,
    event_id,
    occurred_at,
    send,
)
from prefect_ray_worker.ray_api.models import JobDetails, JobStatus

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
JOB = "prefect-11111111-2222-3333-4444-555555555555-abcdefabcdef"
SUBJECT = Subject(JOB, "my-job", {Label.ADDRESS: "http://head:8265", Label.SESSION: None}, [])


@pytest.fixture(autouse=True)
def _nothing_leaves() -> Iterator[None]:
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}):
        EventsWorker.set_client_override(AssertingEventsClient)
        yield
        EventsWorker.set_client_override(None)


def test_ids_are_those_of_the_first_release() -> None:
    """Changing them would have every event of running jobs sent twice after an upgrade."""
    assert str(event_id(JOB, Happening.PENDING)) == "863057f8-983f-553d-809a-5f12e1d8f228"
    assert len({event_id(JOB, happening) for happening in Happening}) == len(Happening)
    assert event_id(JOB, Happening.FAILED) != event_id(f"{JOB}x", Happening.FAILED)


@pytest.mark.parametrize("status", JobStatus)
def test_every_status_of_ray_is_told(status: JobStatus) -> None:
    happening = Happening.of(status)
    assert happening is not None
    assert happening.event == f"prefect.ray.job.{status.lower()}"


def test_status_that_a_newer_ray_invents_is_not() -> None:
    assert Happening.of("PREEMPTED") is None
    assert Happening.of("LOST") is None


@pytest.mark.parametrize(
    ("happening", "seconds"),
    [
        (Happening.PENDING, 1),
        (Happening.RUNNING, None),
        (Happening.FAILED, 61),
        (Happening.STOPPED, 61),
        (Happening.SUCCEEDED, 61),
        (Happening.LOST, None),
    ],
)
def test_times_are_rays_where_ray_has_one(happening: Happening, seconds: int | None) -> None:
    job = JobDetails(status="FAILED", start_time=1_000, end_time=61_000)
    expected = NOW if seconds is None else datetime.fromtimestamp(seconds, UTC)
    assert occurred_at(happening, job, now=NOW) == expected
    assert occurred_at(happening, None, now=NOW) == NOW
    assert occurred_at(happening, JobDetails(status="FAILED"), now=NOW) == NOW


def test_labels_that_are_not_known_are_left_out() -> None:
    event = send(Happening.PENDING, SUBJECT, JobDetails(status="PENDING"))
    assert event is not None
    assert event.resource.root == {
        "prefect.resource.id": f"prefect.ray.job.{JOB}",
        "prefect.resource.name": "my-job",
        "prefect.ray.address": "http://head:8265",
        "prefect.ray.status": "PENDING",
    }
    assert event.payload == {}


def test_exit_code_0_is_a_label_too() -> None:
    event = send(Happening.SUCCEEDED, SUBJECT, JobDetails(status="SUCCEEDED", driver_exit_code=0))
    assert event is not None
    assert event.resource.root["prefect.ray.exit-code"] == "0"


def test_event_follows_what_was_just_before_and_nothing_older() -> None:
    """Prefect holds a follower back until it has seen what it follows, which it soon forgets."""
    submitted = datetime.now(UTC) - timedelta(minutes=1)
    job = JobDetails(status="RUNNING", start_time=int(submitted.timestamp() * 1000))
    pending = send(Happening.PENDING, SUBJECT, job)
    running = send(Happening.RUNNING, SUBJECT, job, follows=pending)
    assert pending is not None
    assert running is not None
    assert running.follows == pending.id
    late = pending.model_copy(update={"occurred": submitted - timedelta(minutes=6)})
    running = send(Happening.RUNNING, SUBJECT, job, follows=late)
    assert running is not None
    assert running.follows is None


def test_event_that_prefect_does_not_take_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    endless = [
        RelatedResource({"prefect.resource.id": f"prefect.tag.{i}", "prefect.resource.role": "tag"})
        for i in range(101)
    ]
    subject = Subject(JOB, "my-job", {}, endless)
    assert send(Happening.PENDING, subject, None) is None
    assert "prefect.ray.job.pending" in caplog.text
    assert send(Happening.FAILED, SUBJECT, None, message="x" * 2_000_000) is None
    assert "prefect.ray.job.failed was not sent" in caplog.text
