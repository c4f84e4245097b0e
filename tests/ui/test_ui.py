"""Users see a pool, set its defaults, run with others, and read what came of it.

With `SCREENSHOTS=1` the pictures of the docs are taken anew.
"""

import asyncio
import os
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.objects import FlowRun

from prefect_ray_worker.worker import RayWorker
from tests.integration.harness import Pool, new_pool
from tests.integration.kuberay.test_kuberay_block import saved_block
from tests.real_ray import RealRay
from tests.ui.browser import Page
from tests.waiting import wait_until

pytestmark = pytest.mark.extra

PICTURES = Path(__file__).parents[2] / "docs" / "how-to" / "pictures"
# Pages fade in, and a run's graph finds its size.
_SETTLE_SECONDS = 3
FORM: dict[str, dict[str, Any]] = RayWorker.get_default_base_job_template()["variables"]


async def picture(tab: Page, name: str) -> None:
    if os.environ.get("SCREENSHOTS"):
        await asyncio.sleep(_SETTLE_SECONDS)
        await tab.screenshot(PICTURES / f"{name}.png")


async def test_pool_is_of_our_type_and_shows_its_defaults(
    tab: Page, base: str, prefect_settings: None
) -> None:
    async with new_pool({}) as pool:
        await tab.open(f"{base}/work-pools/work-pool/{pool.name}", until="Base Job Configuration")
        await tab.wait_for("Stop grace (seconds)")
        text = await tab.text()
    assert "Type\nRay" in text
    for field in FORM["properties"].values():
        assert _title(field) in text


async def test_every_variable_can_be_read_in_the_form_in_our_order(
    tab: Page, base: str, prefect_settings: None
) -> None:
    async with new_pool({}) as pool:
        await tab.open(f"{base}/work-pools/work-pool/{pool.name}/edit", until="Command (Optional)")
        text = await tab.text()
        await tab.scroll_to("Base Job Template")
        await picture(tab, "pool-form")
    position = 0
    for name, field in FORM["properties"].items():
        title = _title(field)
        found = text.find(f"\n{title}", position)
        assert found > 0, f"{name}: {title!r} is not there, or not after the one before"
        position = found
        # The first sentence, as far as no link or code stands in it.
        assert field["description"].partition(".")[0].partition("{{")[0][:60] in text, name
    # What pydantic or Prefect would have called it.
    for ugly in ("Eager Install", "RuntimeEnv", "Entrypoint Num"):
        assert ugly not in text, ugly


async def test_saved_default_is_in_the_pool(tab: Page, base: str, prefect_settings: None) -> None:
    async with new_pool({}) as pool:
        await tab.open(f"{base}/work-pools/work-pool/{pool.name}/edit", until="Command (Optional)")
        await tab.fill("textarea[placeholder='http://ray-head:8265']", "http://head-of-test:8265")
        await tab.click("Save")

        async def saved() -> bool:
            template = (await pool.client.read_work_pool(pool.name)).base_job_template
            address = template["variables"]["properties"]["address"].get("default")
            return address == "http://head-of-test:8265"

        await wait_until(saved, timeout=30, description="the default in the pool")
        template = (await pool.client.read_work_pool(pool.name)).base_job_template
    # Saving one field has left the others as they were, for the worker too.
    assert list(template["variables"]["properties"]) == list(FORM["properties"])
    assert template["variables"]["properties"]["stop_grace_seconds"]["default"] == 30


async def test_kubeconfig_can_be_chosen_among_the_blocks(
    tab: Page, base: str, prefect_settings: None
) -> None:
    async with new_pool({}) as pool:
        await saved_block(pool.client, {"apiVersion": "v1", "kind": "Config"})
        await tab.open(f"{base}/work-pools/work-pool/{pool.name}/edit", until="Command (Optional)")
        fields = "[...document.querySelectorAll('.schema-form-property')]"
        has_picker = (
            f"{fields}.some(f => f.innerText.startsWith('Kubernetes Cluster Config')"
            " && f.querySelector('.block-document-input'))"
        )
        assert await tab.evaluate(has_picker)


@pytest.mark.ray
async def test_custom_run_and_what_its_page_says(
    tab: Page, base: str, prefect_settings: None, ray_cluster: RealRay
) -> None:
    async with new_pool({"address": ray_cluster.address}) as pool, pool.working():
        deployment = await pool.deploy("adds")
        await tab.open(
            f"{base}/deployments/deployment/{deployment}/run", until="Additional Options"
        )
        await tab.click("Additional Options")
        await tab.wait_for("Job Variables")
        field = ".job-variable-overrides-input textarea"
        await tab.wait_for_element(field)
        await tab.fill(field, '{"metadata": {"team": "from-the-ui"}}')
        await picture(tab, "custom-run")
        await tab.click("Submit")
        run = await only_run_of(pool, deployment)
        assert run.job_variables == {"metadata": {"team": "from-the-ui"}}
        ended = await pool.wait_for(run.id, seconds=90)
        assert ended.state is not None
        assert ended.state.is_completed(), ended.state
        await pool.wait_for_log(run.id, "is RUNNING")
        await tab.open(f"{base}/runs/flow-run/{run.id}", until="submitted. Dashboard:")
        await picture(tab, "flow-run")
        await tab.click("Artifacts")
        await tab.wait_for("ray-job")


async def test_page_of_a_crashed_run_says_why(tab: Page, base: str, prefect_settings: None) -> None:
    async with new_pool({"address": "http://127.0.0.1:9"}) as pool, pool.working():
        run_id = await pool.start("adds", job_variables={"runtime_env": {"pip": [], "uv": []}})
        await pool.wait_for(run_id)
        await tab.open(f"{base}/runs/flow-run/{run_id}", until="Crashed")
        await tab.click("Details")
        await tab.click("See More")
        await tab.wait_for("takes only one of pip, uv and conda")


def _title(field: dict[str, Any]) -> str:
    """Return what the form calls a variable: a type of its own has its own title."""
    own = FORM["definitions"].get(field.get("$ref", "").rpartition("/")[2], field)
    return own["title"]


async def only_run_of(pool: Pool, deployment: UUID) -> FlowRun:
    """Wait for the run that the form has made."""
    of_it = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment]))

    async def made() -> list[FlowRun]:
        return await pool.client.read_flow_runs(flow_run_filter=of_it)

    (run,) = await wait_until(made, timeout=30, description="a run of the deployment")
    return run
