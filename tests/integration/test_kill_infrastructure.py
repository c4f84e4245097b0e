"""`kill_infrastructure` stops the job of the run, and nobody else's."""

from uuid import uuid4

import pytest
from prefect.exceptions import InfrastructureNotAvailable

from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.shared.ids import ClusterRef, InfrastructurePid, submission_id
from tests.integration.stage import Stage


async def test_only_a_job_of_the_run_is_stopped(stage: Stage) -> None:
    """Anyone who may update a run could write another job's id into its infrastructure_pid."""
    run_id, claim, other = uuid4(), uuid4(), uuid4()
    ours = {"prefect.io/flow-run-id": str(run_id)}
    configuration = RayJobConfiguration(address=stage.ray.address, stop_grace_seconds=1)
    configuration.labels.update(ours)
    foreign = [
        stage.ray.add_job("somebody-elses"),
        stage.ray.add_job(
            submission_id(other, claim), metadata={"prefect.io/flow-run-id": str(other)}
        ),
        stage.ray.add_job(submission_id(run_id, uuid4()), metadata={"by": "another tool"}),
        stage.ray.add_job(f"prefect-{run_id}-../x", metadata=ours),
    ]
    job = stage.ray.add_job(submission_id(run_id, claim), metadata=ours)
    ref = ClusterRef.of_address(stage.ray.address)
    async with stage.heir() as worker:
        await stage.is_served()
        for each in foreign:
            pid = InfrastructurePid(ref, each.submission_id)
            with pytest.raises(InfrastructureNotAvailable, match=r"this run|another worker type"):
                await worker.kill_infrastructure(str(pid), configuration, grace_seconds=1)
        assert [each.stop_requests for each in foreign] == [0] * len(foreign)
        pid = InfrastructurePid(ref, job.submission_id)
        await worker.kill_infrastructure(str(pid), configuration, grace_seconds=1)
    assert job.stop_requests == 1
