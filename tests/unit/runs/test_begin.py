"""A claimed run that goes on while its worker waits for the Prefect API."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State, StateType

from prefect_ray_worker.runs.begin import is_claimed_still, replaced_end


def history(*names: str) -> list[State[Any]]:
    began = datetime(2026, 1, 1, tzinfo=UTC)
    pending = ("Submitting", "InfrastructurePending", "Starting")
    types = {"Late": "SCHEDULED", **dict.fromkeys(pending, "PENDING")}
    return [
        State(
            id=uuid4(),
            type=StateType(types.get(name, name.upper())),
            name=name,
            timestamp=began + timedelta(seconds=seconds),
        )
        for seconds, name in enumerate(names)
    ]


@pytest.mark.parametrize(
    ("since_the_poll", "is_claimed"),
    [
        ("Pending", True),
        ("Late Pending", True),
        ("Pending InfrastructurePending", True),
        ("Pending Cancelling", True),
        ("Pending Failed", False),
        ("Pending Running", False),
        ("Pending Running Completed", False),
        ("Pending Cancelled", False),
        ("Pending Scheduled", False),
        ("Pending Scheduled Pending", False),
    ],
)
def test_a_run_is_submitted_only_for_the_claim_that_the_worker_got(
    since_the_poll: str, *, is_claimed: bool
) -> None:
    states = history("Scheduled", "Pending", "Failed", "Scheduled", *since_the_poll.split())
    run = FlowRun(id=uuid4(), flow_id=uuid4(), state_id=states[3].id)
    assert is_claimed_still(run, states) is is_claimed


def test_a_run_that_was_read_after_its_claim_is_submitted_and_a_deleted_one_is_not() -> None:
    states = history("Pending")
    run = FlowRun(id=uuid4(), flow_id=uuid4(), state_id=states[0].id)
    assert is_claimed_still(run, states)
    assert not is_claimed_still(run, [])


@pytest.mark.parametrize(
    ("states", "replaced"),
    [
        ("Scheduled Pending", None),
        ("Scheduled Failed Pending", "Failed"),
        ("Scheduled Pending Crashed Pending", "Crashed"),
        ("Scheduled Completed Pending Cancelling", "Completed"),
        ("Scheduled Failed Scheduled Pending", None),
        ("Scheduled Pending Scheduled Pending", None),
    ],
)
def test_a_claim_that_the_server_granted_late_gives_the_run_its_end_back(
    states: str, replaced: str | None
) -> None:
    """The second worker's claim was its own second one: it left the run Pending, to run again."""
    past = history(*states.split())
    run = FlowRun(id=uuid4(), flow_id=uuid4(), state_id=past[0].id)
    claim = next(state for state in reversed(past) if state.name == "Pending")
    assert is_claimed_still(run, past, claim.id)
    ended = replaced_end(past, claim.id)
    assert (ended.name if ended else None) == replaced


def test_another_worker_s_later_claim_counts() -> None:
    past = history("Scheduled", "Pending", "Crashed", "Pending")
    run = FlowRun(id=uuid4(), flow_id=uuid4(), state_id=past[0].id)
    assert not is_claimed_still(run, past, past[1].id)


@pytest.mark.parametrize(
    ("since_the_claim", "is_claimed"),
    [
        ("Cancelling", True),
        ("Submitting", False),
        ("InfrastructurePending", False),
        ("Starting", False),
    ],
)
def test_an_attempt_that_another_worker_has_taken_over_is_not_submitted_again(
    since_the_claim: str, *, is_claimed: bool
) -> None:
    """Both submitted the job, each to its own Ray; the loser's end crashed the run."""
    states = history("Scheduled", "Pending", since_the_claim)
    run = FlowRun(id=uuid4(), flow_id=uuid4(), state_id=states[0].id)
    assert is_claimed_still(run, states, states[1].id) is is_claimed
