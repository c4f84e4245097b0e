"""What we rely on in Kubernetes; the fake must answer as a real API server does.

Each was observed on a real kube-apiserver 1.36. Set `KUBERNETES_CONTRACT_KUBECONFIG` to hold
another one to it (`kubernetes_subject.py` says what it needs).
"""

import asyncio
import os
from collections.abc import AsyncIterator

import pytest

from prefect_ray_worker.errors import (
    AlreadyThere,
    Conflict,
    KubernetesError,
    ManifestRefused,
    NamespaceTerminating,
    ObjectMissing,
    ObjectReplaced,
    QuotaExceeded,
)
from prefect_ray_worker.kubernetes_api.models import RayClusterObject
from tests.contract.kubernetes_subject import VARIABLE, Subject, fake_subject, real_subject
from tests.fake_kubernetes import CRD, MISSING_CRD
from tests.waiting import wait_until

HELD = ["prefect.io/contract"]
OTHER_UID = "00000000-0000-0000-0000-000000000000"


@pytest.fixture(params=["fake", "real"] if VARIABLE in os.environ else ["fake"])
async def kube(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    """The fake Kubernetes, then a real one if there is one."""
    if request.param == "fake":
        if not CRD.exists():
            pytest.skip(MISSING_CRD)
        async with fake_subject() as subject:
            yield subject
    else:
        async with real_subject() as subject:
            yield subject


async def until_gone(kube: Subject, name: str) -> None:
    async def gone() -> bool:
        try:
            await kube.client.get_cluster(kube.namespace, name)
        except ObjectMissing:
            return True
        return False

    await wait_until(gone, timeout=30, description=f"{name} is gone")


async def test_of_eight_creations_at_once_one_succeeds(kube: Subject) -> None:
    outcomes = await asyncio.gather(
        *(kube.create("ray-same") for _ in range(8)), return_exceptions=True
    )
    assert sum(isinstance(outcome, RayClusterObject) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, AlreadyThere) for outcome in outcomes) == 7


async def test_a_created_cluster_has_an_identity_and_can_be_read_back(kube: Subject) -> None:
    created = await kube.create()
    read = await kube.client.get_cluster(kube.namespace, created.name)
    assert (read.uid, read.created_at) == (created.uid, created.created_at)
    assert created.uid
    assert created.created_at is not None
    assert created.suspended


async def test_lists_select_by_label_from_storage_and_from_the_cache(kube: Subject) -> None:
    ours = await kube.create(labels={"pool": "a", "attempt": "1"})
    await kube.create(labels={"pool": "b", "attempt": "1"})
    wanted = {"pool": "a", "attempt": "1"}
    found = await kube.client.list_clusters(kube.namespace, wanted)
    assert [cluster.uid for cluster in found] == [ours.uid]

    async def cached() -> bool:
        found = await kube.client.list_clusters(kube.namespace, wanted, cached=True)
        return [cluster.uid for cluster in found] == [ours.uid]

    await wait_until(cached, description="the cache has the cluster")


async def test_names_that_only_the_operator_refuses_are_accepted(kube: Subject) -> None:
    assert (await kube.create("r" * 60)).uid
    assert (await kube.create("1-digit-first")).uid


async def test_an_unknown_field_is_refused_and_named(kube: Subject) -> None:
    manifest = kube.manifest()
    manifest["spec"]["headGroupSpec"]["nonsense"] = True
    with pytest.raises(ManifestRefused) as caught:
        await kube.client.create_cluster(manifest)
    assert caught.value.field == "spec.headGroupSpec.nonsense"


async def test_a_value_of_the_wrong_type_is_refused_and_its_field_named(kube: Subject) -> None:
    manifest = kube.manifest()
    manifest["spec"]["suspend"] = "yes"
    with pytest.raises(ManifestRefused) as caught:
        await kube.client.create_cluster(manifest)
    assert caught.value.field == "spec.suspend"


async def test_a_missing_field_is_named(kube: Subject) -> None:
    manifest = kube.manifest()
    del manifest["spec"]["headGroupSpec"]["template"]
    with pytest.raises(ManifestRefused) as caught:
        await kube.client.create_cluster(manifest)
    assert caught.value.field == "spec.headGroupSpec.template"


