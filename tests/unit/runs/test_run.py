"""`started_in`: when the process of a run first spoke, whoever started it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prefect.client.schemas.objects import State
from prefect.states import Cancelling, Pending, Running, Scheduled

from prefect_ray_worker.runs.run import started_in

BEGAN = datetime(2026, 11, 1, tzinfo=UTC)


def states(*given: State[Any]) -> list[State[Any]]:
    """Return a history: a state a second."""
    at = [BEGAN + timedelta(seconds=second) for second in range(len(given))]
    return [s.model_copy(update={"timestamp": when}) for s, when in zip(given, at, strict=True)]


@pytest.mark.parametrize(
    ("history", "second"),
    [
        # `prefect flow-run execute` proposes Running straight from Scheduled (3.8.8).
        (states(Scheduled(), Running(), Cancelling()), 1),
        (states(Scheduled(), Pending(), Running(), Cancelling()), 2),
        (states(Scheduled(), Pending(), Running(), Pending(), Cancelling()), None),
        (states(Scheduled(), Pending(), Running(), Scheduled(), Pending(), Running()), 5),
        (states(Scheduled(), Cancelling()), None),
    ],
    ids=["by hand", "by a worker", "claimed anew", "begun anew", "never"],
)
def test_a_process_spoke_after_the_claim_or_without_one(
    history: list[State[Any]], second: int | None
) -> None:
    expected = None if second is None else BEGAN + timedelta(seconds=second)
    assert started_in(history) == expected
