"""`prefect.yaml`: deployed as it is on a real server, and the git one runs, from a real clone."""

import shutil
from pathlib import Path

import pytest
import yaml
from prefect.client.orchestration import get_client

from prefect_ray_worker.config.configuration import RayJobConfiguration
from tests.integration.harness import Pool, new_pool
from tests.real_ray import RealRay
from tests.templates.folders import TEMPLATES
from tests.templates.projects import deploy_all, make_repository

FOLDER = TEMPLATES / "prefect-yaml"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy whose repository is itself."""
    folder = tmp_path / "project"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    text = (folder / "prefect.yaml").read_text()
    assert "CHANGE_ME_REPOSITORY_URL" in text
    (folder / "prefect.yaml").write_text(
        text.replace("CHANGE_ME_REPOSITORY_URL", f"file://{folder}")
    )
    make_repository(folder)
    return folder


def deploy(folder: Path, pool: str) -> None:
    file = folder / "prefect.yaml"
    content = yaml.safe_load(file.read_text())
    for deployment in content["deployments"]:
        deployment["work_pool"]["name"] = pool
        # No package index is needed to see that the code arrives.
        deployment["work_pool"]["job_variables"].pop("runtime_env", None)
    file.write_text(yaml.safe_dump(content))
    deploy_all(folder)


@pytest.mark.extra
@pytest.mark.ray
async def test_all_are_deployed_and_the_one_from_git_runs(
    ray_cluster: RealRay, prefect_settings: None, project: Path
) -> None:
    async with new_pool({}) as pool, get_client() as client:
        deploy(project, pool.name)
        for name in ("nightly/from-git", "nightly/baked", "train/train"):
            deployment = await client.read_deployment_by_name(name)
            template = (await client.read_work_pool(pool.name)).base_job_template
            variables = deployment.job_variables or {}
            # Refuses a variable that the pool does not offer, or a value that cannot work.
            await RayJobConfiguration.from_template_and_values(template, variables, client)
        run = await _run_of("nightly/from-git", pool, ray_cluster.address)
    assert run.state is not None
    assert run.state.is_completed(), run.state


async def _run_of(name: str, pool: Pool, address: str):
    deployment = await pool.client.read_deployment_by_name(name)
    async with pool.working():
        run = await pool.client.create_flow_run_from_deployment(
            deployment.id, job_variables={"address": address}
        )
        return await pool.wait_for(run.id, seconds=90)


def test_baked_code_is_where_the_image_puts_it() -> None:
    deployments = yaml.safe_load((FOLDER / "prefect.yaml").read_text())["deployments"]
    dockerfile = (TEMPLATES / "images" / "ray.Dockerfile").read_text()
    for deployment in deployments[1:]:
        (step,) = deployment["pull"]
        directory = step["prefect.deployments.steps.set_working_directory"]["directory"]
        folder = deployment["entrypoint"].partition("/")[0]
        assert f"COPY {folder} {directory}/{folder}" in dockerfile


def test_variables_are_really_the_pools() -> None:
    deployments = yaml.safe_load((FOLDER / "prefect.yaml").read_text())["deployments"]
    used = {name for d in deployments for name in d["work_pool"]["job_variables"]}
    assert {"runtime_env", "entrypoint_num_gpus", "infrastructure_retries"} <= used
    assert used <= set(RayJobConfiguration.model_fields)
