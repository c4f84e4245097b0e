"""A job's events, as the Prefect server keeps them and as its automations match them."""

import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import UUID

import anyio
import pytest
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import StateType
from prefect.events import Event
from prefect.events.clients import AssertingEventsClient
from prefect.events.filters import (
    EventFilter,
    EventNameFilter,
    EventRelatedFilter,
    EventResourceFilter,
)
from prefect.events.worker import EventsWorker

from prefect_ray_worker.prefect_api.cluster_events import (
    ClusterEvents,
    ClusterHappening,
    cluster_event_id,
)
from prefect_ray_worker.prefect_api.events import Happening, event_id, resource_id
from prefect_ray_worker.shared.category import Category
from prefect_ray_worker.shared.diagnosis import Diagnosis, diagnosed
from prefect_ray_worker.shared.exits import DriverExit
from prefect_ray_worker.shared.ids import ClusterRef, InfrastructurePid, attempt_in
from prefect_ray_worker.shared.verdict_line import format_verdict
from tests.fake_ray.script import PENDING_FOREVER
from tests.integration.harness import Pool
from tests.integration.kuberay.stage import KubeRayStage, new_kuberay_stage
from tests.integration.stage import Stage
from tests.prefect_server import PrefectServer
from tests.shared import shared_prefect_server
from tests.waiting import patience, wait_until

EXAMPLE = Path(__file__).parents[2] / "docs/examples/automations/pause-a-pool-without-prefect.yaml"
NODE_DIED = (Path(__file__).parents[1] / "unit/diagnosis/job_messages/node-died.txt").read_text()


@pytest.fixture(scope="module")
def prefect_api() -> Iterator[PrefectServer]:
    """A server that keeps events and runs automations; the other tests do without."""
    with shared_prefect_server(with_events=True) as server:
        yield server


async def events_of(
    pool: Pool, job_id: str | None, *, name: str = "prefect.ray.job."
) -> list[Event]:
    """Return the job's events in the order in which they occurred."""
    wanted = EventFilter(
        resource=EventResourceFilter(id=[resource_id(job_id or "")]),
        event=EventNameFilter(prefix=[name]),
    )
    page = await pool.client.read_events(wanted, limit=50)
    return sorted(page.events, key=lambda event: event.occurred)


async def event_of(pool: Pool, job_id: str | None, happening: Happening) -> Event:
    """Wait for an event of a job; there may be one only."""

    async def there() -> list[Event]:
        return await events_of(pool, job_id, name=happening.event)

    (event,) = await wait_until(there, timeout=30, description=f"{happening} of {job_id}")
    return event


async def test_life_of_a_job_that_fails(stage: Stage) -> None:
    stage.ray.on_submit = PENDING_FOREVER
    async with stage.pool.working() as (worker,):
        run_id = await stage.start()
        job = await stage.job_of(run_id)
        await stage.pool.wait_for_log(run_id, "is PENDING")
        job.set("RUNNING")
        await stage.pool.wait_for_log(run_id, "is RUNNING")
        job.set("FAILED", error_type="JOB_SUPERVISOR_ACTOR_DIED", message=NODE_DIED)
        await stage.ends(run_id, StateType.CRASHED, "NodeDied: ")
        failed = await event_of(stage.pool, job.submission_id, Happening.FAILED)
        name = worker.name
    pending, running, last = await events_of(stage.pool, job.submission_id)
    assert [pending.event, running.event] == ["prefect.ray.job.pending", "prefect.ray.job.running"]
    assert last == failed
    for event, happening in ((pending, Happening.PENDING), (failed, Happening.FAILED)):
        assert event.id == event_id(job.submission_id or "", happening)
    assert (pending.follows, running.follows, failed.follows) == (None, pending.id, running.id)
    record = job.details()
    assert int(pending.occurred.timestamp() * 1000) == record["start_time"]
    assert int(failed.occurred.timestamp() * 1000) == record["end_time"]

    labels = failed.resource.root
    assert labels["prefect.ray.diagnosis"] == "NodeDied"
    assert labels["prefect.ray.error-type"] == "JOB_SUPERVISOR_ACTOR_DIED"
    assert labels["prefect.ray.status"] == "FAILED"
    assert labels["prefect.ray.address"] == stage.ray.address
    assert labels["prefect.ray.session"] == stage.ray.session_name
    assert labels["prefect.ray.driver-node-id"] == record["driver_node_id"]
    assert labels["prefect.ray.dashboard"] == f"{stage.ray.address}/#/jobs/{job.submission_id}"
    assert "prefect.ray.diagnosis" not in pending.resource.root
    assert failed.payload["message"].startswith("NodeDied: ")

    run = await stage.pool.read(run_id)
    related = {resource.role: resource.id for resource in failed.related}
    assert related["flow-run"] == f"prefect.flow-run.{run_id}"
    assert related["flow"] == f"prefect.flow.{run.flow_id}"
    assert related["deployment"] == f"prefect.deployment.{run.deployment_id}"
    assert related["work-pool"].startswith("prefect.work-pool.")
    assert related["worker"].startswith("prefect.worker.ray.")
    assert name in [resource.name for resource in failed.related]


