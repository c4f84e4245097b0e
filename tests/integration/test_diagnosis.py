"""Failures provoked for real, and what the flow run says about them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import anyio.to_thread
import pytest
from prefect.client.schemas.objects import StateType

from prefect_ray_worker.diagnosis.pending import Reason, why_waiting
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.models import JobSubmitRequest
from prefect_ray_worker.ray_api.resources import asked_for
from prefect_ray_worker.shared.resources import ClusterResources
from tests.fake_ray import FakeRay
from tests.integration.harness import Pool, new_pool
from tests.real_ray import RealRay
from tests.two_nodes import two_nodes
from tests.waiting import wait_until

pytestmark = pytest.mark.ray

_SECONDS = 150
_NO_INDEX = {"packages": ["no-such-package-xyz"], "pip_install_options": ["--no-index"]}

_FLOWS = """
import os
from prefect import flow

@flow
def kills_itself():
    os.kill(os.getpid(), 9)

@flow
def needs_much(group: str):
    with open(f"{group}/cgroup.procs", "w") as members:
        members.write(str(os.getpid()))
    bytearray(10**9)
"""


@pytest.fixture
def folder(tmp_path: Path) -> dict[str, Any]:
    """A pull step into a folder with flows of all kinds."""
    (tmp_path / "broken.py").write_text("import no_such_module.part\n")
    (tmp_path / "works.py").write_text(_FLOWS)
    return {
        "pull_steps": [
            {"prefect.deployments.steps.set_working_directory": {"directory": str(tmp_path)}}
        ]
    }


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group with 200 MB, where the test may make one."""
    group = Path("/sys/fs/cgroup/memory") / f"prwt-{uuid4().hex[:8]}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("needs root and control groups of version 1")
    try:
        (group / "memory.limit_in_bytes").write_text(str(200 * 1024**2))
        yield group
    finally:
        group.rmdir()


async def crash(pool: Pool, runs: dict[UUID, tuple[str, str]]) -> None:
    """Wait until all these runs have crashed, each with its category and words."""
    wrong: list[str] = []
    async with pool.working():
        for run_id, (category, words) in runs.items():
            run = await pool.wait_for(run_id, seconds=_SECONDS)
            assert run.state is not None
            message = run.state.message or ""
            crashed = run.state.type == StateType.CRASHED
            if not (crashed and message.startswith(f"{category}: ") and words in message):
                wrong.append(f"{category} expected, not {run.state.type}: {message}")
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.extra
async def test_environments(pool: Pool) -> None:
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"pip": _NO_INDEX}, "RuntimeEnvPackageNotFound", "'no-such-package-xyz'"),
        ({"pip": ["x"], "config": {"setup_timeout_seconds": 1}}, "RuntimeEnvTimeout", "1 s"),
        ({"working_dir": "gcs://_ray_pkg_00.zip"}, "RuntimeEnvCodeMissing", "_ray_pkg_00.zip"),
        ({"py_modules": ["local:///no/such"]}, "RuntimeEnvCodeMissing", "local:///no/such"),
        ({"working_dir": "file:///no/such.zip"}, "RuntimeEnvCodeMissing", "'/no/such.zip'"),
    ]
    await crash(
        pool,
        {
            await pool.start("adds", job_variables={"runtime_env": env}): (category, words)
            for env, category, words in cases
        },
    )


async def test_commands_and_flows(pool: Pool, folder: dict[str, Any]) -> None:
    commands = [("no-such-command", "EntrypointNotFound", "'no-such-command'")]
    entrypoints = [
        ("broken.py:any", "ModuleNotFound", "'no_such_module'"),
        ("works.py:kills_itself", "KilledBySignal", "counted no out-of-memory kill"),
    ]
    runs = await of_commands(pool, commands)
    await crash(pool, runs | await of_entrypoints(pool, folder, entrypoints))


@pytest.mark.extra
async def test_more_commands_and_flows(pool: Pool, folder: dict[str, Any]) -> None:
    commands = [
        ("python no_such_file.py", "EntrypointNotFound", "no_such_file.py"),
        ("python -m no_such_module", "ModuleNotFoundOnNode", "'no_such_module'"),
        ("python -c 'import no_such'", "ModuleNotFound", "'no_such'"),
        ("exit 3", "DriverExited", "exit code 3"),
    ]
    entrypoints = [("works.py:other", "EntrypointNotFound", "'works.py:other' leads to no flow")]
    runs = await of_commands(pool, commands)
    await crash(pool, runs | await of_entrypoints(pool, folder, entrypoints))


