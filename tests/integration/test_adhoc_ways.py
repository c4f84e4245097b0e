"""More ways to call a flow without a deployment. See `test_adhoc.py` for the core."""

import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import anyio
import anyio.to_thread
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.objects import StateType, WorkPoolStorageConfiguration
from prefect.filesystems import LocalFileSystem, RemoteFileSystem
from prefect.flow_runs import suspend_flow_run
from prefect.states import Scheduled
from pydantic import SecretStr

from prefect_ray_worker.bundles.carriers import read_header
from tests.integration.caller_kit import CALLER_SECONDS, FILES, Laptop, online, set_address
from tests.integration.driver_kit import children_of, ends
from tests.integration.harness import Pool, new_pool
from tests.integration.processes import all_gone
from tests.real_ray import RealRay, real_ray
from tests.results.test_results import s3
from tests.waiting import wait_until

__all__ = ["s3"]
pytestmark = [pytest.mark.ray, pytest.mark.extra]


@pytest.fixture
async def laptop(pool: Pool, tmp_path: Path) -> Laptop:
    await set_address(pool)
    return Laptop(pool, tmp_path / "laptop")


@pytest.fixture(scope="module")
def forgetful_ray() -> Iterator[RealRay]:
    """A Ray whose node deletes packages as soon as its head does, as a node that had no job yet."""
    with real_ray(env={"RAY_RUNTIME_ENV_PY_MODULES_CACHE_SIZE_GB": "0"}) as ray:
        yield ray


@pytest.fixture
async def forgetful(
    forgetful_ray: RealRay, prefect_settings: None, tmp_path: Path
) -> AsyncIterator[Laptop]:
    async with new_pool({"address": forgetful_ray.address}) as pool:
        await set_address(pool)
        yield Laptop(pool, tmp_path / "laptop")


async def store_in(pool: Pool, block_id: UUID) -> None:
    """Have the pool keep results in a storage block."""
    storage = WorkPoolStorageConfiguration(default_result_storage_block_id=block_id)
    await pool.client.update_work_pool(pool.name, WorkPoolUpdate(storage_configuration=storage))


async def test_async_flow_is_awaited(laptop: Laptop) -> None:
    async with online(laptop.pool):
        assert "value 42" in await laptop.call("async")


async def test_future_and_retry_by_hand(laptop: Laptop) -> None:
    async with online(laptop.pool):
        said = await laptop.call("submitted")
    assert "value 6 Completed" in said
    assert "again 6" in said
    assert (await laptop.run()).run_count == 2


async def test_tasks_find_the_modules_and_files_of_the_bundle(laptop: Laptop) -> None:
    """The folder of our own engine was shipped instead of the flow's."""
    async with online(laptop.pool):
        assert "value 12" in await laptop.call("fans_out")


async def test_large_value_needs_result_storage(laptop: Laptop) -> None:
    async with online(laptop.pool):
        said = await laptop.call("large", "5")
        assert "AnswerMissing" in said
        assert "5.0 MiB pickled" in said
        assert (await laptop.run()).state_type == StateType.COMPLETED


async def test_large_value_and_large_bundle_go_through_the_storage_of_the_pool(
    laptop: Laptop, tmp_path: Path
) -> None:
    """A folder that both see stands for NFS."""
    block_id = await LocalFileSystem(basepath=str(tmp_path / "nfs")).save(f"nfs-{laptop.pool.name}")
    await store_in(laptop.pool, block_id)
    async with online(laptop.pool):
        assert "value 5242880" in await laptop.call("large", "5")
        assert "value 6291456" in await laptop.call("sends", "6")
    assert [p.name for p in (tmp_path / "nfs" / "ray-bundles").iterdir()]


async def test_second_interrupt_lets_go(laptop: Laptop) -> None:
    async with online(laptop.pool):
        process = laptop.start("stubborn")
        run = await laptop.run()
        await laptop.pool.wait_for_log(run.id, "going on", seconds=60)
        process.send_signal(signal.SIGINT)
        await laptop.pool.wait_for(run.id, StateType.CANCELLING)
        process.send_signal(signal.SIGINT)
        said, _ = await anyio.to_thread.run_sync(
            lambda: process.communicate(timeout=CALLER_SECONDS)
        )
        assert "is no longer followed" in said
        assert (await laptop.pool.read(run.id)).state_type == StateType.CANCELLING
        await laptop.pool.wait_for(run.id, StateType.CANCELLED)


async def test_call_inside_a_flow_is_a_subflow(laptop: Laptop) -> None:
    async with online(laptop.pool):
        assert "value 8" in await laptop.call("parent")
    run = await laptop.run()
    assert run.parent_task_run_id is not None


async def test_states_hold_values_and_exceptions(laptop: Laptop) -> None:
    async with online(laptop.pool):
        said = await laptop.call("states")
    assert "Completed 6" in said
    assert "Failed TooFew" in said
    assert "crashed CrashedRun" in said


async def test_prefects_command_retries_a_run(laptop: Laptop) -> None:
    async with online(laptop.pool):
        await laptop.call("called")
        run = await laptop.run()
        command = ["-m", "prefect", "flow-run", "retry", str(run.id)]
        said = await laptop.call("--entrypoint", "calls.py:train", program=command)
    assert "completed successfully" in said
    assert (await laptop.pool.read(run.id)).run_count == 2


