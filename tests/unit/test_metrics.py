"""What is counted: names, and that gauges go down again."""

import logging
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import anyio
import pytest

from prefect_ray_worker import metrics
from prefect_ray_worker.errors import JobNotFound
from prefect_ray_worker.metrics import ActiveJob, Polls
from prefect_ray_worker.prefect_api import cluster_events
from prefect_ray_worker.prefect_api.cluster_events import ClusterEvents, ClusterHappening
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.runs.start_news import StartNews
from prefect_ray_worker.runs.stop import Stopping, stop_and_confirm
from prefect_ray_worker.shared.ids import ClusterRef
from tests.counted import Change, value
from tests.fake_ray import FakeRay


def test_names_are_ours_and_no_label_is_of_one_run() -> None:
    for metric in metrics.ALL:
        (described,) = metric.describe()
        assert described.name.startswith("prefect_ray_")
        assert described.documentation.endswith(".")
        assert not set(metric._labelnames) & {"job", "run", "flow_run", "submission_id"}
    in_module = {
        m for m in vars(metrics).values() if isinstance(m, type(metrics.ALL[0]).__mro__[1])
    }
    assert in_module == set(metrics.ALL), "each is documented"


def test_stops_name_each_result() -> None:
    (metric,) = metrics.STOPS.describe()
    listed = metric.documentation.partition("by result: ")[2].rstrip(".").split(", ")
    assert sorted(listed) == sorted(result.value for result in Stopping)


def test_active_job_is_counted_once_under_its_status() -> None:
    changes = {
        status: Change("prefect_ray_active_jobs", status=status)
        for status in ("unknown", "pending", "running")
    }

    def now() -> dict[str, float]:
        return {status: change() for status, change in changes.items() if change()}

    job = ActiveJob()
    assert now() == {"unknown": 1}
    job.is_now("PENDING")
    job.is_now("PENDING")
    assert now() == {"pending": 1}
    job.is_now("RUNNING")
    assert now() == {"running": 1}
    job.close()
    assert now() == {}


async def test_age_grows_while_a_cluster_is_silent() -> None:
    # Metrics outlive a test that is run again.
    address = f"http://silent-{uuid4().hex}:8265"
    polls, labels = Polls(address), {"address": address}
    assert value("prefect_ray_poll_age_seconds", **labels) == 0
    with polls.look():
        await anyio.sleep(0.5)
    silent = value("prefect_ray_poll_age_seconds", **labels)
    assert silent >= 0.5
    with polls.look() as look:
        look.answered = True
    assert value("prefect_ray_poll_age_seconds", **labels) < silent
    polls.rest()
    assert value("prefect_ray_poll_age_seconds", **labels) == 0
    for answered in ("true", "false"):
        assert value("prefect_ray_poll_seconds_count", answered=answered, **labels) == 1


def test_age_of_clusters_with_one_label_is_that_of_the_most_silent() -> None:
    label = f"kuberay-{uuid4().hex}"
    silent, answering = Polls(label), Polls(label)
    with silent.look():
        pass
    with answering.look() as look:
        look.answered = True
    Polls(label)
    assert value("prefect_ray_poll_age_seconds", address=label) > 0
    silent.rest()
    answering.rest()
    assert value("prefect_ray_poll_age_seconds", address=label) == 0


async def test_errors_and_stops_are_counted_by_what_they_were() -> None:
    errors = Change("prefect_ray_errors_total", error="JobNotFound")
    stops = Change("prefect_ray_stops_total", result="gone")
    async with FakeRay() as ray, JobsClient(Connection(ray.address)) as client:
        with pytest.raises(JobNotFound):
            await client.get("nobody")
        assert (errors(), stops()) == (1, 0)
        await stop_and_confirm(client, "nobody", grace_seconds=1)
        assert (errors(), stops()) == (2, 1)


CLUSTER = ClusterRef.parse("kuberay:ray/counted@uid-1")


@pytest.fixture
def unsent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events are made and not sent: there is no Prefect."""
    monkeypatch.setattr(cluster_events, "emit_event", lambda **_: None)


@pytest.mark.usefixtures("unsent")
async def test_clusters_are_counted_once_by_what_happens_to_them() -> None:
    changes = [
        Change("prefect_ray_clusters_created_total", source="kuberay"),
        Change("prefect_ray_clusters_failed_total", source="kuberay", category="ImagePull"),
        Change("prefect_ray_clusters_deleted_total", source="kuberay"),
    ]
    happenings = ClusterHappening.CREATED, ClusterHappening.FAILED, ClusterHappening.DELETING
    events = ClusterEvents()
    for seen, happening in enumerate(happenings, start=1):
        for _ in range(2):
            await events.tell(happening, CLUSTER, category="ImagePull")
        assert [change() for change in changes] == [1] * seen + [0] * (3 - seen)
    # What another worker may have counted.
    await ClusterEvents().tell(ClusterHappening.CREATED, CLUSTER, may_be_told=True)
    assert [change() for change in changes] == [1, 1, 1]


@pytest.mark.usefixtures("unsent")
async def test_the_start_of_a_cluster_is_timed_from_the_claim_of_the_run_that_made_it() -> None:
    count = Change("prefect_ray_cluster_ready_seconds_count", source="kuberay")
    seconds = Change("prefect_ray_cluster_ready_seconds_sum", source="kuberay")

    async def record(_: ClusterRef) -> None: ...

    def news() -> StartNews:
        began = datetime.now(UTC) - timedelta(seconds=20)
        log = logging.getLogger("tests.metrics")
        return StartNews(log, record, ClusterEvents(), job_id="j", related=(), began=began)

    joins = news()
    await joins.happened(ClusterHappening.JOINED, CLUSTER)
    await joins.ready(CLUSTER)
    assert count() == 0, "another run has waited for it"
    await news().ready(CLUSTER)
    assert count() == 1
    assert 20 <= seconds() < 80