@pytest.mark.extra
async def test_entrypoints_of_files_and_modules_that_are_missing(
    pool: Pool, folder: dict[str, Any]
) -> None:
    entrypoints = [
        ("nowhere.py:any", "EntrypointNotFound", "'nowhere.py:any' leads to no flow"),
        ("no_such.place:any", "EntrypointNotFound", "'no_such.place:any' leads to no flow"),
    ]
    await crash(pool, await of_entrypoints(pool, folder, entrypoints))


async def of_commands(pool: Pool, cases: list[tuple[str, str, str]]) -> dict[UUID, tuple[str, str]]:
    return {
        await pool.start("adds", job_variables={"command": command}): (category, words)
        for command, category, words in cases
    }


async def of_entrypoints(
    pool: Pool, folder: dict[str, Any], cases: list[tuple[str, str, str]]
) -> dict[UUID, tuple[str, str]]:
    return {
        await pool.start("any", entrypoint=entrypoint, **folder): (category, words)
        for entrypoint, category, words in cases
    }


@pytest.mark.extra
async def test_prefect_api_as_the_cluster_sees_it(pool: Pool, ray_cluster: RealRay) -> None:
    async with FakeRay(token="nobody-has-it") as refuses:
        cases = [
            ("http://localhost:9/api", "PrefectApiUnreachable", "localhost means the node itself"),
            (f"{refuses.address}/api", "PrefectApiUnauthorized", "(HTTP 401)"),
            (f"{ray_cluster.address}/api", "PrefectApiWrong", f"at {ray_cluster.address}/api"),
        ]
        runs = {
            await pool.start("adds", job_variables={"env": {"PREFECT_API_URL": url}}): (
                category,
                words,
            )
            for url, category, words in cases
        }
        await crash(pool, runs)


async def test_memory(pool: Pool, folder: dict[str, Any], small_group: Path) -> None:
    run_id = await pool.start(
        "needs_much", {"group": str(small_group)}, entrypoint="works.py:needs_much", **folder
    )
    await crash(pool, {run_id: ("OutOfMemory", "almost certainly this one")})


@pytest.mark.extra
async def test_a_node_that_dies(prefect_settings: None) -> None:
    with two_nodes() as ray:
        async with new_pool({"address": ray.address}) as pool, pool.working():
            placed = {"command": "sleep 100", "entrypoint_resources": {"far": 1}}
            run_id = await pool.start("adds", job_variables=placed)
            await pool.wait_for_log(run_id, "is RUNNING", seconds=60)
            await anyio.to_thread.run_sync(ray.lose_the_far_node)
            run = await pool.wait_for(run_id, seconds=90)
    assert run.state is not None
    message = run.state.message or ""
    assert message.startswith("NodeDied: The node of the driver died (terminated unexpectedly")


async def test_why_a_job_waits(ray_cluster: RealRay) -> None:
    def asking(cpus: float) -> JobSubmitRequest:
        return JobSubmitRequest(
            entrypoint="sleep 100",
            submission_id=f"waits-{uuid4()}",
            runtime_env={},
            metadata={},
            entrypoint_num_cpus=cpus,
        )

    holds, waits, never = asking(2), asking(1), asking(3)
    async with JobsClient(Connection(ray_cluster.address)) as client:
        await client.submit(holds)

        async def all_is_in_use() -> ClusterResources | None:
            cluster = await client.resources()
            return cluster if cluster.free({"CPU": 1}) == {"CPU": 0} else None

        cluster = await wait_until(all_is_in_use, timeout=60, description="no free CPU")
        await client.submit(waits)
        message = (await client.get(waits.submission_id)).message
        found = why_waiting(asked_for(waits), cluster, message)
        assert found.reason is Reason.BUSY
        assert "asks for 1 CPU on one node, free are 0 CPU of 2 CPU" in found.sentence
        found = why_waiting(asked_for(never), cluster, message)
        assert found.reason is Reason.INFEASIBLE
        assert "its one node has 2 CPU" in found.sentence
        for request in (waits, holds):
            await client.stop(request.submission_id)
