"""Checks for a pool whose clusters KubeRay makes: what a run needs of Kubernetes and the operator.

Nothing that costs anything is left behind: the probe is a suspended RayCluster, which has no pods.
If this process is killed, the sweep of a worker deletes it, after ten minutes.
"""

import json
import re
import uuid
from collections.abc import AsyncGenerator, Iterable
from typing import Any

import anyio

from prefect_ray_worker._version import OLDEST_PYTHON
from prefect_ray_worker.clusters.kuberay.manifest import PROBE_LABELS, ray_cluster
from prefect_ray_worker.clusters.kuberay.places import allowed_namespace
from prefect_ray_worker.config.kuberay import KubeRay
from prefect_ray_worker.doctor.report import (
    Check,
    Grade,
    KubeRaySubject,
    failed,
    ok,
    skipped,
    warning,
)
from prefect_ray_worker.errors import (
    InvalidConfiguration,
    KubernetesError,
    ObjectMissing,
    QuotaExceeded,
    RayWorkerError,
)
from prefect_ray_worker.kubernetes_api.client import KubernetesClient
from prefect_ray_worker.kubernetes_api.credentials import Kubeconfig
from prefect_ray_worker.shared.diagnosis import newer_image
from prefect_ray_worker.shared.ids import submission_id

# The operator acts within a second; it may be busy with other clusters.
_OPERATOR_SECONDS = 60.0
_LOOK_SECONDS = 0.5
_CLEAN_UP_SECONDS = 20.0

# How the tags of Ray's images name their Python, and those that are built on them.
_OLD_PYTHON = re.compile(
    r'"image": "(?P<image>[^"]+:(?P<ray>\d+\.\d+\.\d+)?[^"]*-py3(?P<minor>8|9|10)(?!\d)[^"]*)"'
)

_Right = tuple[str, str, str, str]
"""Verb, group, resource and subresource."""
_SECRETS: _Right = ("get", "", "secrets", "")
_ALWAYS: tuple[_Right, ...] = (
    *((verb, "ray.io", "rayclusters", "") for verb in ("create", "get", "list", "delete")),
    ("list", "", "pods", ""),
    ("get", "", "pods", "log"),
    ("list", "", "events", ""),
)
_THROUGH_THE_PROXY: tuple[_Right, ...] = tuple(
    (verb, "", "services", "proxy") for verb in ("get", "create", "update")
)


# Runs join a shared cluster by a patch, and it outlives the records of their jobs.
_TO_SHARE: _Right = ("patch", "ray.io", "rayclusters", "")
_TO_SHARE_THROUGH_THE_PROXY: _Right = ("delete", "", "services", "proxy")


async def examine_kuberay(asked: KubeRay, *, wait: float) -> AsyncGenerator[Check, None]:
    """Examine Kubernetes and KubeRay for the runs of a pool.

    The generator ends where nothing further can be checked.

    Args:
        asked: The pool's job variable `kuberay`.
        wait: The most seconds to wait for the operator, up to 60.
    """
    config = asked.kubeconfig
    kubeconfig = None if config is None else Kubeconfig.of_block(config.config, config.context_name)
    try:
        async with KubernetesClient(kubeconfig) as client:
            async for check in _of_server(client, asked, wait):
                yield check
    except RayWorkerError as exc:  # there are no credentials
        yield failed(KubeRaySubject.KUBERNETES_API, exc)


async def _of_server(
    client: KubernetesClient, asked: KubeRay, wait: float
) -> AsyncGenerator[Check, None]:
    namespace = asked.namespace or client.access.namespace
    try:
        version = await client.version()
    except KubernetesError as exc:
        yield failed(KubeRaySubject.KUBERNETES_API, exc)
        return
    place = f"{client.access.server}, namespace {namespace!r}"
    yield ok(KubeRaySubject.KUBERNETES_API, f"Kubernetes {version} answers at {place}.")
    try:
        manifest = _manifest(asked, allowed_namespace(namespace))
    except InvalidConfiguration as exc:
        yield failed(KubeRaySubject.DRY_RUN, exc)
        return
    installed = await _check_fields(client, manifest)
    yield installed
    if installed.grade is Grade.FAILED:
        return
    yield await _check_rights(client, asked, manifest, namespace)
    accepted = await _check_manifest(client, manifest)
    yield accepted
    if accepted.grade is not Grade.FAILED:
        for check in await _check_operator(client, manifest, min(wait, _OPERATOR_SECONDS)):
            yield check


def _manifest(asked: KubeRay, namespace: str) -> dict[str, Any]:
    job_id = submission_id(uuid.uuid4(), uuid.uuid4())
    return ray_cluster(asked, job_id=job_id, pool_id="", namespace=namespace)


async def _check_fields(client: KubernetesClient, manifest: dict[str, Any]) -> Check:
    try:
        served = await client.served_fields()
    except KubernetesError as exc:
        return failed(KubeRaySubject.FIELDS, exc)
    missing = [field for field in _fields_of(manifest["spec"]) if not served.has(field)]
    if missing:
        return failed(
            KubeRaySubject.FIELDS,
            f"The installed RayCluster has no {', '.join(missing)}.",
            "Update KubeRay with its custom resource definitions: 1.5.1 for a token, 1.6 for "
            "kuberay.token_secret.",
        )
    return ok(KubeRaySubject.FIELDS, "KubeRay is installed, with all fields that a run needs.")


def _fields_of(spec: dict[str, Any]) -> Iterable[str]:
    for name, value in spec.items():
        yield f"spec.{name}"
        if name == "authOptions" and isinstance(value, dict):
            yield from (f"spec.{name}.{inner}" for inner in value)  # pyright: ignore[reportUnknownVariableType]


