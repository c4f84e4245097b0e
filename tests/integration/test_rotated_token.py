"""A token that is rotated in its block reaches the runs that are followed already."""

from prefect.client.schemas.objects import StateType

from prefect_ray_worker.config.block import RayCluster
from tests.integration.stage import Stage


async def test_followed_run_survives_the_rotation_of_its_cluster_s_token(stage: Stage) -> None:
    stage.ray.token = "old"
    block = RayCluster(address=stage.ray.address, token="old")  # type: ignore[arg-type]
    block_id = await block.save("rotated")
    async with stage.heir():
        run_id, job = await stage.running(cluster={"$ref": {"block_document_id": str(block_id)}})
        renewed = RayCluster(address=stage.ray.address, token="new")  # type: ignore[arg-type]
        await renewed.save("rotated", overwrite=True)
        stage.ray.token = "new"
        job.set("FAILED", driver_exit_code=7)
        await stage.ends(run_id, StateType.CRASHED, "exit code 7")
