"""What Prefect's own executor offers for a deployment works through the driver as well.

Where Ray does not matter, the drivers are started by hand.
"""

import os
import sys
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from prefect.client.schemas.objects import StateType

from tests.integration.driver_kit import (
    claimed,
    driver,
    ended_job,
    ends,
    output,
    start,
    traces,
)
from tests.integration.harness import FLOWS, Pool

pytestmark = pytest.mark.ray

_HERE: dict[str, Any] = {
    "prefect.deployments.steps.set_working_directory": {"directory": str(FLOWS)}
}


async def test_every_kind_of_flow_runs(here: Pool, tmp_path: Path) -> None:
    """Sync, async, generators, retried in its process, with heartbeats, printing."""
    expected = {
        "prints": 1,
        "runs_async": 1,
        "generates": 3,
        "generates_async": 3,
        "succeeds_at_second": 2,
    }
    runs = {name: await claimed(here, name, tmp_path / name) for name in expected}
    drivers = [driver(*run, PREFECT_FLOWS_HEARTBEAT_FREQUENCY="30") for run in runs.values()]
    for process in drivers:
        await anyio.to_thread.run_sync(output, process)
    for name, (run_id, _) in runs.items():
        await ends(here, run_id, StateType.COMPLETED)
        assert len(traces(tmp_path / name, "ran")) == expected[name], name
    await here.wait_for_log(runs["prints"][0], "printed, and logged")
    assert len(set(traces(tmp_path / "succeeds_at_second", "ran"))) == 1, "one process"


@pytest.mark.extra
async def test_a_flow_may_use_ray_itself(pool: Pool, tmp_path: Path) -> None:
    async with pool.working():
        run_id = await start(pool, "runs_a_remote_task", tmp_path)
        await ends(pool, run_id, StateType.COMPLETED)
        assert (await ended_job(pool, run_id)).driver_exit_code == 0
    assert len(traces(tmp_path, "ran")) == 1


async def test_code_comes_by_module_git_and_shell_steps(
    here: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    (repository / "lib").mkdir(parents=True)
    (repository / "lib" / "__init__.py").touch()
    (repository / "lib" / "flows.py").write_text((FLOWS / "driver_flows.py").read_text())
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.com"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "flows"]):
        await anyio.run_process([*git, *command], cwd=repository)
    clone = {"prefect.deployments.steps.git_clone": {"repository": f"file://{repository}"}}
    shell = {
        "prefect.deployments.steps.run_shell_script": {"script": f"touch {tmp_path}/step-has-run"}
    }
    by_module = await claimed(
        here, "prints", tmp_path / "m", entrypoint="driver_flows.prints", pull_steps=[_HERE]
    )
    by_git = await claimed(
        here,
        "persists",
        tmp_path / "g",
        parameters={"left": 20, "right": 22},
        entrypoint="lib/flows.py:persists",
        pull_steps=[shell, clone],
    )
    results = {"PREFECT_LOCAL_STORAGE_PATH": str(tmp_path / "results")}
    monkeypatch.chdir(tmp_path)  # where `git_clone` puts its folder
    for process in [driver(*by_module), driver(*by_git, **results)]:
        await anyio.to_thread.run_sync(output, process)
    await ends(here, by_module[0], StateType.COMPLETED)
    run = await ends(here, by_git[0], StateType.COMPLETED)
    assert traces(tmp_path / "m", "ran")
    assert (tmp_path / "step-has-run").exists()
    assert list((tmp_path / "results").iterdir()), "the persisted result"
    assert run.state is not None
    assert run.parameters == {"folder": str(tmp_path / "g"), "left": 20, "right": 22}


@pytest.mark.extra
async def test_a_suspended_run_goes_on_as_a_new_job(pool: Pool, tmp_path: Path) -> None:
    async with pool.working():
        run_id = await start(pool, "suspends_itself", tmp_path)
        run = await pool.wait_for(run_id, StateType.PAUSED)
        first = run.infrastructure_pid
        assert (await ended_job(pool, run_id)).driver_exit_code == 0
        await pool.client.resume_flow_run(run_id)
        run = await ends(pool, run_id, StateType.COMPLETED)
    assert run.infrastructure_pid != first
    assert len(set(traces(tmp_path, "ran"))) == 2, "two processes"


@pytest.mark.extra
async def test_a_flow_that_cannot_be_loaded_says_why(here: Pool, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import no_such_module_anywhere\n")
    there = {"prefect.deployments.steps.set_working_directory": {"directory": str(tmp_path)}}
    failing = {"prefect.deployments.steps.run_shell_script": {"script": "exit 5"}}
    imports = await claimed(
        here, "broken", tmp_path, entrypoint="broken.py:broken", pull_steps=[there]
    )
    pulls = await claimed(here, "prints", tmp_path, pull_steps=[failing, _HERE])
    for process in [driver(*imports), driver(*pulls)]:
        await anyio.to_thread.run_sync(process.communicate)
    await ends(here, imports[0], StateType.CRASHED, "No module named 'no_such_module_anywhere'")
    await ends(here, pulls[0], StateType.CRASHED, "could not be loaded")
    assert not traces(tmp_path, "ran")


@pytest.mark.extra
async def test_children_of_a_flow_end_the_usual_way(here: Pool, tmp_path: Path) -> None:
    """`multiprocessing` forks, and ends its children with SIGTERM."""
    run = await claimed(here, "forks_and_terminates", tmp_path)
    await anyio.to_thread.run_sync(output, driver(*run))
    await ends(here, run[0], StateType.COMPLETED)
    assert traces(tmp_path, "exitcode") == ["-15"]


async def test_dollars_in_env_arrive_as_they_are_written(pool: Pool, tmp_path: Path) -> None:
    env = {
        "PLAIN": "a$b $HOME $$ $(id) ${lower}",
        "EXPANDED": "${PATH}",
        "MIXED": "${PRWT_TEST_RAY}/$x",
    }
    async with pool.working():
        run_id = await start(
            pool,
            "shows_environment",
            tmp_path,
            parameters={"names": list(env)},
            job_variables={"env": env},
        )
        await ends(pool, run_id, StateType.COMPLETED)
    seen = dict(line.split("=", 1) for line in traces(tmp_path, "environment"))
    assert seen["PLAIN"] == env["PLAIN"]
    assert str(Path(sys.executable).parent) in seen["EXPANDED"].split(os.pathsep)
    assert seen["MIXED"].startswith("/tmp/prwt-")
    assert seen["MIXED"].endswith("/$x")