@pytest.mark.extra
async def test_second_worker_sends_only_what_is_new(stage: Stage) -> None:
    """The server forgets ids after 5 minutes, so the second worker has to ask before it sends."""
    async with stage.pool.working(heartbeat_interval_seconds=2):
        run_id, job = await stage.running()
        running = await event_of(stage.pool, job.submission_id, Happening.RUNNING)
    sent = _Recorded()
    with sent:
        async with stage.pool.working(heartbeat_interval_seconds=2):
            await stage.pool.wait_for_log(run_id, "Following Ray Job", seconds=40)
            job.set("STOPPED")
            await stage.ends(run_id, StateType.CRASHED, "StoppedOutside: ")
            await wait_until(lambda: sent.names, timeout=20, description="an event")
    assert sent.names == ["prefect.ray.job.stopped"]
    assert sent.follows == [running.id]


class _Recorded:
    """Records the events that this process hands to Prefect's sender, instead of sending them."""

    def __enter__(self) -> None:
        AssertingEventsClient.reset()
        EventsWorker.set_client_override(AssertingEventsClient)

    def __exit__(self, *_: object) -> None:
        EventsWorker.set_client_override(None)

    @property
    def _ours(self) -> list[Event]:
        sent = [event for client in AssertingEventsClient.all for event in client.events]
        return [event for event in sent if event.event.startswith("prefect.ray.")]

    @property
    def names(self) -> list[str]:
        return [event.event for event in self._ours]

    @property
    def follows(self) -> list[UUID | None]:
        return [event.follows for event in self._ours]


async def test_job_that_its_cluster_has_lost(stage: Stage) -> None:
    async with stage.pool.working():
        run_id, job = await stage.running()
        stage.ray.restart(new_session=True)
        await stage.ends(run_id, StateType.CRASHED, "HeadLost: ")
        lost = await event_of(stage.pool, job.submission_id, Happening.LOST)
    assert lost.resource.root["prefect.ray.diagnosis"] == "HeadLost"
    assert lost.resource.root["prefect.ray.status"] == "RUNNING"


async def test_driver_that_settled_its_run_is_quoted(stage: Stage) -> None:
    async with stage.pool.working():
        run_id, job = await stage.running()
        await stage.play(run_id, StateType.CRASHED, message="OutOfMemory: It died. Do less.")
        verdict = Diagnosis(Category.OUT_OF_MEMORY, "It died.", "Do less.")
        line = format_verdict(verdict, attempt_in(job.submission_id))
        job.set("FAILED", driver_exit_code=84, message=f"a line\n{line}\n")
        failed = await event_of(stage.pool, job.submission_id, Happening.FAILED)
    assert failed.resource.root["prefect.ray.diagnosis"] == "OutOfMemory"
    assert failed.resource.root["prefect.ray.exit-code"] == "84"


