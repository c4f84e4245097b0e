"""The tutorial with kind, as far as it goes without Docker: its commands, as they stand there."""

import os
import re
import shutil
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from anyio.abc import Process
from prefect.client.schemas.filters import WorkPoolFilter, WorkPoolFilterName
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.settings import PREFECT_API_URL, PREFECT_HOME

from tests.docs.test_snippets import commands, snippets
from tests.fake_kubernetes import Script
from tests.integration.kuberay.stage import KubeRayStage
from tests.integration.kuberay.test_kuberay_rights import put_secrets
from tests.templates.folders import ROOT, rules_of
from tests.waiting import wait_until

pytestmark = pytest.mark.extra  # the `prefect` command starts five times

PAGE = ROOT / "docs" / "tutorial" / "a-cluster-per-run.md"
EXAMPLE = "docs/examples/quickstart"


@pytest.fixture
async def stage(stage: KubeRayStage) -> AsyncIterator[KubeRayStage]:
    """The pool is the one that the tutorial makes."""
    made = replace(stage, pool=replace(stage.pool, name="ray"))
    yield made
    await made.pool.client.delete_work_pool("ray")


class Reader:
    """Types the commands of the page. What is written to /tmp goes to a folder of the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._env = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PREFECT_API_URL": PREFECT_API_URL.value() or "",
            "PREFECT_HOME": str(PREFECT_HOME.value()),
        }
        of_page = [s for s in snippets() if s.page == PAGE and s.language == "console"]
        self._commands = [command for snippet in of_page for command in commands(snippet)]

    async def start(self, beginning: str, *, cwd: Path = ROOT) -> Process:
        (command,) = (c for c in self._commands if c.startswith(beginning))
        here = re.sub(r"(?<=[ =])/tmp/", f"{self.folder}/", command)
        return await anyio.open_process(
            ["bash", "-c", f"exec {here}"], cwd=cwd, env=self._env, stderr=None, stdout=None
        )

    async def types(self, *beginnings: str, cwd: Path = ROOT) -> None:
        for beginning in beginnings:
            process = await self.start(beginning, cwd=cwd)
            with anyio.fail_after(90):
                assert await process.wait() == 0, beginning


async def runs_of(stage: KubeRayStage, count: int) -> list[FlowRun]:
    """Wait for so many runs of the pool, and return them."""
    of_pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[stage.pool.name]))

    async def there() -> list[FlowRun]:
        found = await stage.pool.client.read_flow_runs(work_pool_filter=of_pool)
        return found if len(found) == count else []

    return await wait_until(there, timeout=60, description=f"{count} runs")


async def test_its_commands_lead_to_a_run_on_a_cluster_of_its_own(
    stage: KubeRayStage, tmp_path: Path
) -> None:
    reader = Reader(tmp_path)
    await reader.types("sed 's|CHANGE_ME", "prefect work-pool create")
    await reader.types("cp -r", "sed -i.bak", "rm ", "python deployment-templates/check.py")
    project = tmp_path / "project"
    shutil.copytree(ROOT / EXAMPLE, project)
    (deployments,) = (s.text for s in snippets() if s.page == PAGE and s.language == "yaml")
    (project / "kind.yaml").write_text(deployments)
    await reader.types("prefect --no-prompt deploy", cwd=project)
    stage.kubernetes.worker.rules = rules_of("kuberay-per-run", "rbac.yaml", "rbac-outside.yaml")
    put_secrets(stage)
    async with stage.pool.working():
        process = await reader.start("prefect deployment run read-handwriting/kind --watch")
        (run,) = await runs_of(stage, 1)
        ray, job = await stage.job_of(run.id)
        cluster = stage.kubernetes.store.get("rayclusters", "ray", await stage.name_of(run.id))
        assert ray.token == "token", "the Secret ray-token"
        (container,) = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
        assert container["image"] == "localdev/flows:2.60.0-3.8.8"
        assert container["resources"]["limits"]["cpu"] == "2"
        assert "workerGroupSpecs" not in cluster["spec"], "the deployment's workers win"
        await stage.play(run.id, StateType.RUNNING)
        await stage.completes(run.id, job)
        with anyio.fail_after(60):
            assert await process.wait() == 0
        await stage.is_gone(run.id)
        stage.kubernetes.scripts.default = Script(image="no such image")
        process = await reader.start("prefect deployment run read-handwriting/kind -jv")
        with anyio.fail_after(60):
            assert await process.wait() == 1
        (crashed,) = (r for r in await runs_of(stage, 2) if r.id != run.id)
        await stage.ends(crashed.id, StateType.CRASHED, "^ClusterImage: ")
