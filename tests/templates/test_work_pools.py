"""The base job templates: fresh, loaded by a real Prefect server, and the small one runs."""

import json
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType

from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.worker import RayWorker
from tests.integration.harness import new_pool
from tests.real_ray import RealRay
from tests.templates.folders import TEMPLATES, load

FOLDER = TEMPLATES / "work-pool"
GENERATED = load(FOLDER / "generate.py").TEMPLATES
NAMES = sorted(GENERATED)


def template(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / name).read_text())


@pytest.mark.parametrize("name", NAMES)
def test_template_is_that_of_the_code(name: str) -> None:
    assert template(name) == GENERATED[name], f"{name} is stale: run `make docs`"


def test_every_template_is_generated() -> None:
    assert sorted(path.name for path in FOLDER.glob("*.json")) == NAMES


@pytest.mark.parametrize("name", NAMES)
async def test_server_takes_the_template_and_the_worker_its_defaults(
    name: str, prefect_settings: None
) -> None:
    async with new_pool({}, template(name)) as pool, get_client() as client:
        saved = (await client.read_work_pool(pool.name)).base_job_template
        filled = await RayJobConfiguration.from_template_and_values(saved, {}, client)
    assert saved == template(name)
    default = RayJobConfiguration()
    defaults = (default.delete_job_after_seconds, default.kuberay)
    assert (filled.delete_job_after_seconds, filled.kuberay) != defaults
    filled.prepare_for_flow_run(_run())
    assert filled.submission_request("prefect-x-1").entrypoint


def test_shared_cluster_of_the_pool_is_that_of_the_job_variables() -> None:
    """Otherwise a deployment that sets them would have another cluster than the rest."""
    text = (TEMPLATES / "kuberay-shared" / "job-variables.yaml").read_text()
    named = {"namespace": "ray", **yaml.safe_load(text)["kuberay"]}
    assert f":{named.pop('ray_version')}-" in named["image"]
    assert (
        GENERATED["kuberay-shared.json"]["variables"]["properties"]["kuberay"]["default"] == named
    )


def _run() -> Any:
    from uuid import uuid4

    from prefect.client.schemas.objects import FlowRun

    return FlowRun(flow_id=uuid4(), name="any")


@pytest.mark.ray
async def test_flow_runs_with_the_small_one(ray_cluster: RealRay, prefect_settings: None) -> None:
    address = {"address": ray_cluster.address}
    async with new_pool(address, template("small.json")) as pool, pool.working():
        run = await pool.wait_for(await pool.start("adds"), seconds=90)
    assert run.state is not None
    assert run.state.is_completed(), run.state


async def test_isolated_deployment_cannot_choose_another_cluster(prefect_settings: None) -> None:
    async with new_pool({}, template("isolated.json")) as pool, pool.working():
        run_id = await pool.start("adds", job_variables={"address": "http://elsewhere:8265"})
        run = await pool.wait_for(run_id)
    assert run.state is not None
    assert run.state.type == StateType.CRASHED
    assert "'address'" in (run.state.message or "")
    assert "is not a variable of this work pool" in (run.state.message or "")


def test_isolated_template_offers_all_but_what_it_fixes() -> None:
    all_of_them = set(RayWorker.get_default_base_job_template()["variables"]["properties"])
    offered = set(template("isolated.json")["variables"]["properties"])
    taken = {"address", "cluster", "kuberay", "cluster_source", "command"}
    taken |= {"entrypoint_label_selector", "entrypoint_resources"}
    assert all_of_them - offered == taken
    assert "RayCluster" not in template("isolated.json")["variables"]["definitions"]


def test_terraform_is_well_formed_and_names_the_templates() -> None:
    """Whether the provider takes it is not tested: that needs the provider."""
    text = (FOLDER / "main.tf").read_text()
    pools = re.findall(r"^    ([\w-]+)\s+= \{ limit = \d+ \}$", text, re.MULTILINE)
    assert sorted(f"{name}.json" for name in pools) == NAMES
    # Attributes of the resource, by the provider's own documentation (2.x).
    known = {"for_each", "name", "type", "concurrency_limit", "base_job_template"}
    (body,) = re.findall(r'^resource "prefect_work_pool" "ray" \{\n(.*?)^\}', text, re.M | re.S)
    assert set(re.findall(r"^  (\w+)\s+=", body, re.MULTILINE)) == known
    if terraform := shutil.which("terraform"):
        formatted = subprocess.run(
            [terraform, "fmt", "-check", "-diff", FOLDER], capture_output=True, text=True
        )
        assert formatted.returncode == 0, formatted.stdout
