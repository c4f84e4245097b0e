"""The way from a flow run to its job in the Ray dashboard."""

from uuid import UUID, uuid4

from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
)
from prefect.client.schemas.objects import Artifact, StateType

from prefect_ray_worker.config.block import RayCluster
from prefect_ray_worker.prefect_api.links import LINK_KEY
from tests.integration.harness import Pool
from tests.integration.stage import Stage
from tests.waiting import wait_until

PUBLISHED = "https://ray.example.com/research"


async def artifacts_of(pool: Pool, run_id: UUID) -> list[Artifact]:
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
    return await pool.client.read_artifacts(artifact_filter=wanted)


async def link_of(pool: Pool, run_id: UUID) -> Artifact:
    (artifact,) = await wait_until(
        lambda: artifacts_of(pool, run_id), timeout=20, description="an artifact of the run"
    )
    return artifact


async def test_run_has_one_link_whoever_follows_it(stage: Stage) -> None:
    async with stage.heir():
        run_id, job = await stage.running()
        artifact = await link_of(stage.pool, run_id)
        page = f"{stage.ray.address}/#/jobs/{job.submission_id}"
        assert artifact.key == LINK_KEY
        assert artifact.type == "markdown"
        assert f"({page})" in str(artifact.data)
        assert page in await stage.pool.wait_for_log(run_id, "Dashboard: ")
        # The id has 57 characters: it was in four lines.
        said = await stage.pool.logs(run_id)
        assert len([line for line in said if job.submission_id in line]) == 1
    async with stage.heir():
        await stage.pool.wait_for_log(run_id, "Following Ray Job", seconds=40)
        job.set("FAILED", driver_exit_code=7)
        await stage.ends(run_id, StateType.CRASHED)
    assert [found.id for found in await artifacts_of(stage.pool, run_id)] == [artifact.id]


async def test_dashboard_that_is_published_elsewhere(stage: Stage) -> None:
    block = RayCluster(address=stage.ray.address, dashboard_url=f"{PUBLISHED}/")
    document = await block.save(f"published-{uuid4().hex[:6]}")
    async with stage.pool.working():
        run_id, job = await stage.running(
            address=None, cluster={"$ref": {"block_document_id": str(document)}}
        )
        page = f"{PUBLISHED}/#/jobs/{job.submission_id}"
        assert f"({page})" in str((await link_of(stage.pool, run_id)).data)
        assert page in await stage.pool.wait_for_log(run_id, "Dashboard: ")
        job.set("FAILED", driver_exit_code=7)
        await stage.ends(run_id, StateType.CRASHED)
