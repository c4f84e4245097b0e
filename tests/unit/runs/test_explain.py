"""Why a job waits: one sentence, from what it asks for and what the cluster has."""

import pytest

from prefect_ray_worker.diagnosis.job import Context, Ended, of_job, start_overdue
from prefect_ray_worker.diagnosis.pending import Reason, why_waiting
from prefect_ray_worker.shared.category import Category
from prefect_ray_worker.shared.resources import Asked, ClusterResources, Node

GIB = 1024**3
SMALL = Node({"CPU": 4, "memory": 8 * GIB}, {"CPU": 1, "memory": 8 * GIB}, {"zone": "a"})
LARGE = Node({"CPU": 8, "GPU": 1}, {"CPU": 0, "GPU": 0}, {"zone": "b"})
CLUSTER = ClusterResources((SMALL, LARGE))
SILENT = ClusterResources((Node({"CPU": 4}),))


def asks(labels: dict[str, str] | None = None, **resources: float) -> Asked:
    return Asked(resources=resources, labels=labels or {})


@pytest.mark.parametrize(
    ("asked", "cluster", "reason", "says"),
    [
        (asks(CPU=2), CLUSTER, Reason.BUSY,
         "asks for 2 CPU on one node, free are 1 CPU of 12 CPU in the whole cluster"),
        (asks(GPU=1), CLUSTER, Reason.BUSY, "free are 0 GPU of 1 GPU"),
        (asks(CPU=16), CLUSTER, Reason.INFEASIBLE, "its 2 nodes have at most 8 CPU"),
        # Enough in all, but not on one node.
        (asks(CPU=10), CLUSTER, Reason.INFEASIBLE, "asks for 10 CPU"),
        (asks(memory=16 * GIB), CLUSTER, Reason.INFEASIBLE, "16 GiB memory: its 2 nodes have at"),
        (asks(ssd=1), CLUSTER, Reason.INFEASIBLE, "at most 0 ssd"),
        (asks(CPU=16), SILENT, Reason.INFEASIBLE, "its one node has 4 CPU"),
        (asks(CPU=2), SILENT, Reason.UNKNOWN, "has 4 CPU, and does not say what is free"),
        (asks({"zone": "c"}), CLUSTER, Reason.INFEASIBLE, "asks for zone=c. It starts only"),
        (asks({"zone": "a"}, GPU=1), CLUSTER, Reason.INFEASIBLE, "1 GPU, zone=a"),
        (asks({"zone": "!in(a, b)"}), CLUSTER, Reason.INFEASIBLE, "zone=!in(a, b)"),
        (asks({"zone": "in(b, c)"}, CPU=1), CLUSTER, Reason.BUSY, "1 CPU, zone=in(b, c)"),
        (asks(CPU=1), CLUSTER, Reason.STARTING, "starting the processes"),
        (asks({"zone": "!b"}), CLUSTER, Reason.STARTING, "starting the processes"),
        (asks(CPU=2), None, Reason.UNKNOWN, "asks for 2 CPU and has not started. Ray says: words"),
        # Without any wish it runs on the head, with no CPUs.
        (Asked(), ClusterResources(()), Reason.STARTING, "starting the processes"),
        (Asked(environment=("pip", "working_dir")), None, Reason.ENVIRONMENT,
         "setting up the runtime environment (pip, working_dir)"),
        (Asked({"CPU": 1}, environment=("pip",)), CLUSTER, Reason.ENVIRONMENT, "(pip)"),
    ],
)  # fmt: skip
def test_why(asked: Asked, cluster: ClusterResources | None, reason: Reason, says: str) -> None:
    waiting = why_waiting(asked, cluster, "words")
    assert waiting.reason is reason
    assert says in waiting.sentence
    assert "\n" not in waiting.sentence


@pytest.mark.parametrize(
    ("asked", "category"),
    [
        (asks(CPU=16), Category.RESOURCES_INFEASIBLE),
        (asks(CPU=2), Category.RESOURCES_BUSY),
        (Asked(environment=("conda",)), Category.START_TIMEOUT),
    ],
)
def test_start_timeout_is_filed_under_its_reason(asked: Asked, category: Category) -> None:
    ours = start_overdue(10, why_waiting(asked, CLUSTER, None), limited_by="start_timeout_seconds")
    assert ours.category is category
    assert "PENDING after 10 s (start_timeout_seconds). " in ours.cause
    message = "Job supervisor actor failed to start within 900.0 seconds."
    ended = Ended("FAILED", "JOB_SUPERVISOR_ACTOR_START_TIMEOUT", None, message)
    rays = of_job(ended, Context(asked, CLUSTER))
    assert rays.category is category
    assert "after 900 s (RAY_JOB_START_TIMEOUT_SECONDS of the Ray head)" in rays.cause


def test_unschedulable_driver_is_told_what_it_asked_for() -> None:
    ended = Ended("FAILED", "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE", None, "no such node")
    found = of_job(ended, Context(asks({"ray.io/node-id": "ab"})))
    assert "which asks for ray.io/node-id=ab: no such node." in found.cause
