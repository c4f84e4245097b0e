"""Which RayClusters of a pool a sweep deletes."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from prefect_ray_worker.clusters.kuberay.orphans import run_in_labels, why_orphaned
from prefect_ray_worker.clusters.source import RunOfCluster
from prefect_ray_worker.kubernetes_api.models import RayClusterObject

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
        (cluster(max_lifetime_seconds=500), run(goes_on=True), "older than 500 s"),
        (cluster(max_lifetime_seconds=500, terminating=True), None, None),
    ],
)
def test_a_cluster_goes_when_nobody_needs_it(
    of: RayClusterObject, by: RunOfCluster | None, said: str | None
) -> None:
    why = why_orphaned(of, by, now=NOW)
    assert (why is None) if said is None else (why is not None and said in why)


def test_a_cluster_of_others_names_no_run() -> None:
    assert run_in_labels(RayClusterObject(name="a")) is None
    assert run_in_labels(cluster()) == RUN
