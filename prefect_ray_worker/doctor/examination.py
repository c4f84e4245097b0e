"""`examine`: all checks in their order, each given out as soon as it is known."""

from collections.abc import AsyncGenerator, Mapping
from typing import Any

from pydantic import ValidationError

from prefect_ray_worker.doctor.check import Check, Grade, Subject, failed, ok, skipped
from prefect_ray_worker.doctor.clocks import compare_clocks
from prefect_ray_worker.doctor.cluster import look_at_cluster
from prefect_ray_worker.doctor.findings import read_findings
from prefect_ray_worker.doctor.inside import checks_of
from prefect_ray_worker.doctor.logs import read_output
from prefect_ray_worker.doctor.probing import ProbeJob, probe_request, ships
from prefect_ray_worker.doctor.records import look_at_records
from prefect_ray_worker.doctor.target import Target, find_target
from prefect_ray_worker.errors import JobsApiError, RayWorkerError
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.runs.shipping import ensure_shipped
from prefect_ray_worker.settings import RayWorkerSettings, worker_settings


async def examine(
    named: str | None, job_variables: Mapping[str, Any], *, wait: float
) -> AsyncGenerator[Check, None]:
    """Examine a cluster; the generator ends where nothing further can be looked at.

    Args:
        named: The address of a dashboard, the name of a work pool, or None for the cluster that
            the worker's settings name.
        job_variables: Set on top of the pool's.
        wait: Seconds that the probe job may take.
    """
    try:
        settings = worker_settings()
        target = await find_target(named, job_variables, settings)
    except (RayWorkerError, ValidationError) as exc:
        yield failed(Subject.TARGET, exc)
        return
    yield ok(Subject.TARGET, f"{target}.")
    try:
        async with JobsClient(target.connection) as client:
            async for check in _of_cluster(client, target, settings, wait):
                yield check
    except RayWorkerError as exc:  # the connection itself cannot be made, for example a ca_file
        yield failed(Subject.DASHBOARD, exc)


async def _of_cluster(
    client: JobsClient, target: Target, settings: RayWorkerSettings, wait: float
) -> AsyncGenerator[Check, None]:
    seen = await look_at_cluster(client)
    for check in seen.checks:
        yield check
    if seen.version is None:
        return
    shipped = await _ship(client, target, settings)
    yield shipped
    if shipped.grade is not Grade.FAILED:
        async for check in _of_probe(client, target, settings, wait):
            yield check
    yield await look_at_records(client)


async def _ship(client: JobsClient, target: Target, settings: RayWorkerSettings) -> Check:
    if not ships(target, settings):
        why = "The driver is not sent: the worker is told not to, or the job has an image."
        return skipped(Subject.DRIVER_UPLOAD, why)
    try:
        await ensure_shipped(client)
    except JobsApiError as exc:
        return failed(Subject.DRIVER_UPLOAD, exc)
    return ok(Subject.DRIVER_UPLOAD, "The driver is in the cluster's store.")


async def _of_probe(
    client: JobsClient, target: Target, settings: RayWorkerSettings, wait: float
) -> AsyncGenerator[Check, None]:
    try:
        request = await probe_request(target, settings)
    except RayWorkerError as exc:
        yield failed(Subject.PROBE_JOB, exc)
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
