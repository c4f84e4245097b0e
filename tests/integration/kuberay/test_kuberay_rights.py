"""The Role of a deployment template grants what a worker does, and nothing else."""

import math
from typing import Any

import yaml
from prefect.client.schemas.objects import StateType

from tests.fake_kubernetes import Script
from tests.fake_kubernetes.rights import Rule
from tests.integration.kuberay.stage import KubeRayStage
from tests.templates.folders import TEMPLATES, rules_of


def granted(rules: list[Rule]) -> set[tuple[str, str, str]]:
    return {
        (verb, group, resource)
        for rule in rules
        for group in rule.groups
        for resource in rule.resources
        for verb in rule.verbs
    }


def put_secrets(stage: KubeRayStage) -> None:
    for name, key in (("ray-token", "auth_token"), ("prefect-api", "api-key")):
        document = {"metadata": {"name": name}, "data": {key: "dG9rZW4="}}
        stage.kubernetes.store.create("secrets", "ray", document)


async def test_the_roles_for_a_cluster_per_run_grant_what_a_worker_uses_and_no_more(
    stage: KubeRayStage,
) -> None:
    """One run completes, the head of another crashes."""
    folder = "kuberay-per-run"
    text = (TEMPLATES / folder / "job-variables.yaml").read_text()
    variables: dict[str, Any] = yaml.safe_load(text)["kuberay"]
    worker = stage.kubernetes.worker
    worker.rules = rules_of(folder, "rbac.yaml", "rbac-outside.yaml")
    put_secrets(stage)
    async with stage.pool.working():
        run_id, ray, job = await stage.running(kuberay=variables, delete_job_after_seconds=5)
        assert ray.token == "token"
        await stage.completes(run_id, job)
        await stage.ends(run_id, StateType.COMPLETED)
        await stage.is_gone(run_id)
        stage.kubernetes.scripts.default = Script(crashes=math.inf)
        run_id = await stage.start(kuberay=variables)
        await stage.ends(run_id, StateType.CRASHED, "HeadCrashLoop: ")
    assert worker.used == granted(worker.rules)
