"""`prefect-ray-worker status` and `logs`, on a real Prefect server, while a worker has runs."""

import json
import os
import sys
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

import anyio
import pytest
from aiohttp import web
from prefect.client.schemas.actions import LogCreate, WorkPoolUpdate
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import AwaitingRetry

from prefect_ray_worker.clusters.kuberay.manifest import shared_cluster
from prefect_ray_worker.commands import run_log
from prefect_ray_worker.commands.logs import logs
from prefect_ray_worker.commands.run_log import RunLog, is_complete
from prefect_ray_worker.commands.status import status
from prefect_ray_worker.config.kuberay import KubeRay
from prefect_ray_worker.errors import InvalidConfiguration
from prefect_ray_worker.prefect_api import log_window
from prefect_ray_worker.runs.recovery.labels import CLUSTER_LABEL, OWNER_LABEL
from prefect_ray_worker.shared.ids import ClusterRef, InfrastructurePid, job_of_attempt
from tests.fake_kubernetes import FakeKubernetes
from tests.fake_ray.nodes import FakeNode
from tests.fake_ray.script import PENDING_FOREVER
from tests.integration.busy_api import Refuses, busy_api
from tests.integration.harness import Pool, set_default, set_timing
from tests.integration.stage import Stage
from tests.waiting import wait_until