async def test_deployed_flow_calls_one_without_a_deployment(laptop: Laptop) -> None:
    """The process that calls is a driver in the cluster."""
    pool = replace(laptop.pool, flows=FILES)
    await set_address(pool, env={"POOL": pool.name})  # `calls.py` reads it, in both jobs
    async with online(pool):
        run_id = await pool.start("parent", entrypoint="calls.py:parent")
        await ends(pool, run_id, StateType.COMPLETED, seconds=90)
    (child,) = await children_of(pool, run_id)
    assert child.state_type == StateType.COMPLETED
    assert child.deployment_id is None
    assert child.infrastructure_pid is not None, "in a job of its own"


async def test_caller_that_is_suspended_makes_no_more_calls(laptop: Laptop) -> None:
    """It went on while Prefect said Suspended, and all of it ran again when it was resumed."""
    pool = replace(laptop.pool, flows=FILES)
    await set_address(pool, env={"POOL": pool.name})
    async with online(pool):
        run_id = await pool.start("caller", entrypoint="calls.py:calls_one_after_the_other")

        async def is_called() -> bool:
            return [run.state_type for run in await children_of(pool, run_id)] == [
                StateType.RUNNING
            ]

        await wait_until(is_called, timeout=60, description="the first call runs")
        await suspend_flow_run(flow_run_id=run_id, timeout=300)
        await all_gone(run_id, within=60)
        (child,) = await children_of(pool, run_id)
        assert child.state_type == StateType.COMPLETED
        assert await pool.state(run_id) == StateType.PAUSED


async def test_large_bundle_goes_through_the_store_of_ray(laptop: Laptop) -> None:
    async with online(laptop.pool):
        assert "value 6291456" in await laptop.call("sends", "6")
        run = await laptop.run()
        with get_client(sync_client=True) as client:
            assert read_header(client, run.id).carrier == "cluster"


async def test_equal_bundles_in_the_store_of_ray_do_not_end_with_the_first_run(
    forgetful: Laptop,
) -> None:
    """Ray deletes a package when the last job that uses it has ended; the other run still waits."""
    await forgetful.pool.client.update_work_pool(
        forgetful.pool.name, WorkPoolUpdate(concurrency_limit=1)
    )
    async with online(forgetful.pool):
        assert "values [6291456, 6291456]" in await forgetful.call("sends_twice", "6")
    assert {run.state_type for run in await forgetful.runs()} == {StateType.COMPLETED}


async def test_run_whose_bundle_rays_store_has_dropped_says_to_call_again(
    forgetful: Laptop,
) -> None:
    async with online(forgetful.pool):
        await forgetful.call("sends", "6")
        run = await forgetful.run()
        await forgetful.pool.client.set_flow_run_state(run.id, Scheduled(), force=True)
        await ends(forgetful.pool, run.id, StateType.CRASHED, seconds=90)
    state = (await forgetful.pool.read(run.id)).state
    assert state is not None
    said = state.message or ""
    assert "RuntimeEnvCodeMissing" in said
    assert "no longer has the code of this call" in said
    assert "Call the flow again" in said


async def test_large_value_and_large_bundle_go_through_s3(laptop: Laptop, s3: str) -> None:
    """Of the work pool's result storage, in a bucket that the caller and the nodes reach."""
    settings = {"key": "testing", "secret": "testing", "client_kwargs": {"endpoint_url": s3}}
    block = RemoteFileSystem(basepath="s3://results/prefect", settings=settings)
    await store_in(laptop.pool, await block.save(f"s3-{laptop.pool.name}"))
    async with online(laptop.pool):
        assert "value 5242880" in await laptop.call("large", "5")
        assert "value 6291456" in await laptop.call("sends", "6")


async def test_prefects_command_configures_the_storage(laptop: Laptop, s3: str) -> None:
    """It also sets the steps of Prefect's own bundles, which `ray_job` neither uses nor changes."""
    prefect_aws = pytest.importorskip("prefect_aws", reason="pip install prefect-aws")
    pool, name = laptop.pool, f"aws-{laptop.pool.name}"
    await laptop.call("block", "register", "-m", "prefect_aws", program=["-m", "prefect"])
    client = {"endpoint_url": s3}
    credentials = prefect_aws.AwsCredentials(aws_client_parameters=client)
    await credentials.save(name)
    command = ["work-pool", "storage", "configure", "s3", pool.name, "--bucket", "results"]
    await laptop.call(*command, "--aws-credentials-block-name", name, program=["-m", "prefect"])
    configured = (await pool.client.read_work_pool(pool.name)).storage_configuration
    async with online(pool):
        said = await laptop.call("large", "5")
        assert "result has not been persisted" in said, "the nodes have no keys"
        assert "AnswerMissing The flow run" in said
        assert "cannot be read from the result storage (ClientError: " in said
        credentials.aws_access_key_id = "testing"
        credentials.aws_secret_access_key = SecretStr("testing")
        await credentials.save(name, overwrite=True)
        assert "value 5242880" in await laptop.call("large", "5")
        assert "value 6291456" in await laptop.call("sends", "6")
    assert (await pool.client.read_work_pool(pool.name)).storage_configuration == configured
