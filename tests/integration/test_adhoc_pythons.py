"""Callers on other Python versions than the cluster's."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from prefect.client.schemas.objects import StateType

from prefect_ray_worker.shared.category import Category
from tests.compat.environment import ROOT, interpreter
from tests.integration.caller_kit import CALLER_SECONDS, Laptop, online, set_address
from tests.integration.harness import Pool

pytestmark = [pytest.mark.ray, pytest.mark.extra]

# What a caller needs: no Ray.
_NEEDS = (f"prefect=={version('prefect')}", "fastapi<0.151", "prometheus-client", "psutil")


def environment(folder: Path, minor: str) -> str:
    """Return a Python with what a caller needs."""
    python = interpreter(minor)
    if python is None:
        pytest.skip(f"there is no Python {minor} here")
    subprocess.run([python, "-m", "venv", folder], check=True)
    made = str(folder / "bin" / "python")
    pip = [made, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *_NEEDS], check=True)
    subprocess.run([*pip, "--no-deps", "--editable", ROOT], check=True)
    return made


@pytest.mark.timeout(600)
@pytest.mark.parametrize("minor", ["3.12", "3.13"])
async def test_caller_of_another_python_is_told(pool: Pool, tmp_path: Path, minor: str) -> None:
    """Unpickling its functions ended the process with a segmentation fault, exit code 139."""
    if minor == f"{sys.version_info.major}.{sys.version_info.minor}":
        pytest.skip("the cluster has this Python")
    await set_address(pool)
    laptop = Laptop(pool, tmp_path / "laptop")
    python = await anyio.to_thread.run_sync(environment, tmp_path / "venv", minor)
    async with online(pool):
        process = laptop.start("called", python=python)
        said, _ = await anyio.to_thread.run_sync(
            lambda: process.communicate(timeout=CALLER_SECONDS)
        )
    assert process.returncode == 1
    assert "prefect.exceptions.CrashedRun" in said
    assert f"{Category.PYTHON_VERSION_MISMATCH}: The flow was called from Python {minor}" in said
    assert (await laptop.run()).state_type == StateType.CRASHED