async def seen(pool: Pool, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert await status(pool=pool.name, json=True) == 0
    return json.loads(capsys.readouterr().out)


def kuberay_in(kubernetes: FakeKubernetes, scope: str) -> dict[str, Any]:
    config = {"config": kubernetes.kubeconfig(), "context_name": "fake"}
    return {"image": "rayproject/ray:2.60.0-py311", "scope": scope, "kubeconfig": config}


async def write_line(pool: Pool, run_id: UUID, message: str, *, age: float = 0.0) -> None:
    when = datetime.now(UTC) - timedelta(seconds=age)
    line = LogCreate(name="test", level=20, message=message, timestamp=when, flow_run_id=run_id)
    await pool.client.create_logs([line])


async def test_status_shows_workers_clusters_and_what_runs_wait_for(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_timing(monkeypatch, explain_after=0.5, explain_refresh=1.0, explain_tick=0.5)
    stage.ray.nodes = [FakeNode({"CPU": 4})]
    async with stage.pool.working() as (worker,):
        running, job = await stage.running()
        stage.ray.on_submit = PENDING_FOREVER
        waiting = await stage.start(entrypoint_num_cpus=8)

        async def explained() -> bool:
            run = await stage.pool.read(waiting)
            return run.state is not None and "asks for 8 CPU" in (run.state.message or "")

        await wait_until(explained, timeout=20, description="the reason")
        overview = await seen(stage.pool, capsys)
        console = await status(pool=stage.pool.name)
        shown = capsys.readouterr().out
    runs = {run["id"]: run for run in overview["runs"]}
    assert runs[str(running)]["state"] == "Running"
    assert runs[str(running)]["job_id"] == job.submission_id
    assert runs[str(running)]["waits_for"] is None
    assert "asks for 8 CPU" in runs[str(waiting)]["waits_for"]
    assert not runs[str(waiting)]["waits_for"].endswith("says so.")
    assert {run["worker"] for run in runs.values()} == {worker.name}
    assert [(w["name"], w["is_online"], w["runs"]) for w in overview["workers"]] == [
        (worker.name, True, 2)
    ]
    (cluster,) = overview["clusters"]
    assert cluster["cluster"] == stage.ray.address
    assert cluster["runs"] == 2
    assert cluster["answers"] is None  # a deployment named it: no credentials are sent there
    assert console == 0
    assert job.submission_id in shown
    assert worker.name in shown


async def test_status_says_why_due_runs_do_not_begin(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = await stage.start()
    (due,) = (await seen(stage.pool, capsys))["runs"]
    assert due["id"] == str(run_id)
    assert "No worker of the pool is online" in due["waits_for"]
    assert due["job_id"] is None
    await stage.pool.client.update_work_pool(stage.pool.name, WorkPoolUpdate(is_paused=True))
    (due,) = (await seen(stage.pool, capsys))["runs"]
    assert "prefect work-pool resume" in due["waits_for"]


async def test_status_shows_a_run_that_waits_in_its_process_for_its_next_try(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prefect calls it Scheduled, for later, so it was missing."""
    client = stage.pool.client
    in_process, by_a_worker = await stage.start(), await stage.start()
    for run_id, retry_type in ((in_process, "in_process"), (by_a_worker, "reschedule")):
        run = await stage.pool.read(run_id)
        policy = run.empirical_policy.model_copy(update={"retry_type": retry_type})
        await client.update_flow_run(run_id, empirical_policy=policy)
        waits = AwaitingRetry(scheduled_time=datetime.now(UTC) + timedelta(hours=1))
        await client.set_flow_run_state(run_id, waits, force=True)
    overview = await seen(stage.pool, capsys)
    assert [run["id"] for run in overview["runs"]] == [str(in_process)]
    assert overview["runs"][0]["waits_for"] == "Its next try, AwaitingRetry."
    assert overview["more_runs"] == 0


async def test_status_says_that_no_worker_takes_over_what_a_dead_one_owns(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    """It said that another worker does, although none was online."""
    run_id, pool = await stage.start(), stage.pool.name
    labels = {OWNER_LABEL: "0123456789ab me - w1"}
    await stage.pool.client.update_flow_run_labels(run_id, labels)
    await stage.play(run_id, StateType.RUNNING)
    (run,) = (await seen(stage.pool, capsys))["runs"]
    command = f"prefect worker start --pool {pool}"
    assert run["waits_for"] == f"Its worker w1 is offline; no other is online: `{command}`."


async def test_status_names_a_work_queue_that_is_paused(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    client, pool = stage.pool.client, stage.pool.name
    # Prefect's server cannot pause one while its database is in memory (3.8.8).
    await client.create_work_queue("held back", is_paused=True, work_pool_name=pool)
    await client.create_flow_run_from_deployment(
        await stage.pool.deploy("adds"), work_queue_name="held back"
    )
    (due,) = (await seen(stage.pool, capsys))["runs"]
    assert f"`prefect work-queue resume 'held back' --pool {pool}`" in due["waits_for"]


async def test_status_asks_the_cluster_that_the_pool_names(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    await set_default(stage.pool, "address", stage.ray.address)
    (cluster,) = (await seen(stage.pool, capsys))["clusters"]
    assert (cluster["answers"], cluster["runs"]) == (True, 0)
    assert cluster["says"].startswith("Ray ")
    await stage.ray.stop_listening()
    (cluster,) = (await seen(stage.pool, capsys))["clusters"]
    assert cluster["answers"] is False


@pytest.mark.parametrize("scope", ["run", "shared"])
async def test_status_shows_a_run_that_waits_for_its_cluster(
    stage: Stage, kubernetes: FakeKubernetes, scope: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was a traceback for as long as the cluster started: the run has no job yet."""
    await set_default(stage.pool, "kuberay", kuberay_in(kubernetes, scope))
    run_id, attempt = await stage.start(), "0123456789ab"
    cluster = f"kuberay:ray/ray-{run_id.hex}-{attempt}"
    labels = {OWNER_LABEL: f"{attempt} me - w1", CLUSTER_LABEL: f"{attempt} {cluster}"}
    await stage.pool.client.update_flow_run_labels(run_id, labels)
    await stage.play(run_id, StateType.PENDING, message="Its cluster starts.")
    overview = await seen(stage.pool, capsys)
    assert [(run["cluster"], run["job_id"]) for run in overview["runs"]] == [(cluster, None)]
    (asked,) = overview["clusters"]
    assert (asked["cluster"], asked["answers"], asked["runs"]) == (cluster, None, 1)
    assert "not there yet" in asked["says"]


async def test_status_asks_the_cluster_that_runs_of_the_pool_share(
    stage: Stage, kubernetes: FakeKubernetes, capsys: pytest.CaptureFixture[str]
) -> None:
    """It said that the cluster is not there yet: it looked without the id of the pool."""
    kuberay = kuberay_in(kubernetes, "shared")
    await set_default(stage.pool, "kuberay", kuberay)
    pool = await stage.pool.client.read_work_pool(stage.pool.name)
    of_pool = {"pool_id": str(pool.id), "pool_name": pool.name}
    asked = KubeRay.model_validate(kuberay)
    manifest = shared_cluster(asked, **of_pool, namespace="ray").of(1)
    made = kubernetes.store.create("rayclusters", "ray", manifest)["metadata"]
    run_id, attempt = await stage.start(), "0123456789ab"
    cluster = f"kuberay:ray/{made['name']}@{made['uid']}"
    pid = InfrastructurePid(ClusterRef.parse(cluster), job_of_attempt(run_id, attempt))
    await stage.pool.client.update_flow_run(run_id, infrastructure_pid=str(pid))
    await stage.play(run_id, StateType.RUNNING)

    async def answers() -> bool:
        (asked,) = (await seen(stage.pool, capsys))["clusters"]
        assert asked["cluster"] == cluster
        assert "not there yet" not in asked["says"]
        return asked["answers"] is True

    await wait_until(answers, timeout=20, description="the cluster's head")


async def test_status_says_why_kubernetes_cannot_be_asked_for_a_cluster(
    stage: Stage,
    kubernetes: FakeKubernetes,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It said of each cluster that it is not there yet."""
    await set_default(stage.pool, "kuberay", kuberay_in(kubernetes, "run"))
    run_id = await stage.start()
    pid = f"kuberay:ray/ray-{run_id.hex}-0123456789ab@1/api/jobs/prefect-{run_id}-0123456789ab"
    await stage.pool.client.update_flow_run(run_id, infrastructure_pid=pid)
    await stage.play(run_id, StateType.RUNNING)
    await kubernetes.stop_listening()
    (cluster,) = (await seen(stage.pool, capsys))["clusters"]
    assert cluster["answers"] is None
    assert "not there yet" not in cluster["says"]
    monkeypatch.setenv("PREFECT_INTEGRATIONS_RAY_WORKER_KUBERAY_NAMESPACES", '["other"]')
    (cluster,) = (await seen(stage.pool, capsys))["clusters"]
    assert "kuberay.namespace" in cluster["says"]


async def test_status_shows_a_cluster_whose_ca_file_is_not_on_this_machine(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was the traceback of a group of exceptions."""
    monkeypatch.setenv("PREFECT_INTEGRATIONS_RAY_WORKER_CREDENTIALS_FOLDER", "/etc/ssl")
    cluster = {"address": "https://ray-head:8265", "ca_file": "/etc/ssl/company.pem"}
    await set_default(stage.pool, "cluster", cluster)
    (found,) = (await seen(stage.pool, capsys))["clusters"]
    assert (found["cluster"], found["answers"]) == ("https://ray-head:8265", None)
    assert found["says"].startswith("Not asked: ca_file '/etc/ssl/company.pem'")


async def test_status_of_a_pool_that_is_not_there_names_the_pool(stage: Stage) -> None:
    del stage
    with pytest.raises(InvalidConfiguration, match="no work pool 'nowhere'"):
        await status(pool="nowhere")


async def test_followed_log_has_each_line_once_and_ends_with_the_run(stage: Stage) -> None:
    async with stage.pool.working():
        run_id, job = await stage.running()
        run = await stage.pool.read(run_id)
        env = {**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())}
        command = [sys.executable, "-m", "prefect_ray_worker", "logs", run.name, "--follow"]
        async with await anyio.open_process(command, env=env) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            said = ""
            with anyio.fail_after(60):
                while "is RUNNING" not in said:
                    said += (await process.stdout.receive()).decode()
                # Late: a task's line that is older than many that have been printed.
                await write_line(stage.pool, run_id, "an old line", age=120)
                job.print("the driver's last line\n")
                await stage.play(run_id, StateType.FAILED, message="no data")
                job.set("SUCCEEDED")
                async for chunk in process.stdout:
                    said += chunk.decode()
                told = b"".join([chunk async for chunk in process.stderr]).decode()
                code = await process.wait()
    messages = [line.split(" | ", 2)[2] for line in said.splitlines() if line]
    assert sorted(messages) == sorted(await stage.pool.logs(run_id))
    assert len(messages) == len(set(messages))
    assert {"an old line", "the driver's last line"} <= set(messages)
    assert f"Flow run {run.name} is Failed: no data" in told
    assert code == 1


@pytest.mark.parametrize("is_short", [True, False])
async def test_followed_log_has_the_lines_of_all_machines_whatever_their_clocks(
    stage: Stage, is_short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that is 20 s ahead hid the lines of all other machines until the run ended."""
    monkeypatch.setattr(run_log, "_READ_SECONDS", 0.1)
    monkeypatch.setattr(log_window, "_WIDE_SECONDS", 0.2)
    monkeypatch.setattr(log_window, "_SHORT_LINES", 100 if is_short else 0)
    run_id = await stage.start()
    await write_line(stage.pool, run_id, "of a fast clock", age=-60)
    log = RunLog(stage.pool.client, await stage.pool.read(run_id))
    shown = [line.message for line in await log.lines()]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(log.follow, lambda line: shown.append(line.message), is_complete)
        for message, age in (("of a good clock", 0), ("of a slow clock", 120)):
            await write_line(stage.pool, run_id, message, age=age)
            await wait_until(lambda said=message: said in shown, timeout=10, description=message)
        tasks.cancel_scope.cancel()
    assert shown == ["of a fast clock", "of a good clock", "of a slow clock"]


async def test_log_of_a_run_is_found_by_its_page_and_cut_to_its_tail(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = await stage.start()
    for number in range(5):
        await write_line(stage.pool, run_id, f"line {number} \x1b[2J", age=10 - number)
    assert await logs(f"http://127.0.0.1:4200/runs/flow-run/{run_id}", tail=2) == 0
    out = capsys.readouterr().out
    assert "line 3" in out
    assert "line 4" in out
    assert "line 2" not in out
    assert "\x1b" not in out


async def test_log_of_a_run_that_is_not_there_says_how_to_list_runs(stage: Stage) -> None:
    del stage
    with pytest.raises(InvalidConfiguration, match="prefect flow-run ls"):
        await logs("no-such-run")


async def test_follower_of_a_run_that_is_deleted_is_told(stage: Stage) -> None:
    """It was the traceback of a group of exceptions."""
    run_id = await stage.start()

    async def delete() -> None:
        await anyio.sleep(0.5)
        await stage.pool.client.delete_flow_run(run_id)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(delete)
        found = ""
        try:
            await logs(str(run_id), follow=True)
        except InvalidConfiguration as exc:
            found = str(exc)
    assert f"({run_id}) was deleted" in found


def away_now_and_then(asked: list[str]) -> Refuses:
    """Return what refuses two requests in a row, as a server does that is restarted."""

    def refuses(request: web.Request) -> web.Response | None:
        asked.append(request.path)
        return web.Response(status=502) if 12 <= len(asked) < 14 else None

    return refuses


async def test_log_is_followed_through_a_restart_of_the_api(stage: Stage) -> None:
    run_id, asked = await stage.start(), list[str]()
    await write_line(stage.pool, run_id, "a line")
    async with (
        busy_api(str(PREFECT_API_URL.value()), away_now_and_then(asked)) as url,
        anyio.create_task_group() as tasks,
    ):
        with temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0}):
            tasks.start_soon(partial(logs, str(run_id), follow=True))
        await wait_until(lambda: len(asked) > 20, timeout=30, description="it to go on")
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("of", ["/queues/filter", "/flow_runs/"])
async def test_404_of_a_proxy_says_nothing_of_pool_and_run(stage: Stage, of: str) -> None:
    """The one ended a watch with a traceback, the other said that there is no such run."""
    run_id = await stage.start()

    def refuses(request: web.Request) -> web.Response | None:
        is_away = of in request.path
        return web.Response(status=404, text="<html>no backend</html>") if is_away else None

    async with busy_api(str(PREFECT_API_URL.value()), refuses) as url:
        with (
            temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0}),
            pytest.raises(InvalidConfiguration, match=r"Cannot read .*404"),
        ):
            await (status(pool=stage.pool.name) if "queues" in of else logs(str(run_id)))


@pytest.mark.extra
async def test_status_is_watched_through_a_restart_of_the_api(stage: Stage) -> None:
    """A single 502 ended the watch."""
    asked = list[str]()
    async with (
        busy_api(str(PREFECT_API_URL.value()), away_now_and_then(asked)) as url,
        anyio.create_task_group() as tasks,
    ):
        with temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0}):
            tasks.start_soon(partial(status, pool=stage.pool.name, watch=True, json=True))
        await wait_until(lambda: len(asked) > 20, timeout=30, description="it to go on")
        tasks.cancel_scope.cancel()


async def test_log_of_a_run_whose_name_contains_an_id_is_found_by_its_name(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was the log of the run with that id, or an error."""
    other, run_id = await stage.start(), await stage.start()
    await stage.pool.client.update_flow_run(run_id, name=f"retry of {other}")
    await write_line(stage.pool, run_id, "of the run itself")
    assert await logs(f"retry of {other}") == 0
    assert "of the run itself" in capsys.readouterr().out
    await write_line(stage.pool, other, "of the other")
    assert await logs(f"runs/flow-run/{other}") == 0
    assert "of the other" in capsys.readouterr().out
