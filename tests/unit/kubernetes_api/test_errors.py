"""Each way in which a request can fail, and the error that says so."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from prefect_ray_worker import errors
from prefect_ray_worker.kubernetes_api.answers import error_from_answer
from prefect_ray_worker.kubernetes_api.client import KubernetesClient
from prefect_ray_worker.kubernetes_api.credentials import Kubeconfig
from prefect_ray_worker.kubernetes_api.request import cluster_request
from tests.fake_kubernetes import FakeKubernetes, Fault, Kind, a_manifest
from tests.fake_kubernetes.statuses import Refusal

Request = Callable[[KubernetesClient], Awaitable[Any]]

REQUESTS: dict[str, Request] = {
    "create": lambda k: k.create_cluster(a_manifest("new")),
    "dry_run": lambda k: k.dry_run(a_manifest("new")),
    "get": lambda k: k.get_cluster("ray", "old"),
    "list": lambda k: k.list_clusters("ray"),
    "annotate": lambda k: k.annotate("ray", "old", {"a": "b"}),
    "delete": lambda k: k.delete_cluster("ray", "old"),
    "pods": lambda k: k.pods("ray", "old"),
    "events": lambda k: k.events("ray", "0"),
    "log": lambda k: k.pod_log("ray", "a-pod", 50),
    "secret": lambda k: k.secret_value("ray", "old", "auth_token"),
    "fields": lambda k: k.served_fields(),
    "review": lambda k: k.can_i("get", "ray.io", "rayclusters", "ray"),
    "version": lambda k: k.version(),
}
WRITES = {"create", "annotate", "delete"}


def status(code: int, reason: str, message: str, **details: Any) -> Fault:
    body = {
        "kind": "Status",
        "apiVersion": "v1",
        "reason": reason,
        "message": message,
        "details": details,
        "code": code,
    }
    return Fault(
        "*", "", Kind.STATUS, None, code, json.dumps(body), content_type="application/json"
    )


def text(code: int, body: str, kind: str = "text/plain") -> Fault:
    return Fault("*", "", Kind.STATUS, None, code, body, content_type=kind)


FAULTS = {
    "401": (status(401, "Unauthorized", "Unauthorized"), "KubernetesUnauthorized"),
    "403": (status(403, "Forbidden", "no"), "KubernetesForbidden"),
    "404": (status(404, "NotFound", "no", kind="x"), "ObjectMissing"),
    "410": (status(410, "Expired", "too old"), "KubernetesUnreachable"),
    "429": (status(429, "TooManyRequests", "later"), "KubernetesUnreachable"),
    "500": (status(500, "InternalError", "etcd"), "unclear"),
    "504": (status(504, "Timeout", "timed out"), "unclear"),
    "load balancer": (text(502, "<html>bad gateway", "text/html"), "unclear"),
    "another server": (text(404, "nothing here"), "NotKubernetes"),
    "redirect": (text(302, "go away"), "NotKubernetes"),
    "login page": (Fault("*", "", Kind.LOGIN_PAGE, None), "NotKubernetes"),
    "dropped": (Fault("*", "", Kind.DROP, None), "unclear"),
    "acted, then 500": (Fault("*", "", Kind.ACT_THEN_500, None), "unclear"),
    "half a body": (Fault("*", "", Kind.HALF_BODY, None), "unclear"),
}


@pytest.mark.parametrize("name", REQUESTS)
async def test_failure_of_a_request_has_its_error(
    kubernetes: FakeKubernetes, kubernetes_client: KubernetesClient, name: str
) -> None:
    pod = {"metadata": {"name": "a-pod"}, "spec": {"containers": [{"name": "a"}]}}
    kubernetes.store.create("pods", "ray", pod)
    kubernetes.store.create("secrets", "ray", {"metadata": {"name": "old"}, "data": {}})
    for what, (fault, expected) in FAULTS.items():
        if (name, what) == ("log", "login page"):
            continue  # a log is any text
        with suppress(Refusal):  # where the request before this one deleted it, or did not
            kubernetes.store.create("rayclusters", "ray", a_manifest("old"))
        kubernetes.faults.clear()
        kubernetes.faults.add(fault)
        with pytest.raises(errors.KubernetesError) as caught:
            await REQUESTS[name](kubernetes_client)
        unclear = "KubernetesUnclear" if name in WRITES else "KubernetesUnreachable"
        wanted = unclear if expected == "unclear" else expected
        assert type(caught.value).__name__ == wanted, f"{what}: {caught.value}"
        assert "worker-token" not in str(caught.value)


async def test_a_server_that_is_not_there_has_certainly_not_acted(
    kubernetes: FakeKubernetes, kubernetes_client: KubernetesClient
) -> None:
    await kubernetes.stop_listening()
    for request in REQUESTS.values():
        with pytest.raises(errors.KubernetesUnreachable) as caught:
            await request(kubernetes_client)
        assert type(caught.value) is errors.KubernetesUnreachable


async def test_kuberay_that_is_not_installed_is_told_from_a_missing_object(
    kubernetes: FakeKubernetes, kubernetes_client: KubernetesClient
) -> None:
    kubernetes.has_kuberay = False
    for name in ("create", "get", "list", "annotate", "delete", "fields"):
        with pytest.raises(errors.KubeRayMissing, match="Install the KubeRay operator"):
            await REQUESTS[name](kubernetes_client)


@pytest.mark.parametrize(
    ("name", "verb", "resource"),
    [
        ("create", "create", "rayclusters.ray.io"),
        ("get", "get", "rayclusters.ray.io"),
        ("list", "list", "rayclusters.ray.io"),
        ("annotate", "patch", "rayclusters.ray.io"),
        ("delete", "delete", "rayclusters.ray.io"),
        ("pods", "list", "pods"),
        ("events", "list", "events"),
        ("log", "get", "pods/log"),
        ("secret", "get", "secrets"),
    ],
)
async def test_a_missing_right_is_named(
    kubernetes: FakeKubernetes,
    kubernetes_client: KubernetesClient,
    name: str,
    verb: str,
    resource: str,
) -> None:
    kubernetes.worker.take_away(resource.partition(".")[0], verb)
    with pytest.raises(errors.KubernetesForbidden) as caught:
        await REQUESTS[name](kubernetes_client)
    error = caught.value
    assert (error.verb, error.resource, error.namespace) == (verb, resource, "ray")
    for word in (verb, resource.partition(".")[0], "Role"):
        assert word in str(error)


REFUSALS = [
    (403, "Forbidden", "exceeded quota: cap, requested: 1", {}, errors.QuotaExceeded),
    (
        403,
        "Forbidden",
        'admission webhook "vraycluster.kb.io" denied the request: name too long',
        {},
        errors.ManifestRefused,
    ),
    (
        403,
        "Forbidden",
        "unable to create new content",
        {"causes": [{"reason": "NamespaceTerminating"}]},
        errors.NamespaceTerminating,
    ),
    (409, "AlreadyExists", "already exists", {}, errors.AlreadyThere),
    # The quota's object was changed by another creation: nothing was created.
    (
        409,
        "Conflict",
        "on resourcequotas",
        {"kind": "resourcequotas"},
        errors.KubernetesUnreachable,
    ),
    (
        400,
        "BadRequest",
        'strict decoding error: unknown field "spec.x"',
        {},
        errors.ManifestRefused,
    ),
    (422, "Invalid", "spec.x: Required", {"causes": [{"field": "spec.x"}]}, errors.ManifestRefused),
]


@pytest.mark.parametrize(("code", "reason", "message", "details", "expected"), REFUSALS)
async def test_refusal_of_a_creation_has_its_error(
    kubernetes: FakeKubernetes,
    kubernetes_client: KubernetesClient,
    code: int,
    reason: str,
    message: str,
    details: dict[str, Any],
    expected: type[Exception],
) -> None:
    kubernetes.faults.add(status(code, reason, message, **details))
    with pytest.raises(expected) as caught:
        await REQUESTS["create"](kubernetes_client)
    assert type(caught.value) is expected
    if isinstance(caught.value, errors.ManifestRefused) and code != 403:
        assert caught.value.field == "spec.x"


@pytest.mark.parametrize(
    "value",
    [
        '"s3cret"',
        '"a \\"s3cret\\": b"',
        '{"name":"KEY","value":"s3cret: a"}',
        '[]core.EnvVar{core.EnvVar{Name:"KEY", Value:"s3cret"}}',
        "s3cret",
        "s3cret:with-a-colon",
    ],
)
@pytest.mark.parametrize("detail", [": must be a number", ""])
def test_the_value_that_is_refused_is_not_shown(value: str, detail: str) -> None:
    message = f'RayCluster "a" is invalid: spec.x: Invalid value: {value}{detail}'
    body = json.dumps({"kind": "Status", "apiVersion": "v1", "message": message}).encode()
    request = cluster_request("create", "ray", "a")
    error = error_from_answer(422, body, server="https://kube", request=request)
    assert "s3cret" not in str(error)
    assert "spec.x" in str(error)
    assert detail in str(error)


async def test_an_answer_that_is_too_long_is_not_read(
    kubernetes: FakeKubernetes, kubernetes_client: KubernetesClient
) -> None:
    kubernetes.faults.add(text(200, "x" * (40 << 20), "application/json"))
    with pytest.raises(errors.NotKubernetes, match="more than 32768 KiB"):
        await kubernetes_client.get_cluster("ray", "old")


async def test_an_answer_of_another_shape_is_not_shown(
    kubernetes: FakeKubernetes, kubernetes_client: KubernetesClient
) -> None:
    secret = json.dumps({"data": {"auth_token": ["s3cret"]}})
    kubernetes.faults.add(text(200, secret, "application/json"))
    with pytest.raises(errors.NotKubernetes) as caught:
        await kubernetes_client.secret_value("ray", "old", "auth_token")
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_a_request_that_hangs_can_be_cancelled(
    kubernetes: FakeKubernetes, kubernetes_client: KubernetesClient
) -> None:
    kubernetes.faults.add(Fault("GET", "/version", Kind.HANG, None))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(kubernetes_client.version(), 0.2)


async def test_a_name_that_would_change_the_path_is_refused(
    kubernetes_client: KubernetesClient,
) -> None:
    for name in ("../secrets/a", "a/b", "..", "a?b", ""):
        with pytest.raises(errors.InvalidConfiguration, match="not a name"):
            await kubernetes_client.get_cluster("ray", name)
        with pytest.raises(errors.InvalidConfiguration, match="not a name"):
            await kubernetes_client.get_cluster(name, "a")


async def test_an_expired_token_says_so(kubernetes: FakeKubernetes) -> None:
    config = Kubeconfig.of_block(kubernetes.kubeconfig("an-old-token"))
    async with KubernetesClient(config) as client:
        with pytest.raises(errors.KubernetesUnauthorized, match="Renew the token") as caught:
            await client.version()
    assert "an-old-token" not in str(caught.value)
