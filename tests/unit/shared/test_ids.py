"""Names: stable, distinct per attempt, and readable back."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from uuid import UUID, uuid4

import pytest

from prefect_ray_worker.shared.ids import (
    ClusterRef,
    InfrastructurePid,
    attempt_number,
    is_job_of,
    submission_id,
    was_never_sent,
)

RUN = UUID("11111111-2222-3333-4444-555555555555")
HEAD = ClusterRef.of_address("http://head:8265")


def test_submission_id_is_a_function_of_run_and_claim() -> None:
    claim = uuid4()
    assert submission_id(RUN, claim) == submission_id(RUN, claim)
    assert submission_id(RUN, claim) != submission_id(RUN, uuid4())
    assert submission_id(RUN, claim).startswith(f"prefect-{RUN}-")


def test_claims_of_the_same_moment_differ() -> None:
    """Version 7 ids of one millisecond share their head; the id takes the tail."""
    first = UUID("01935000-0000-7000-8000-aaaaaaaaaaaa")
    second = UUID("01935000-0000-7000-8000-bbbbbbbbbbbb")
    assert submission_id(RUN, first) != submission_id(RUN, second)


def test_submission_id_has_only_characters_that_ray_takes() -> None:
    text = submission_id(RUN, uuid4())
    assert set(text) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert len(text) <= 200


@pytest.mark.parametrize(
    "pid",
    [
        InfrastructurePid(HEAD, "prefect-x-1", "session_2026-11-23_1_2"),
        InfrastructurePid(ClusterRef.of_address("https://ingress/ray"), "prefect-x-1"),
        InfrastructurePid(ClusterRef.of_address("http://[::1]:8265"), "prefect-x-1", "session_1"),
        InfrastructurePid(ClusterRef("kuberay", "ns/ray-1@uid-2"), "prefect-x-1", "session_1"),
    ],
)
def test_pid_reads_back(pid: InfrastructurePid) -> None:
    assert InfrastructurePid.parse(str(pid)) == pid


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host:1234",
        "http://head:8265",
        "/api/jobs/x",
        "a/api/jobs/",
        "a/api/jobs/x",
        ":a/api/jobs/x",
        "address:http://head:8265/api/jobs/x",
    ],
)
def test_foreign_pid_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not the infrastructure pid"):
        InfrastructurePid.parse(text)


def test_the_pid_of_an_earlier_release_is_read() -> None:
    text = "http://head:8265/api/jobs/prefect-x-1#session_2026-11-23_1_2"
    assert InfrastructurePid.parse(text).cluster == HEAD
    assert str(InfrastructurePid.parse(text)) == text


def test_job_is_ours_by_its_metadata_only() -> None:
    assert is_job_of(RUN, {"prefect.io/flow-run-id": str(RUN)})
    assert not is_job_of(RUN, {"prefect.io/flow-run-id": str(uuid4())})
    assert not is_job_of(RUN, {})
    assert not is_job_of(RUN, None)


def test_attempts_are_counted_by_their_claims() -> None:
    """Whoever asks, and whenever: an attempt that follows changes no number."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    names = ["Scheduled", "Pending", "Submitting", "Running", "Scheduled", "Pending", "Running"]
    states = [
        SimpleNamespace(
            id=uuid4(),
            type="PENDING" if name in ("Pending", "Submitting") else name.upper(),
            name=name,
            timestamp=start + timedelta(seconds=second),
        )
        for second, name in enumerate(names)
    ]
    assert attempt_number(states[:3], states[1].id) == 1
    assert attempt_number(reversed(states), states[1].id) == 1
    assert attempt_number(states, states[5].id) == 2
    assert attempt_number([], uuid4()) == 1


@pytest.mark.parametrize(
    ("names", "never_sent"),
    [
        (["AwaitingCode", "Pending"], True),
        (["AwaitingCode", "Late", "Pending"], True),
        (["AwaitingCode", "Scheduled", "Pending"], False),
        (["AwaitingCode", "Scheduled", "Late", "Pending"], False),
        (["Scheduled", "Late", "Pending"], False),
        (["Pending"], False),
        ([], False),
    ],
)
def test_run_whose_caller_never_sent_its_code(names: list[str], never_sent: bool) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    states = [
        SimpleNamespace(
            id=uuid4(),
            type="PENDING" if name == "Pending" else "SCHEDULED",
            name=name,
            timestamp=start + timedelta(seconds=second),
        )
        for second, name in enumerate(names)
    ]
    assert was_never_sent(reversed(states)) is never_sent
