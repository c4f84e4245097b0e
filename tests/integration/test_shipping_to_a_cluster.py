"""A cluster needs `prefect` and nothing of ours: the driver ships itself."""

import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from prefect.client.schemas.objects import StateType

from tests.integration.harness import Pool, new_pool
from tests.real_ray import RealRay, real_ray

pytestmark = pytest.mark.ray


def bare_python(folder: Path, *, prefect: bool) -> dict[str, str]:
    """Make a Python with or without Prefect, and without our package; return the PATH with it.

    A `.pth` file leads to the packages of this environment, but not on to those that are
    installed there as editable, as ours is.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    if prefect:
        site = next((folder / "lib").glob("python3.*/site-packages"))
        (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"])
    return {"PATH": f"{folder / 'bin'}:/usr/bin:/bin"}


@contextmanager
def ray_with(
    folder: Path, *, prefect: bool, env: Mapping[str, str] | None = None
) -> Iterator[RealRay]:
    """A Ray whose jobs find a Python with or without Prefect, and without our package."""
    with real_ray(env={**bare_python(folder, prefect=prefect), **(env or {})}) as ray:
        yield ray


def imports(python: Path, module: str) -> bool:
    command = [str(python), "-c", f"import {module}"]
    return subprocess.run(command, cwd="/", capture_output=True, check=False).returncode == 0


async def test_cluster_with_prefect_alone_runs_a_deployment(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says what is missing where the worker is told not to ship the driver."""
    bare = {"env": bare_python(tmp_path / "bare", prefect=True)}
    python = tmp_path / "bare" / "bin" / "python"
    assert imports(python, "prefect")
    assert imports(python, "ray")
    assert not imports(python, "prefect_ray_worker")
    async with pool.working():
        run = await pool.wait_for(await pool.start("adds", job_variables=bare))
        assert run.state is not None
        assert run.state.is_completed(), run.state
    monkeypatch.setenv("PREFECT_INTEGRATIONS_RAY_WORKER_SHIP_DRIVER", "false")
    async with pool.working():
        run = await pool.wait_for(await pool.start("adds", job_variables=bare))
    assert run.state is not None
    assert run.state.type == StateType.CRASHED
    message = run.state.message or ""
    assert message.startswith("ModuleNotFoundOnNode: ")
    assert "No module named 'prefect_ray_worker'" in message


@pytest.mark.extra
async def test_cluster_without_prefect_says_so_with_the_fix(
    prefect_settings: None, tmp_path: Path
) -> None:
    with ray_with(tmp_path / "bare", prefect=False) as ray:
        async with new_pool({"address": ray.address}) as pool, pool.working():
            run = await pool.wait_for(await pool.start("adds"))
    assert run.state is not None
    assert run.state.type == StateType.CRASHED
    message = run.state.message or ""
    assert message.startswith("PrefectMissing: ")
    assert "has no Prefect" in message
    assert "runtime_env.pip" in message
    assert "\n" not in message, "one sentence, and no traceback"


@pytest.mark.extra
async def test_another_minor_version_of_prefect_is_told_with_the_fix(
    prefect_settings: None, ray_cluster: RealRay
) -> None:
    """The worker's version goes along; here it is given as that of an older worker."""
    env = {"PREFECT_RAY_WORKER_PREFECT_VERSION": "3.1.0"}
    async with new_pool({"address": ray_cluster.address}) as pool, pool.working():
        run_id = await pool.start("adds", job_variables={"env": env})
        run = await pool.wait_for(run_id)
        told = await pool.wait_for_log(run_id, "and the worker 3.1.0")
    assert "prefect==3.1.0" in told
    assert run.state is not None
    assert run.state.is_completed()
