"""Why no worker has taken a run: what helps comes first."""

import uuid
from typing import Any

import pytest
from prefect.client.schemas.objects import (
    FlowRunPolicy,
    State,
    WorkPool,
    WorkQueue,
    WorkQueueStatus,
)
from prefect.states import Crashed, Paused, Running

from prefect_ray_worker.prefect_api.due_runs import policy_for_workers, why_not_taken

FULL = {"concurrency_limit": 2, "active_slots": 2}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any] | None, bool, str]] = {
    "a paused pool": (
        {"is_paused": True},
        {"is_paused": True},
        False,
        "work-pool resume 'my pool'",
    ),
    "a paused queue": ({}, {"is_paused": True}, False, "work-queue resume high --pool 'my pool'"),
    "no worker": (FULL, {"status": WorkQueueStatus.NOT_READY}, False, "worker start --pool"),
    "none for the queue": (FULL, {"status": WorkQueueStatus.NOT_READY}, True, "--work-queue high"),
    "a full pool": (FULL, FULL, True, "the work pool: 2 of 2 are taken"),
    "a full queue": ({}, FULL, True, "work queue 'high': 2 of 2 are taken"),
    "no free slot known": ({"concurrency_limit": 2}, {"concurrency_limit": 2}, True, "next look"),
    "a queue that is not known": ({}, None, True, "next look, or a slot of its work queue or"),
}


@pytest.mark.parametrize(("pool", "queue", "has_worker", "words"), CASES.values(), ids=CASES)
def test_reason(
    pool: dict[str, Any], queue: dict[str, Any] | None, has_worker: bool, words: str
) -> None:
    of_pool = WorkPool(name="my pool", type="ray", default_queue_id=uuid.uuid4(), **pool)
    of_queue = queue and WorkQueue(
        **{"name": "high", "work_pool_id": of_pool.id, "status": WorkQueueStatus.READY, **queue}
    )
    assert words in why_not_taken("Late", None, of_pool, of_queue, has_worker=has_worker)


def test_the_slot_of_a_deployment_is_told_as_prefect_tells_it() -> None:
    pool = WorkPool(name="ray", type="ray", default_queue_id=uuid.uuid4())
    said = why_not_taken("AwaitingConcurrencySlot", "One of 3.", pool, None, has_worker=True)
    assert said == "One of 3."


@pytest.mark.parametrize(
    ("state", "keys"),
    [(Running(), {"1", "2"}), (Paused(pause_key="2"), {"1"}), (Crashed(), set[str]())],
    ids=["running", "paused", "ended"],
)
def test_only_pauses_that_were_resumed_are_passed_again(state: State[Any], keys: set[str]) -> None:
    """The next attempt went past a pause that nobody had approved."""
    policy = FlowRunPolicy(retries=1, pause_keys={"1", "2"})
    needed = policy_for_workers(policy, state) or policy
    assert needed == policy.model_copy(update={"pause_keys": keys})
