"""The monorepo: deployed at its commit, from which uv installs its packages.

Here uv is called as Ray calls it on a node; Ray itself would first fetch uv from a package index.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import get_client

from prefect_ray_worker.config.configuration import RayJobConfiguration
from tests.integration.harness import new_pool
from tests.real_ray import RealRay
from tests.templates.folders import TEMPLATES
from tests.templates.projects import deploy_all, git, make_repository

FOLDER = TEMPLATES / "monorepo-uv"


@pytest.fixture
def monorepo(tmp_path: Path) -> Path:
    """A repository whose prefect.yaml names itself."""
    folder = tmp_path / "monorepo"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__", ".venv"))
    file = folder / "prefect.yaml"
    text = file.read_text()
    assert "CHANGE_ME_REPOSITORY_URL" in text
    file.write_text(text.replace("CHANGE_ME_REPOSITORY_URL", f"file://{folder}"))
    make_repository(folder)
    return folder


def deploy(folder: Path, pool: str) -> None:
    file = folder / "prefect.yaml"
    file.write_text(file.read_text().replace("name: ray\n", f"name: {pool}\n"))
    # What `uv run --all-packages` installs.
    packages = folder.glob("packages/*/src")
    deploy_all(folder, *packages)


def install(requirements: list[str], folder: Path) -> Path:
    """Install requirements with uv, with the build backend that is here."""
    subprocess.run(
        ["uv", "pip", "install", "--offline", "--no-build-isolation", "--no-config",
         "--python", sys.executable, "--target", folder, *requirements],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert {path.name for path in folder.iterdir()} >= {"common", "etl"}
    return folder


def head_of(folder: Path) -> str:
    command = ["git", "rev-parse", "HEAD"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout.strip()


@pytest.mark.extra
@pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not installed")
@pytest.mark.ray
@pytest.mark.timeout(420)
async def test_flow_of_a_monorepo_runs_from_the_commit_that_was_deployed(
    ray_cluster: RealRay, prefect_settings: None, monorepo: Path
) -> None:
    commit = head_of(monorepo)
    async with new_pool({}) as pool, get_client() as client:
        deploy(monorepo, pool.name)
        deployment = await client.read_deployment_by_name("etl/monorepo")
        assert deployment.version == commit
        variables: dict[str, Any] = deployment.job_variables or {}
        assert variables["runtime_env"]["uv"] == [
            f"etl @ git+file://{monorepo}@{commit}#subdirectory=packages/etl"
        ]
        template = (await client.read_work_pool(pool.name)).base_job_template
        await RayJobConfiguration.from_template_and_values(template, variables, client)
        # A later commit changes nothing for what is deployed.
        (monorepo / "packages/common/src/common/__init__.py").write_text("raise SystemExit\n")
        git("commit", "--all", "--message=broken", folder=monorepo)
        installed = install(variables["runtime_env"]["uv"], monorepo.parent / "installed")
        on_the_node = {"address": ray_cluster.address, "runtime_env": {}}
        async with pool.working():
            run = await client.create_flow_run_from_deployment(
                deployment.id, job_variables={**on_the_node, "env": {"PYTHONPATH": str(installed)}}
            )
            ended = await pool.wait_for(run.id, seconds=150)
    assert ended.state is not None
    assert ended.state.is_completed(), ended.state


def test_every_package_of_a_deployment_is_in_the_workspace() -> None:
    deployments = yaml.safe_load((FOLDER / "prefect.yaml").read_text())["deployments"]
    for deployment in deployments:
        for requirement in deployment["work_pool"]["job_variables"]["runtime_env"]["uv"]:
            name, folder = requirement.partition(" @ ")[0], requirement.partition("#")[2]
            package = FOLDER / folder.removeprefix("subdirectory=")
            assert f'name = "{name}"' in (package / "pyproject.toml").read_text()
            module = deployment["entrypoint"].rpartition(".")[0].replace(".", "/")
            assert (package / "src" / f"{module}.py").exists()