async def _check_rights(
    client: KubernetesClient, asked: KubeRay, manifest: dict[str, Any], namespace: str
) -> Check:
    needed = [*_ALWAYS, *([_TO_SHARE] if asked.scope == "shared" else [])]
    is_inside = asked.access == "service" or (asked.access == "auto" and client.access.is_inside)
    if not is_inside and asked.address_template is None:
        needed += _THROUGH_THE_PROXY
        needed += [_TO_SHARE_THROUGH_THE_PROXY] if asked.scope == "shared" else []
    if (manifest["spec"].get("authOptions") or {}).get("mode") == "token":
        needed.append(_SECRETS)
    missing: list[str] = []
    try:
        for verb, group, resource, part in needed:
            # A Role can allow the pool's own Secret alone.
            name = (asked.token_secret or "") if resource == "secrets" else ""
            allowed = await client.can_i(
                verb, group, resource, namespace, subresource=part, name=name
            )
            if not allowed:
                thing = f"{resource}/{part}" if part else resource
                missing.append(f"{verb} {thing}{f'.{group}' if group else ''}")
    except KubernetesError as exc:
        return failed(KubeRaySubject.RIGHTS, exc)
    if missing:
        return failed(
            KubeRaySubject.RIGHTS,
            f"The worker must not {', '.join(missing)} in namespace {namespace!r}.",
            "Grant this in its Role, as in deployment-templates/kuberay-"
            f"{'shared' if asked.scope == 'shared' else 'per-run'}/rbac.yaml.",
        )
    return ok(KubeRaySubject.RIGHTS, f"All {len(needed)} rights are there.")


async def _check_manifest(client: KubernetesClient, manifest: dict[str, Any]) -> Check:
    try:
        await client.dry_run(manifest)
    except QuotaExceeded as exc:
        return _full(KubeRaySubject.DRY_RUN, exc)
    except KubernetesError as exc:
        return failed(KubeRaySubject.DRY_RUN, exc)
    if found := _OLD_PYTHON.search(json.dumps(manifest["spec"])):
        needed = ".".join(map(str, OLDEST_PYTHON))
        return failed(
            KubeRaySubject.DRY_RUN,
            f"The image {found['image']} has Python 3.{found['minor']} by its name, and the driver "
            f"needs {needed}.",
            newer_image(OLDEST_PYTHON, found["ray"] or ""),
        )
    return ok(KubeRaySubject.DRY_RUN, "The API server accepts the RayCluster of a run.")


async def _check_operator(
    client: KubernetesClient, manifest: dict[str, Any], seconds: float
) -> list[Check]:
    probe = probe_of(manifest)
    namespace, name = probe["metadata"]["namespace"], probe["metadata"]["name"]
    left: Check | None = None
    try:
        check = await _answer_of_operator(client, probe, seconds)
    finally:
        # Also after a creation whose answer was lost.
        with anyio.CancelScope(shield=True):
            left = await _deleted(client, namespace, name)
    if left is None:
        return [check]
    # What is left behind is no reason to hide that runs fail.
    return [left] if check.grade is Grade.OK else [check, left]


def probe_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return a RayCluster that has no pods, and that no worker of a pool takes for its own."""
    metadata = {
        "name": f"ray-doctor-{uuid.uuid4().hex[:8]}",
        "namespace": manifest["metadata"]["namespace"],
        "labels": dict(PROBE_LABELS),
    }
    return {**manifest, "metadata": metadata, "spec": {**manifest["spec"], "suspend": True}}


async def _answer_of_operator(
    client: KubernetesClient, probe: dict[str, Any], seconds: float
) -> Check:
    try:
        await client.create_cluster(probe)
        return await _sign_of_operator(client, probe["metadata"], seconds)
    except QuotaExceeded as exc:
        return _full(KubeRaySubject.OPERATOR, exc)
    except KubernetesError as exc:
        return failed(KubeRaySubject.OPERATOR, exc)


async def _sign_of_operator(
    client: KubernetesClient, metadata: dict[str, Any], seconds: float
) -> Check:
    namespace, name = metadata["namespace"], metadata["name"]
    began = anyio.current_time()
    while anyio.current_time() - began < seconds:
        cluster = await client.get_cluster(namespace, name)
        took = anyio.current_time() - began
        if cluster.is_true("RayClusterSuspended"):
            return ok(KubeRaySubject.OPERATOR, f"The operator acted after {took:.1f} s.")
        for event in await client.events(namespace, cluster.uid):
            if event.reason.startswith("InvalidRayCluster"):
                return failed(
                    KubeRaySubject.OPERATOR,
                    f"The operator refuses the RayCluster: {event.message}",
                    "Correct the job variable kuberay.",
                )
        await anyio.sleep(_LOOK_SECONDS)
    return failed(
        KubeRaySubject.OPERATOR,
        f"The operator did not act on a RayCluster in {namespace!r} within {seconds:g} s.",
        "Check that the KubeRay operator runs, and that it watches this namespace.",
    )


async def _deleted(client: KubernetesClient, namespace: str, name: str) -> Check | None:
    """Delete the probe; return what to say if it stays."""
    try:
        with anyio.fail_after(_CLEAN_UP_SECONDS):
            await client.delete_cluster(namespace, name)
    except ObjectMissing:
        return None
    except (KubernetesError, TimeoutError) as exc:
        return warning(
            KubeRaySubject.OPERATOR,
            f"The probe {namespace}/{name} was not deleted ({str(exc) or 'no answer'}).",
            f"It has no pods. Delete it: kubectl -n {namespace} delete raycluster {name}",
        )
    return None


def _full(subject: KubeRaySubject, exc: QuotaExceeded) -> Check:
    return skipped(subject, f"The quota is used up now, so runs wait in line: {exc}")