async def test_job_that_is_stopped_for_its_limit(stage: Stage) -> None:
    """Nobody watches the job any more when it ends; a last look tells how."""
    async with stage.pool.working():
        run_id, job = await stage.running(run_timeout_seconds=1)
        await stage.ends(run_id, StateType.CRASHED)
        stopped = await event_of(stage.pool, job.submission_id, Happening.STOPPED)
    assert stopped.resource.root["prefect.ray.status"] == "STOPPED"


async def test_no_run_waits_for_an_events_api_that_is_away(stage: Stage) -> None:
    class Refusing:
        def __init__(self) -> None:
            raise ConnectionError("no events today")

    EventsWorker.set_client_override(Refusing)  # type: ignore[arg-type]
    try:
        async with stage.pool.working():
            with anyio.fail_after(30 * patience()):
                await stage.is_served()
    finally:
        EventsWorker.set_client_override(None)


async def test_automation_of_the_guide_pauses_a_pool_without_prefect(
    prefect_api: PrefectServer, stage: Stage
) -> None:
    await anyio.run_process(
        [sys.executable, "-m", "prefect", "automation", "create", "--from-file", str(EXAMPLE)],
        env={**os.environ, "PREFECT_API_URL": prefect_api.api_url},
    )

    async def is_paused() -> bool:
        return (await stage.pool.client.read_work_pool(stage.pool.name)).is_paused

    async with stage.pool.working():
        run_id, job = await stage.running()
        job.set("FAILED", driver_exit_code=7)
        await stage.ends(run_id, StateType.CRASHED, "DriverExited: ")
        await event_of(stage.pool, job.submission_id, Happening.FAILED)
        assert not await is_paused()
        run_id, job = await stage.running()
        job.set(
            "FAILED",
            driver_exit_code=DriverExit.API_UNREACHABLE,
            message=format_verdict(
                diagnosed(Category.PREFECT_API_UNREACHABLE), attempt_in(job.submission_id)
            ),
        )
        await stage.ends(run_id, StateType.CRASHED, "PrefectApiUnreachable: ")
        await wait_until(is_paused, timeout=60, description="the automation to act")


async def test_attempt_that_is_followed_by_another_has_its_diagnosis(stage: Stage) -> None:
    async with stage.pool.working():
        run_id, job = await stage.running(infrastructure_retries=1)
        job.set("FAILED", error_type="JOB_SUPERVISOR_ACTOR_DIED", message=NODE_DIED)
        failed = await event_of(stage.pool, job.submission_id, Happening.FAILED)
    assert failed.resource.root["prefect.ray.diagnosis"] == "NodeDied"
    assert not (await stage.pool.read(run_id)).state.is_final()  # type: ignore[union-attr]


@pytest.mark.ray
@pytest.mark.extra
async def test_on_a_real_ray(pool: Pool) -> None:
    """Ray's own times, node and exit code; and the run's way to its job."""
    async with pool.working():
        run_id = await pool.start("adds")
        run = await pool.wait_for(run_id, seconds=90)
        assert run.state is not None
        assert run.state.type == StateType.COMPLETED
        pid = InfrastructurePid.parse(run.infrastructure_pid or "")
        succeeded = await event_of(pool, pid.submission_id, Happening.SUCCEEDED)
    pending, *others = await events_of(pool, pid.submission_id)
    assert pending.event == "prefect.ray.job.pending"
    assert others[-1] == succeeded
    assert succeeded.follows == [pending, *others][-2].id
    labels = succeeded.resource.root
    assert labels["prefect.ray.exit-code"] == "0"
    assert len(labels["prefect.ray.driver-node-id"]) == 56
    assert labels["prefect.ray.session"] == pid.session_name
    (artifact,) = await pool.client.read_artifacts(
        artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
    )
    assert f"{pid.cluster.name}/#/jobs/{pid.submission_id}" in str(artifact.data)


