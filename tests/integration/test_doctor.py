"""`prefect-ray-worker doctor`, on real clusters and a real Prefect server."""

import json
import os
import signal
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL

from prefect_ray_worker.clusters.local.cluster import LocalCluster
from prefect_ray_worker.clusters.local.state import state_directory
from prefect_ray_worker.doctor.examine import examine
from prefect_ray_worker.doctor.report import Check, CheckSubject, Grade
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection
from tests.integration.harness import Pool, new_pool, settings_of
from tests.integration.test_shipping_to_a_cluster import ray_with
from tests.real_ray import RealRay
from tests.two_nodes import two_nodes
from tests.waiting import wait_until

pytestmark = pytest.mark.ray


async def examined(
    target: str, *, wait: float = 60, **job_variables: Any
) -> dict[CheckSubject, Check]:
    return {check.subject: check async for check in examine(target, job_variables, wait=wait)}


async def jobs_of_the_doctor(ray: RealRay) -> list[str]:
    async with JobsClient(Connection(ray.address)) as client:
        return [
            job.submission_id or ""
            for job in await client.list()
            if "doctor" in (job.submission_id or "")
        ]


def start(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "prefect_ray_worker", "doctor", *arguments],
        env={**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value()},
        stdout=subprocess.PIPE,
        text=True,
    )


async def test_healthy_pool_is_well_and_nothing_is_left(ray_cluster: RealRay, pool: Pool) -> None:
    template = (await pool.client.read_work_pool(pool.name)).base_job_template
    template["variables"]["properties"]["address"]["default"] = ray_cluster.address
    async with new_pool({}, template) as with_address:
        process = start(with_address.name, "--json")
        output, _ = process.communicate(timeout=90)
    report = json.loads(output)
    grades = {check["subject"]: check["grade"] for check in report["checks"]}
    assert list(grades) == [subject.label for subject in CheckSubject]
    not_ok = {name: grade for name, grade in grades.items() if grade != "ok"}
    assert not_ok == {"other-node": "skipped"}, report
    assert report["ok"] is True
    assert process.returncode == 0
    assert await jobs_of_the_doctor(ray_cluster) == []


@pytest.mark.extra
async def test_task_runs_on_the_other_node_and_the_head_could_be_spared(
    prefect_settings: None,
) -> None:
    with two_nodes() as cluster:
        checks = await examined(cluster.address)
    assert checks[CheckSubject.OTHER_NODE].grade is Grade.OK, checks
    assert "A task runs on" in checks[CheckSubject.OTHER_NODE].says
    assert checks[CheckSubject.DRIVER_PLACEMENT].grade is Grade.WARNING
    assert "entrypoint_" in checks[CheckSubject.DRIVER_PLACEMENT].advice


@pytest.mark.extra
async def test_wrong_token_then_the_right_one_on_a_cluster_without_prefect(
    prefect_settings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each in one line, and nothing is guessed at that lies behind it."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "s" * 40}
    with ray_with(tmp_path / "bare", prefect=False, env=token) as ray:
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        monkeypatch.setenv("RAY_AUTH_TOKEN", "w" * 40)
        refused = await examined(ray.address)
        monkeypatch.setenv("RAY_AUTH_TOKEN", token["RAY_AUTH_TOKEN"])
        let_in = await examined(ray.address)
    assert list(refused)[-1] is CheckSubject.AUTHENTICATION
    assert refused[CheckSubject.DASHBOARD].grade is Grade.OK
    assert "refused our credentials (HTTP 403" in str(refused[CheckSubject.AUTHENTICATION])
    assert [s for s, check in let_in.items() if check.grade is Grade.FAILED] == [
        CheckSubject.RAY_IN_JOB,
        CheckSubject.PREFECT_VERSION,
    ]
    assert let_in[CheckSubject.AUTHENTICATION].says == "Our credentials are accepted."
    assert str(let_in[CheckSubject.PREFECT_VERSION]).startswith(
        "The Python of the job has no Prefect."
    )
    assert "runtime_env.pip" in let_in[CheckSubject.PREFECT_VERSION].advice
    assert let_in[CheckSubject.CLEAN_UP].grade is Grade.OK


@pytest.mark.extra
async def test_prefect_api_that_the_job_does_not_reach(
    ray_cluster: RealRay, prefect_settings: None
) -> None:
    env = {"PREFECT_API_URL": "http://127.0.0.1:9/api"}
    checks = await examined(ray_cluster.address, env=env)
    assert checks[CheckSubject.PREFECT_API].grade is Grade.FAILED, checks
    assert "env.PREFECT_API_URL" in checks[CheckSubject.PREFECT_API].advice
    assert checks[CheckSubject.PREFECT_CREDENTIALS].grade is Grade.SKIPPED


async def test_interrupted_examination_leaves_no_job(
    ray_cluster: RealRay, prefect_settings: None
) -> None:
    process = start(ray_cluster.address)
    try:
        await wait_until(
            lambda: jobs_of_the_doctor(ray_cluster), timeout=40, description="the probe's job"
        )
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=40)
    finally:
        process.kill()
    assert process.returncode == 130
    assert await jobs_of_the_doctor(ray_cluster) == []


@pytest.mark.extra
async def test_address_from_the_log_of_a_worker_is_let_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The local Ray asks for a token, which only the files of its worker have."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    local = LocalCluster(state_directory(home))
    try:
        info = await local.ensure()
        with settings_of("", home):
            known = await examined_until_the_job(info.address)
        with settings_of("", tmp_path / "another"):
            stranger = await examined_until_the_job(info.address)
    finally:
        await local.release(jobs_running=False)
    assert known[CheckSubject.AUTHENTICATION].grade is Grade.OK, known
    refused = stranger[CheckSubject.AUTHENTICATION]
    assert refused.grade is Grade.FAILED
    assert "PREFECT_HOME" in refused.advice


async def examined_until_the_job(address: str) -> dict[CheckSubject, Check]:
    checks: dict[CheckSubject, Check] = {}
    async with aclosing(examine(address, {}, wait=5)) as examination:
        async for check in examination:
            checks[check.subject] = check
            if check.subject is CheckSubject.RAY_VERSION:
                break
    return checks
