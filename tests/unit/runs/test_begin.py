"""A claimed run that goes on while its worker waits for the Prefect API."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State, StateType

from prefect_ray_worker.runs.begin import is_claimed_still


def history(*names: str) -> list[State[Any]]:
    began = datetime(2026, 1, 1, tzinfo=UTC)
    types = {"Late": "SCHEDULED", "Submitting": "PENDING", "InfrastructurePending": "PENDING"}
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
