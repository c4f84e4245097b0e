"""What the sweep of clusters is told about the runs of a pool."""

from datetime import UTC, datetime
from typing import cast
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import StateType

from prefect_ray_worker.clusters.source import RunAndAttempt
from prefect_ray_worker.prefect_api.active_runs import ActiveRun
from prefect_ray_worker.prefect_api.flow_runs import FlowRuns
from prefect_ray_worker.runs.recovery.labels import Worker, claimed_by
from prefect_ray_worker.runs.recovery.pool_runs import PoolRuns
from prefect_ray_worker.shared.ids import attempt_name

RUN, CLAIM = UUID(int=1), UUID(int=2)  # each pytest process names the tests alike
PRESENT, EARLIER = attempt_name(CLAIM), "0123456789ab"


class OneRun:
    """Stands for Prefect, which has one run."""

    def __init__(self, labelled: str) -> None:
        self.labels = cast("dict[str, object]", claimed_by(Worker("me", "aaa"), labelled))
        self.histories_read = 0

    async def some(self, _: object) -> dict[UUID, ActiveRun]:
        run = ActiveRun(
            RUN, StateType.RUNNING, uuid4(), "", datetime.now(UTC), self.labels, None, None
        )
        return {RUN: run}

    async def claim_id(self, _: UUID) -> UUID:
        self.histories_read += 1
        return CLAIM


@pytest.mark.parametrize("cluster_of", [PRESENT, EARLIER])
@pytest.mark.parametrize("labelled", [PRESENT, EARLIER])
async def test_no_label_alone_ends_the_cluster_of_the_present_attempt(
    labelled: str, cluster_of: str
) -> None:
    """A worker that was stopped wrote an earlier attempt over the label of the present one."""
    prefect = OneRun(labelled)
    view = PoolRuns(uuid4(), cast("FlowRuns", prefect), lambda _: True)
    of = RunAndAttempt(RUN, cluster_of)
    run = (await view.runs(frozenset({of})))[of]
    assert (run.attempt == cluster_of) is (cluster_of == PRESENT or labelled == EARLIER)
    assert prefect.histories_read == (labelled != cluster_of), "a request for each is too many"
