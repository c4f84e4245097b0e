"""The doctor's checks of Kubernetes and KubeRay, each against the trouble that it finds."""

from typing import Any

import pytest

from prefect_ray_worker.config.kuberay import KubeRay
from prefect_ray_worker.doctor import report
from prefect_ray_worker.doctor.kuberay import examine_kuberay
from prefect_ray_worker.doctor.report import Check, Grade, KubeRaySubject
from tests.fake_kubernetes import CRD, MISSING_CRD, FakeKubernetes, Fault, Kind, Script

pytestmark = pytest.mark.skipif(not CRD.exists(), reason=MISSING_CRD)


def asked(kubernetes: FakeKubernetes, token: str = "worker-token", **fields: Any) -> KubeRay:
    config = {"config": kubernetes.kubeconfig(token), "context_name": "fake"}
    return KubeRay(image="rayproject/ray:2.60.0-py311", kubeconfig=config, **fields)  # type: ignore[arg-type]


async def examined(asked: KubeRay, wait: float = 3.0) -> dict[KubeRaySubject, Check]:
    checks = [check async for check in examine_kuberay(asked, wait=wait)]
    report.summary_of(checks)
    return {check.subject: check for check in checks}  # type: ignore[misc]


def grades(checks: dict[KubeRaySubject, Check]) -> list[Grade]:
    return [checks[subject].grade for subject in KubeRaySubject if subject in checks]


async def test_all_is_well_and_nothing_is_left(kubernetes: FakeKubernetes) -> None:
    checks = await examined(asked(kubernetes))
    assert list(checks) == list(KubeRaySubject)
    assert grades(checks) == [Grade.OK] * 5, checks
    assert report.summary_of(list(checks.values())) == "5 ok"
    assert [name for name in kubernetes.clusters() if name not in _going(kubernetes)] == []
    assert not any(path.endswith("/pods") and m == "POST" for m, path in kubernetes.requests)


async def test_a_kubernetes_that_is_away_is_all_that_is_said(kubernetes: FakeKubernetes) -> None:
    await kubernetes.stop_listening()
    checks = await examined(asked(kubernetes))
    assert grades(checks) == [Grade.FAILED]
    assert "No answer from Kubernetes" in str(checks[KubeRaySubject.KUBERNETES_API])


async def test_credentials_that_have_expired_are_named(kubernetes: FakeKubernetes) -> None:
    checks = await examined(asked(kubernetes, "old"))
    assert "HTTP 401" in str(checks[KubeRaySubject.KUBERNETES_API])


async def test_kuberay_that_is_not_installed_is_named(kubernetes: FakeKubernetes) -> None:
    kubernetes.has_kuberay = False
    checks = await examined(asked(kubernetes))
    assert grades(checks) == [Grade.OK, Grade.FAILED]
    assert "Install the KubeRay operator" in checks[KubeRaySubject.FIELDS].advice


async def test_an_older_kuberay_without_tokens_is_named() -> None:
    async with FakeKubernetes(left_out=("spec.authOptions",)) as kubernetes:
        checks = await examined(asked(kubernetes))
    assert grades(checks) == [Grade.OK, Grade.FAILED]
    assert "spec.authOptions" in checks[KubeRaySubject.FIELDS].says


async def test_missing_rights_are_listed(kubernetes: FakeKubernetes) -> None:
    kubernetes.worker.take_away("rayclusters", "list")
    kubernetes.worker.take_away("services/proxy")
    checks = await examined(asked(kubernetes))
    said = checks[KubeRaySubject.RIGHTS]
    assert said.grade is Grade.FAILED
    assert "list rayclusters.ray.io" in said.says
    assert "update services/proxy" in said.says


