"""Job variables on a real server: blocks resolve, and bad input is told on the run it concerns."""

from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.actions import VariableCreate
from prefect.client.schemas.objects import StateType
from pydantic import SecretStr

from prefect_ray_worker.config.block import RayCluster
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection
from tests.integration.harness import Pool, new_pool
from tests.real_ray import RealRay

pytestmark = pytest.mark.ray

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "address": ({"address": "ray://head:10001"}, "Ray Client address"),
    "unknown variable": ({"entrypoint_num_cpu": 1}, "Did you mean 'entrypoint_num_cpus'"),
    "two installers": ({"runtime_env": {"pip": ["a"], "uv": ["b"]}}, "pip and uv"),
    "local working_dir": ({"runtime_env": {"working_dir": "."}}, "pull steps"),
    "entrypoint too long": ({"command": "x" * 140_000}, "131071"),
    "missing Prefect variable": (
        {"runtime_env": {"pip": ["{{ prefect.variables.no_such_variable }}"]}},
        "refers to the Prefect variable 'no_such_variable', which does not exist",
    ),
    "missing Prefect variable in env": (
        {"env": {"TEAM": "a-{{ prefect.variables.no_such_variable }}"}},
        "'env.TEAM'",
    ),
    "name with a slash": ({"name": "a/b"}, "slash"),
}


async def test_bad_input_is_told_on_the_run_and_the_worker_goes_on(
    pool: Pool, ray_cluster: RealRay
) -> None:
    async with pool.working():
        runs = {name: await pool.start("adds", job_variables=bad) for name, (bad, _) in BAD.items()}
        await pool.client.create_variable(VariableCreate(name="a_team", value="blue"))
        env = {"N": 4, "FLAG": True, "TEAM": "{{ prefect.variables.a_team }}"}
        good = await pool.start("adds", job_variables={"env": env})
        for name, run_id in runs.items():
            run = await pool.wait_for(run_id)
            assert run.state is not None
            assert run.state.type == StateType.CRASHED
            assert BAD[name][1] in (run.state.message or ""), name
            assert run.infrastructure_pid is None
        run = await pool.wait_for(good)
        assert run.state is not None
        assert run.state.is_completed()
    async with JobsClient(Connection(ray_cluster.address)) as client:
        jobs = {
            (job.metadata or {}).get("prefect.io/flow-run-id"): job for job in await client.list()
        }
    assert not jobs.keys() & {str(run_id) for run_id in runs.values()}
    sent = (jobs[str(good)].runtime_env or {})["env_vars"]
    assert {"N": "4", "FLAG": "true", "TEAM": "blue"}.items() <= sent.items()


@pytest.mark.extra
async def test_saved_block_is_the_cluster_job_variable(
    prefect_settings: None, ray_cluster: RealRay
) -> None:
    secret = "token-that-nobody-needs"
    block = RayCluster(address=ray_cluster.address, token=SecretStr(secret))
    name = f"cluster-{uuid4().hex[:6]}"
    document = await block.asave(name)
    reference = {"$ref": {"block_document_id": str(document)}}
    async with new_pool({"cluster": reference}) as pool, pool.working():
        run_id = await pool.start("adds")
        run = await pool.wait_for(run_id)
        logs = await pool.logs(run_id)
    assert run.state is not None
    assert run.state.is_completed()
    assert (run.infrastructure_pid or "").startswith(ray_cluster.address)
    assert secret not in "\n".join(logs)
    assert secret not in repr(block)


async def test_worker_offers_the_block_type(pool: Pool) -> None:
    async with pool.working() as (worker,):
        from tests.waiting import wait_until

        async def registered() -> bool:
            return "ray-cluster" in {t.slug for t in await pool.client.read_block_types()}

        await wait_until(registered, description="the block type to be registered")
        assert worker.type == "ray"
