"""`Lease`: a process that was frozen asks about each attempt that it had before."""

from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import pytest

from prefect_ray_worker.prefect_api.flow_runs import FlowRuns
from prefect_ray_worker.runs.lease import Lease, Moment
from prefect_ray_worker.runs.recovery.labels import Worker, claimed_by
from prefect_ray_worker.shared.ids import job_of_attempt

RUN = uuid4()
FIRST, SECOND = "0123456789ab", "ba9876543210"
ME, OTHER = Worker("first", "aaa"), Worker("second", "bbb")
SECONDS = 10.0


class Followed:
    """What this process follows."""

    def __init__(self, *job_ids: str) -> None:
        self.job_ids = frozenset(job_ids)

    def __contains__(self, job_id: object) -> bool:
        return job_id in self.job_ids


class Prefect:
    """Has one run, and counts how often it is read."""

    def __init__(self, labels: dict[str, str]) -> None:
        self.labels = labels
        self.reads = 0

    async def read(self, _: UUID) -> Any:
        self.reads += 1
        return SimpleNamespace(labels=self.labels)


def lease_of(prefect: Prefect) -> Lease:
    followed = Followed(job_of_attempt(RUN, FIRST))
    return Lease(ME.instance, cast("FlowRuns", prefect), followed, seconds=SECONDS)


def ago(steady: float, wall: float | None = None) -> Moment:
    now = Moment.now()
    return Moment(now.steady - steady, now.wall - (steady if wall is None else wall))


async def test_a_woken_process_does_not_act_on_an_attempt_that_has_another_owner() -> None:
    """The next attempt had begun there: the lines of the first one were doubled."""
    prefect = Prefect({**claimed_by(OTHER, FIRST), **claimed_by(OTHER, SECOND)})
    lease, job_id = lease_of(prefect), job_of_attempt(RUN, FIRST)
    lease.renew(ago(2 * SECONDS))
    assert not await lease.holds(RUN, job_id)
    lease.renew(Moment.now())
    assert not await lease.holds(RUN, job_id), "a look at the pool concerns present attempts only"


async def test_the_rest_of_an_attempt_stays_its_owners_when_the_next_has_begun() -> None:
    prefect = Prefect({**claimed_by(ME, FIRST), **claimed_by(OTHER, SECOND)})
    lease, job_id = lease_of(prefect), job_of_attempt(RUN, FIRST)
    lease.renew(ago(2 * SECONDS))
    lease.renew(Moment.now())
    for _ in range(3):
        assert await lease.holds(RUN, job_id)
    assert prefect.reads == 1, "asked once after the gap"


async def test_a_fresh_lease_asks_nothing() -> None:
    prefect = Prefect(claimed_by(OTHER, FIRST))
    lease, job_id = lease_of(prefect), job_of_attempt(RUN, FIRST)
    lease.renew(Moment.now())
    lease.renew(Moment.now())
    assert await lease.holds(RUN, job_id)
    assert prefect.reads == 0


@pytest.mark.parametrize(("steady", "wall"), [(0.0, 2 * SECONDS), (2 * SECONDS, 0.0)])
async def test_a_machine_that_was_suspended_has_no_fresh_lease(steady: float, wall: float) -> None:
    """The steady clock stands still meanwhile; the other one may have been set back."""
    prefect = Prefect(claimed_by(OTHER, FIRST))
    lease, job_id = lease_of(prefect), job_of_attempt(RUN, FIRST)
    lease.renew(ago(steady, wall))
    assert not await lease.holds(RUN, job_id)
    assert prefect.reads == 1