async def test_namespace_that_the_setting_does_not_name_is_refused_as_it_is_for_runs(
    kubernetes: FakeKubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All was well, and the worker refused each run."""
    setting = "PREFECT_INTEGRATIONS_RAY_WORKER_KUBERAY_NAMESPACES"
    monkeypatch.setenv(setting, '["other"]')
    checks = await examined(asked(kubernetes))
    assert grades(checks) == [Grade.OK, Grade.FAILED]
    said = str(checks[KubeRaySubject.DRY_RUN])
    assert "'ray', and this worker makes clusters in other only" in said
    assert setting in said


async def test_a_worker_inside_needs_no_right_on_the_proxy(kubernetes: FakeKubernetes) -> None:
    kubernetes.worker.take_away("services/proxy")
    checks = await examined(asked(kubernetes, access="service"))
    assert checks[KubeRaySubject.RIGHTS].grade is Grade.OK


async def test_a_field_that_is_refused_is_named(kubernetes: FakeKubernetes) -> None:
    spec = {"headGroupSpec": {"template": {"spec": {"containers": [{"name": "a", "imagee": "x"}]}}}}
    checks = await examined(asked(kubernetes, manifest=spec))
    said = checks[KubeRaySubject.DRY_RUN]
    assert said.grade is Grade.FAILED
    assert "imagee" in str(said)


async def test_an_operator_that_is_silent_is_named_and_the_probe_is_deleted(
    kubernetes: FakeKubernetes,
) -> None:
    kubernetes.scripts.default = Script(ignored=True)
    checks = await examined(asked(kubernetes), wait=0.6)
    said = checks[KubeRaySubject.OPERATOR]
    assert said.grade is Grade.FAILED
    assert "watches this namespace" in said.advice
    assert set(kubernetes.clusters()) <= _going(kubernetes)


async def test_the_operators_refusal_is_told(kubernetes: FakeKubernetes) -> None:
    kubernetes.scripts.default = Script(refused="worker group cpu has negative minReplicas -1")
    checks = await examined(asked(kubernetes))
    assert "negative minReplicas" in checks[KubeRaySubject.OPERATOR].says


async def test_a_quota_that_is_used_up_is_no_failure(kubernetes: FakeKubernetes) -> None:
    kubernetes.limit(0)
    checks = await examined(asked(kubernetes))
    assert checks[KubeRaySubject.DRY_RUN].grade is Grade.SKIPPED
    assert "exceeded quota" in checks[KubeRaySubject.DRY_RUN].says


async def test_a_probe_that_cannot_be_deleted_is_named(kubernetes: FakeKubernetes) -> None:
    kubernetes.faults.add(Fault("DELETE", "/rayclusters/", Kind.STATUS, None, status=500))
    checks = await examined(asked(kubernetes))
    said = checks[KubeRaySubject.OPERATOR]
    (name,) = kubernetes.clusters()
    assert said.grade is Grade.WARNING
    assert f"delete raycluster {name}" in said.advice


async def test_a_probe_that_stays_hides_no_failure(kubernetes: FakeKubernetes) -> None:
    """The warning took the place of the failure, and the exit code was 0."""
    kubernetes.scripts.default = Script(ignored=True)
    kubernetes.faults.add(Fault("DELETE", "/rayclusters/", Kind.STATUS, None, status=500))
    checks = [check async for check in examine_kuberay(asked(kubernetes), wait=0.6)]
    assert [check.grade for check in checks[-2:]] == [Grade.FAILED, Grade.WARNING]
    assert {check.subject for check in checks[-2:]} == {KubeRaySubject.OPERATOR}
    assert not report.is_well(checks)


def _going(kubernetes: FakeKubernetes) -> set[str]:
    clusters = kubernetes.store.all("rayclusters", "ray")
    return {c["metadata"]["name"] for c in clusters if "deletionTimestamp" in c["metadata"]}


@pytest.mark.parametrize(
    ("image", "take"),
    [
        ("rayproject/ray:2.52.1-py310", "rayproject/ray:2.52.1-py311"),
        ("registry:5000/flows/ray:2.60.0-py39-gpu@sha256:abc", "rayproject/ray:2.60.0-py311"),
        ("flows:main-py310", "rayproject/ray:VERSION-py311"),
    ],
)
async def test_image_with_an_old_python_is_named_with_the_one_to_take(
    kubernetes: FakeKubernetes, image: str, take: str
) -> None:
    changed = {"image": image, "ray_version": "2.60.0"}
    checks = await examined(asked(kubernetes).model_copy(update=changed))
    check = checks[KubeRaySubject.DRY_RUN]
    assert check.grade is Grade.FAILED
    assert image in check.says
    assert take in check.advice
