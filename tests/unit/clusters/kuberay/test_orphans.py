"""Which RayClusters of a pool a sweep deletes."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from prefect_ray_worker.clusters.kuberay.orphans import (
    ClusterUse,
    run_in_labels,
    why_idle,
    why_orphaned,
    why_too_old,
)
from prefect_ray_worker.clusters.source import RunOfCluster
from prefect_ray_worker.kubernetes_api.models import ObjectCondition, RayClusterObject

NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
RUN = UUID("9838ecb1-28dc-4001-9aa4-e48a7876be0c")


def cluster(age: float = 1000, *, terminating: bool = False, **seconds: int) -> RayClusterObject:
    return RayClusterObject(
        name="ray-x",
        created_at=NOW - timedelta(seconds=age),
        deleted_at=NOW if terminating else None,
        labels={"prefect.io/flow-run-id": str(RUN), "prefect-ray-worker/attempt": "one"},
        annotations={
            f"prefect-ray-worker/{name.replace('_', '-')}": str(value)
            for name, value in seconds.items()
        },
    )


def run(
    age: float = 1000,
    *,
    goes_on: bool = False,
    crashed: bool = False,
    attempt: str | None = "one",
    unfinished: bool = False,
) -> RunOfCluster:
    return RunOfCluster(goes_on, crashed, attempt, unfinished, age)


@pytest.mark.parametrize(
    ("of", "by", "said"),
    [
        (cluster(), run(goes_on=True), None),
        (cluster(), run(goes_on=True, attempt=None), None),
        (cluster(), run(goes_on=True, attempt="two"), "another attempt"),
        (cluster(), run(goes_on=True, attempt="two", age=60), None),
        (cluster(), None, "was deleted"),
        (cluster(age=60), None, None),
        (cluster(), run(), "has ended"),
        (cluster(), run(age=60), None),
        (cluster(), run(age=300, unfinished=True), None),
        (cluster(), run(age=601, unfinished=True), "has ended"),
        (cluster(keep_failed_seconds=3600), run(crashed=True), None),
        (cluster(keep_failed_seconds=3600), run(crashed=True, age=3601), "has ended"),
        (cluster(keep_failed_seconds=3600), run(), "has ended"),
    ],
)
def test_a_cluster_goes_when_nobody_needs_it(
    of: RayClusterObject, by: RunOfCluster | None, said: str | None
) -> None:
    why = why_orphaned(of, by, now=NOW)
    assert (why is None) if said is None else (why is not None and said in why)


@pytest.mark.parametrize(
    ("of", "said"),
    [
        (cluster(), None),
        (cluster(max_lifetime_seconds=1001), None),
        (cluster(max_lifetime_seconds=500), "older than 500 s"),
        (cluster(max_lifetime_seconds=500, terminating=True), None),
    ],
)
def test_a_cluster_goes_at_its_longest_life(of: RayClusterObject, said: str | None) -> None:
    why = why_too_old(of, now=NOW)
    assert (why is None) if said is None else (why is not None and said in why)


def shared(
    *,
    age: float = 5000,
    joined: float | None = None,
    head: float | None = None,
    down: float | None = None,
    **seconds: int,
) -> RayClusterObject:
    """Return a shared cluster, with ages in seconds: also of its head, or of its head's loss."""
    found = cluster(age, **{"idle_seconds": 600, "start_timeout_seconds": 900, **seconds})
    annotations = dict(found.annotations)
    if joined is not None:
        annotations["prefect-ray-worker/joined-at"] = f"{ago(joined).isoformat()} 0123456789ab"
    conditions = [
        ObjectCondition(type="HeadPodReady", status=status, since=ago(since))
        for status, since in (("True", head), ("False", down))
        if since is not None
    ]
    return found.model_copy(update={"annotations": annotations, "conditions": conditions})


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


QUIET = ClusterUse(is_used=False)


@pytest.mark.parametrize(
    ("of", "use", "idles"),
    [
        (shared(), QUIET, True),
        (shared(age=599), QUIET, False),
        (shared(joined=599), QUIET, False),
        (shared(joined=601), QUIET, True),
        (shared(head=599), QUIET, False),
        (shared(head=601), QUIET, True),
        (shared(), ClusterUse(is_used=True), False),
        (shared(), ClusterUse(is_used=False, last_at=ago(599)), False),
        (shared(), ClusterUse(is_used=False, last_at=ago(601)), True),
        (shared(joined=10), ClusterUse(is_used=False, last_at=ago(601)), False),
        (shared(joined=30, idle_seconds=20), QUIET, True),
        # Its dashboard is silent: that is not idle, but for very long.
        (shared(joined=1499), ago(4000), False),
        (shared(joined=1501), ago(4000), True),
        (shared(age=1499), ago(4000), False),
        (shared(), ago(1499), False),
        (shared(), ago(1501), True),
        (shared(idle_seconds=100, start_timeout_seconds=60), ago(150), False),
        (shared(idle_seconds=100, start_timeout_seconds=60), ago(161), True),
        # A worker that has just begun takes Kubernetes' word for a head that is away.
        (shared(down=1499), ago(0), False),
        (shared(down=1501), ago(0), True),
        (shared(joined=1499, down=1501), ago(0), False),
        (shared(head=4000), ago(0), False),
    ],
)
def test_a_shared_cluster_is_idle_since_its_last_use(
    of: RayClusterObject, use: ClusterUse | datetime, idles: bool
) -> None:
    assert (why_idle(of, use, now=NOW) is not None) is idles


def test_a_stamp_that_cannot_be_read_does_not_keep_a_cluster() -> None:
    odd = shared().model_copy(update={"annotations": {"prefect-ray-worker/joined-at": "soon"}})
    assert why_idle(odd, QUIET, now=NOW) is not None


def test_a_cluster_of_others_names_no_run() -> None:
    assert run_in_labels(RayClusterObject(name="a")) is None
    assert run_in_labels(cluster()) == RUN