async def test_a_dry_run_checks_and_stores_nothing(kube: Subject) -> None:
    manifest = kube.manifest()
    assert (await kube.client.dry_run(manifest)).name == manifest["metadata"]["name"]
    assert await kube.client.list_clusters(kube.namespace) == []
    manifest["spec"]["nonsense"] = 1
    with pytest.raises(ManifestRefused, match="nonsense"):
        await kube.client.dry_run(manifest)


async def test_a_path_that_is_not_served_is_answered_in_plain_text(kube: Subject) -> None:
    answer = await kube.raw.get(f"/apis/nothing.example/v1/namespaces/{kube.namespace}/things")
    assert (answer.status_code, answer.text.strip()) == (404, "404 page not found")
    assert answer.headers["content-type"].startswith("text/plain")


async def test_a_missing_object_and_a_missing_namespace_are_told_apart(kube: Subject) -> None:
    with pytest.raises(ObjectMissing) as caught:
        await kube.client.get_cluster(kube.namespace, "nothing")
    assert caught.value.resource == "rayclusters"
    manifest = kube.manifest()
    manifest["metadata"]["namespace"] = "no-such-namespace"
    with pytest.raises(ObjectMissing) as caught:
        await kube.client.create_cluster(manifest)
    assert caught.value.resource == "namespaces"


async def test_a_namespace_that_goes_takes_nothing_new(kube: Subject) -> None:
    held = await kube.create(finalizers=HELD)
    await kube.terminate_namespace()

    async def refused() -> bool:
        try:
            await kube.create()
        except NamespaceTerminating:
            return True
        except KubernetesError:
            return False
        return False

    await wait_until(refused, timeout=30, description="the namespace takes nothing new")
    await kube.let_go(held)


async def test_a_quota_holds_against_many_at_once(kube: Subject) -> None:
    await kube.create()
    await kube.limit_clusters(3)
    outcomes = await asyncio.gather(
        *(kube.create(f"ray-{i}") for i in range(12)), return_exceptions=True
    )
    assert sum(isinstance(outcome, RayClusterObject) for outcome in outcomes) == 2
    refusals = [outcome for outcome in outcomes if isinstance(outcome, QuotaExceeded)]
    assert len(refusals) == 10
    assert "exceeded quota" in str(refusals[0])


async def test_a_quota_is_checked_before_the_name(kube: Subject) -> None:
    """Admission comes before storage. Read in Kubernetes' source, not yet observed on a real one.

    So a cluster that fills the quota is not `AlreadyThere` for a worker that creates it again.
    """
    created = await kube.create("ray-first")
    await kube.limit_clusters(1)
    with pytest.raises(QuotaExceeded):
        await kube.create("ray-first")
    assert (await kube.client.get_cluster(kube.namespace, "ray-first")).uid == created.uid


async def test_an_annotation_changes_the_version_and_an_equal_one_does_not(kube: Subject) -> None:
    created = await kube.create()
    place = (kube.namespace, created.name)
    first = await kube.client.annotate(*place, {"joined-at": "1"}, uid=created.uid)
    assert first.annotations["joined-at"] == "1"
    assert first.resource_version != created.resource_version
    # With an operator the version can change meanwhile; the annotation is what we look at.
    again = await kube.client.annotate(*place, {"joined-at": "1"}, uid=created.uid)
    if kube.fake is not None:
        settled = await kube.client.get_cluster(*place)
        assert again.annotations == settled.annotations
        version = (await kube.client.annotate(*place, {"joined-at": "1"})).resource_version
        assert version == settled.resource_version
    removed = await kube.client.annotate(*place, {"joined-at": None})
    assert "joined-at" not in removed.annotations