@pytest.fixture
async def kuberay(
    prefect_settings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[KubeRayStage]:
    """A pool whose runs get clusters of a fake Kubernetes."""
    async with new_kuberay_stage(tmp_path, monkeypatch) as staged:
        yield staged


async def cluster_events_of(pool: Pool, run_id: UUID) -> list[Event]:
    """Return the events of a run's cluster in the order in which they occurred."""
    wanted = EventFilter(
        related=EventRelatedFilter(id=[f"prefect.flow-run.{run_id}"]),
        event=EventNameFilter(prefix=["prefect.ray.cluster."]),
    )
    return list(reversed((await pool.client.read_events(wanted, limit=50)).events))


async def test_life_of_a_cluster_arrives_once_with_two_workers(kuberay: KubeRayStage) -> None:
    pool = kuberay.pool
    async with pool.working(2) as workers:
        run_id, _, job = await kuberay.running()
        name = await kuberay.name_of(run_id)
        pid = InfrastructurePid.parse((await pool.read(run_id)).infrastructure_pid or "")
        await kuberay.completes(run_id, job)
        await kuberay.ends(run_id, StateType.COMPLETED)
        await kuberay.is_gone(run_id)

        async def is_told_gone() -> bool:
            for worker in workers:  # each sees that it has gone
                await worker._recovery._sweeper.sweep_clusters()
            told = await cluster_events_of(pool, run_id)
            return told[-1].event == ClusterHappening.GONE.event

        await wait_until(is_told_gone, timeout=30, description="the event of its end")
        # What a worker sends that has just been started, and knows nothing of the first two.
        for happening in (ClusterHappening.CREATED, ClusterHappening.READY):
            await ClusterEvents().tell(happening, pid.cluster, run_id=run_id)
        anew = ClusterEvents(lambda: pool.client)
        assert not await anew.tell(ClusterHappening.READY, pid.cluster, may_be_told=True)
        assert await anew.tell(ClusterHappening.STUCK, pid.cluster, run_id=run_id)

        async def is_stuck() -> bool:
            return len(await cluster_events_of(pool, run_id)) == 6

        await wait_until(is_stuck, timeout=20, description="the last event")
    told = {
        event.event.rpartition(".")[2]: event for event in await cluster_events_of(pool, run_id)
    }
    assert list(told) == ["requested", "created", "ready", "deleting", "gone", "stuck"]
    for happening in list(ClusterHappening):
        if happening.label in told:
            ref = pid.cluster.planned if happening.label == "requested" else pid.cluster
            assert told[happening.label].id == cluster_event_id(ref, happening)
    assert told["ready"].resource.id == f"prefect.ray.cluster.{pid.cluster.uid}"
    for event in told.values():
        assert event.resource.name == name
        assert event.resource.root["prefect.ray.cluster"] == f"kuberay:ray/{name}"
        assert "127.0.0.1" not in event.model_dump_json(), "no address"
    roles = {role for event in told.values() for role in event.resources_in_role}
    assert {"flow-run", "work-pool", "worker", "flow", "deployment"} <= roles
    assert told["deleting"].payload["message"] == "Its run has ended."


async def test_cluster_that_fails_tells_its_category(kuberay: KubeRayStage) -> None:
    kuberay.kubernetes.worker.take_away("rayclusters", "create")
    async with kuberay.pool.working():
        run_id = await kuberay.start()
        await kuberay.ends(run_id, StateType.CRASHED, "^ClusterForbidden: ")

        async def has_failed() -> list[Event]:
            told = await cluster_events_of(kuberay.pool, run_id)
            return told if len(told) == 2 else []

        _, failed = await wait_until(has_failed, timeout=20, description="the event")
    assert failed.event == "prefect.ray.cluster.failed"
    assert failed.resource.root["prefect.ray.diagnosis"] == "ClusterForbidden"
    assert failed.payload["message"].startswith("ClusterForbidden: ")
    planned = ClusterRef.parse(failed.resource.root["prefect.ray.cluster"])
    assert failed.id == cluster_event_id(planned, ClusterHappening.FAILED)
