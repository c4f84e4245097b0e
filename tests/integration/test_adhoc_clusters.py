"""Calls to clusters that differ from the caller: two nodes, another Prefect, missing packages."""

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from prefect_ray_worker.bundles.header import present_python
from tests.integration.caller_kit import Laptop, online, set_address
from tests.integration.harness import Pool, new_pool
from tests.integration.test_adhoc_pythons import environment
from tests.mounts import NO_MOUNTS, can_hide_files
from tests.real_ray import real_ray
from tests.task_runner.nodes import second_node

pytestmark = [pytest.mark.ray, pytest.mark.extra, pytest.mark.timeout(600)]

LONG = 400
"""Seconds for a call that waits for packages to be installed."""

needs_pip = pytest.mark.skipif(
    find_spec("pip") is None, reason="Ray installs packages with pip, which is not here"
)

# Small, and in no environment of the suite.
PACKAGE = "pyfiglet"
PROJECT = f"""
[project]
name = "of-a-laptop"
version = "1"
requires-python = "=={present_python()}.*"
dependencies = ["{PACKAGE}==1.0.2"]
"""


async def test_tasks_on_a_node_that_sees_no_files_of_the_driver(
    prefect_settings: None, tmp_path: Path
) -> None:
    """Neither node sees those of the caller, and the second one not those of the first."""
    if not can_hide_files():
        pytest.skip(NO_MOUNTS)
    of_driver = tmp_path / "of-the-driver"
    of_driver.mkdir()
    with real_ray() as ray, second_node(ray, "elsewhere", without=of_driver):
        async with new_pool({"address": ray.address}) as pool:
            await set_address(pool, env={"TMPDIR": str(of_driver)})
            async with online(pool):
                said = await Laptop(pool, tmp_path / "laptop").call("spreads", seconds=LONG)
    assert "value [(0, True), (2, True)]" in said


@pytest.fixture
async def laptop(pool: Pool, tmp_path: Path) -> Laptop:
    await set_address(pool)
    return Laptop(pool, tmp_path / "laptop")


@needs_pip
async def test_cluster_with_an_older_prefect_runs_a_call(laptop: Laptop) -> None:
    async with online(laptop.pool):
        said = await laptop.call("older", seconds=LONG)
    assert "here is 3.8.2" in said
    assert "value 3.8.2" in said


@needs_pip
async def test_lock_is_installed_in_the_cluster(laptop: Laptop, tmp_path: Path) -> None:
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("there is no uv here")
    project = tmp_path / "locked"
    project.mkdir()
    (project / "pyproject.toml").write_text(PROJECT)
    await anyio.run_process([uv, "lock", "--quiet"], cwd=project)
    laptop.extra_files = [project / "pyproject.toml", project / "uv.lock"]
    async with online(laptop.pool):
        assert "value 1.0.2" in await laptop.call("imports", PACKAGE, "lock", seconds=LONG)


@needs_pip
async def test_freeze_is_installed_in_the_cluster(laptop: Laptop, tmp_path: Path) -> None:
    python = await anyio.to_thread.run_sync(environment, tmp_path / "venv", present_python())
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    await anyio.run_process([*pip, f"{PACKAGE}==1.0.2"])
    async with online(laptop.pool):
        said = await laptop.call("imports", PACKAGE, "freeze", python=python, seconds=LONG)
    assert "value 1.0.2" in said


def test_package_is_not_there_anyway() -> None:
    found = subprocess.run([sys.executable, "-c", f"import {PACKAGE}"], capture_output=True)
    assert found.returncode != 0
