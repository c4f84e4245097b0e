"""The Role of a deployment template grants what a worker does, and nothing else."""

import math
from typing import Any

import pytest
import yaml
from prefect.client.schemas.objects import StateType

from tests.fake_kubernetes import Script
from tests.fake_kubernetes.rights import Rule
from tests.integration.harness import set_timing
from tests.integration.kuberay.stage import KubeRayStage
from tests.templates.folders import TEMPLATES, rules_of
from tests.waiting import wait_until


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


def variables_of(folder: str) -> dict[str, Any]:
    return yaml.safe_load((TEMPLATES / folder / "job-variables.yaml").read_text())["kuberay"]


async def fails_to_start(stage: KubeRayStage, variables: dict[str, Any]) -> None:
    """Have the worker read the last lines of a head, and KubeRay's events."""
    for script, said in (
        (Script(crashes=math.inf), "HeadCrashLoop: "),
        (Script(refused="a bad word"), "ClusterSpecInvalid: .*a bad word"),
    ):
        stage.kubernetes.scripts.default = script
        run_id = await stage.start(kuberay=variables)
        await stage.ends(run_id, StateType.CRASHED, said)


async def test_the_roles_for_a_cluster_per_run_grant_what_a_worker_uses_and_no_more(
    stage: KubeRayStage,
) -> None:
    variables = variables_of("kuberay-per-run")
    worker = stage.kubernetes.worker
    worker.rules = rules_of("kuberay-per-run", "rbac.yaml", "rbac-outside.yaml")
    put_secrets(stage)
    async with stage.pool.working():
        run_id, ray, job = await stage.running(kuberay=variables, delete_job_after_seconds=5)
        assert ray.token == "token"
        await stage.completes(run_id, job)
        await stage.ends(run_id, StateType.COMPLETED)
        await stage.is_gone(run_id)
        await fails_to_start(stage, variables)
    assert worker.used == granted(worker.rules)


@pytest.mark.extra
async def test_the_roles_for_a_shared_cluster_grant_what_a_worker_uses_and_no_more(
    stage: KubeRayStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs join by a patch, and records of ended jobs are deleted while the cluster lives on."""
    set_timing(monkeypatch, sweep=0.5)
    variables = {**variables_of("kuberay-shared"), "idle_seconds": 10}
    worker = stage.kubernetes.worker
    worker.rules = rules_of("kuberay-shared", "rbac.yaml", "rbac-outside.yaml")
    put_secrets(stage)
    async with stage.pool.working():
        run_id = await stage.start(kuberay=variables, delete_job_after_seconds=5)
        _, job = await stage.shared_job_of(run_id)
        await stage.play(run_id, StateType.RUNNING)
        await stage.completes(run_id, job)
        await stage.ends(run_id, StateType.COMPLETED)
        await wait_until(
            lambda: not stage.kubernetes.clusters(), timeout=60, description="an idle cluster's end"
        )
        await fails_to_start(stage, variables)
    assert worker.used == granted(worker.rules)