async def test_an_annotation_of_another_uid_or_version_is_refused(kube: Subject) -> None:
    created = await kube.create()
    place = (kube.namespace, created.name)
    with pytest.raises(ObjectReplaced):
        await kube.client.annotate(*place, {"a": "1"}, uid=OTHER_UID)
    await kube.client.annotate(*place, {"a": "2"})
    with pytest.raises(Conflict):
        await kube.client.annotate(*place, {"a": "3"}, resource_version=created.resource_version)
    with pytest.raises(ObjectMissing):
        await kube.client.annotate(kube.namespace, "nothing", {"a": "1"})


async def test_a_cluster_under_deletion_can_be_annotated_and_says_that_it_goes(
    kube: Subject,
) -> None:
    created = await kube.create(finalizers=HELD)
    place = (kube.namespace, created.name)
    await kube.client.delete_cluster(*place)
    joined = await kube.client.annotate(*place, {"joined-at": "1"}, uid=created.uid)
    assert joined.is_terminating
    assert set(joined.finalizers) >= set(HELD)
    with pytest.raises(AlreadyThere):
        await kube.create(created.name)
    await kube.client.delete_cluster(*place)  # asking again is harmless
    await kube.let_go(created)
    await until_gone(kube, created.name)


async def test_a_deletion_with_preconditions_spares_another_and_a_changed_one(
    kube: Subject,
) -> None:
    created = await kube.create()
    place = (kube.namespace, created.name)
    with pytest.raises(ObjectReplaced):
        await kube.client.delete_cluster(*place, uid=OTHER_UID)
    await kube.client.annotate(*place, {"joined-at": "1"})
    with pytest.raises(Conflict):
        await kube.client.delete_cluster(
            *place, uid=created.uid, resource_version=created.resource_version
        )
    await kube.client.delete_cluster(*place, uid=created.uid)
    await until_gone(kube, created.name)
    with pytest.raises(ObjectMissing):
        await kube.client.delete_cluster(*place)


async def test_joining_and_sweeping_never_both_succeed(kube: Subject) -> None:
    for _ in range(12):
        seen = await kube.create(finalizers=HELD)
        place = (kube.namespace, seen.name)
        joined, swept = await asyncio.gather(
            kube.client.annotate(*place, {"joined-at": "now"}, uid=seen.uid),
            kube.client.delete_cluster(
                *place, uid=seen.uid, resource_version=seen.resource_version
            ),
            return_exceptions=True,
        )
        has_joined = isinstance(joined, RayClusterObject) and not joined.is_terminating
        assert not (has_joined and swept is None)
        await kube.let_go(seen)


async def test_the_fields_of_the_schema_are_served_without_a_right(kube: Subject) -> None:
    if kube.fake is not None:
        kube.fake.users["admin-token"].rules.clear()
    fields = await kube.client.served_fields()
    assert fields.has("spec.authOptions.mode")
    assert fields.has("spec.workerGroupSpecs.minReplicas")
    assert fields.has("status.conditions")
    assert not fields.has("spec.nonsense")


async def test_a_review_says_whether_a_right_is_there(kube: Subject) -> None:
    assert await kube.client.can_i("create", "ray.io", "rayclusters", kube.namespace)
    assert await kube.client.can_i("get", "", "pods", kube.namespace, subresource="log")


async def test_the_service_proxy_answers_itself_where_there_is_no_service(kube: Subject) -> None:
    path = f"/api/v1/namespaces/{kube.namespace}/services/nothing:dashboard/proxy"
    bare = await kube.raw.get(path)
    assert bare.status_code == 301
    answer = await kube.raw.get(f"{path}/api/version")
    assert answer.status_code == 404
    assert answer.json()["kind"] == "Status"
    assert answer.json()["reason"] == "NotFound"


async def test_the_service_proxy_answers_itself_where_no_pod_is_behind(kube: Subject) -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "empty"},
        "spec": {"selector": {"app": "none"}, "ports": [{"name": "dashboard", "port": 8265}]},
    }
    await kube.post(f"/api/v1/namespaces/{kube.namespace}/services", service)
    path = f"/api/v1/namespaces/{kube.namespace}/services/empty:dashboard/proxy/api/version"
    answer = await kube.raw.get(path)
    assert answer.status_code == 503
    assert answer.json()["kind"] == "Status"
    assert answer.headers["content-type"].startswith("application/json")
