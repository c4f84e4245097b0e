"""`examine`: runs all checks in their order, and gives each result as soon as it is known."""

from collections.abc import AsyncGenerator, Mapping
from typing import Any

from prefect_ray_worker.doctor.inside import checks_of, compare_clocks
from prefect_ray_worker.doctor.outside import check_finished_jobs, examine_dashboard, read_output
from prefect_ray_worker.doctor.probe_job import ProbeJob, probe_request, read_findings, ships
from prefect_ray_worker.doctor.report import (
    Check,
    CheckSubject,
    Grade,
    SourceSubject,
    failed,
    ok,
    skipped,
)
from prefect_ray_worker.doctor.target import KubeRayTarget, SourceTarget, Target, find_target
from prefect_ray_worker.errors import JobsApiError, RayWorkerError
from prefect_ray_worker.prefect_api.cluster_events import ClusterEvents
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.runs.submit import ensure_shipped
from prefect_ray_worker.settings import RayWorkerSettings, worker_settings


async def examine(
    named: str | None, job_variables: Mapping[str, Any], *, wait: float
) -> AsyncGenerator[Check, None]:
    """Examine a cluster; the generator ends where nothing further can be checked.

    Args:
        named: The address of a dashboard, the name of a work pool, or None for the cluster that
            the worker's settings name.
        job_variables: Override the pool's.
        wait: The most seconds until the probe job starts, and from there to its end.
    """
    try:
        settings = worker_settings()
        target = await find_target(named, job_variables, settings)
    except RayWorkerError as exc:
        yield failed(CheckSubject.TARGET, exc)
        return
    yield ok(CheckSubject.TARGET, f"{target}.")
    if isinstance(target, KubeRayTarget):
        # Imported here: it needs the extra `kuberay`.
        from prefect_ray_worker.doctor.kuberay import examine_kuberay

        async for check in examine_kuberay(target.asked, wait=wait):
            yield check
        return
    if isinstance(target, SourceTarget):
        async for check in _of_source(target):
            yield check
        return
    try:
        async with JobsClient(target.connection) as client:
            async for check in _of_cluster(client, target, settings, wait):
                yield check
    except (
        RayWorkerError
    ) as exc:  # the connection cannot be set up, for example for a missing ca_file
        yield failed(CheckSubject.DASHBOARD, exc)


async def _of_source(target: SourceTarget) -> AsyncGenerator[Check, None]:
    from prefect_ray_worker.clusters.third_party import PluginClusters

    subject = SourceSubject.INSTALLED
    source = PluginClusters(ClusterEvents())
    try:
        async for said in source.examine(target.configuration):
            yield ok(subject, said)
            subject = SourceSubject.OWN
    except RayWorkerError as exc:
        yield failed(subject, exc)
    finally:
        await source.close(lambda _: None, frozenset())


async def _of_cluster(
    client: JobsClient, target: Target, settings: RayWorkerSettings, wait: float
) -> AsyncGenerator[Check, None]:
    answer = await examine_dashboard(client)
    for check in answer.checks:
        yield check
    if answer.version is None:
        return
    shipped = await _ship(client, target, settings)
    yield shipped
    if shipped.grade is not Grade.FAILED:
        async for check in _of_probe(client, target, settings, wait):
            yield check
    yield await check_finished_jobs(client)


async def _ship(client: JobsClient, target: Target, settings: RayWorkerSettings) -> Check:
    if not ships(target, settings):
        why = "The driver is not sent: a setting of the worker says so, or the job has an image."
        return skipped(CheckSubject.DRIVER_UPLOAD, why)
    try:
        await ensure_shipped(client)
    except JobsApiError as exc:
        return failed(CheckSubject.DRIVER_UPLOAD, exc)
    return ok(CheckSubject.DRIVER_UPLOAD, "The driver is in the cluster's store.")


async def _of_probe(
    client: JobsClient, target: Target, settings: RayWorkerSettings, wait: float
) -> AsyncGenerator[Check, None]:
    try:
        request = await probe_request(target, settings, wait)
    except RayWorkerError as exc:
        yield failed(CheckSubject.PROBE_JOB, exc)
        return
    async with ProbeJob(client, request) as job:
        probed = await job.run(wait)
        yield probed.check
        if probed.job is not None:
            output = await read_output(target.connection, probed.job)
            findings = read_findings(output.text)
            if output.text:
                for check in checks_of(findings, ships=ships(target, settings)):
                    yield check
                yield compare_clocks(probed, findings)
            yield output.check
    if job.left is not None:
        yield job.left
