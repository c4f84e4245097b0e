"""Where a bundle goes that is too large for its flow run: to result storage, or to Ray's own store.

Both get it before the run exists, so what fails is an exception of the call.
"""

import hashlib
import io
import zipfile
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import WorkPool
from prefect.filesystems import WritableFileSystem
from prefect.utilities.asyncutils import run_coro_as_sync

from prefect_ray_worker.bundles.carriers import header_of_stored
from prefect_ray_worker.bundles.header import BundleHeader
from prefect_ray_worker.bundles.packing import PackedBundle
from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.errors import JobsApiError
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection, normalize_address
from prefect_ray_worker.ray_api.tokens import TokenSource
from prefect_ray_worker.settings import worker_settings

# `PUT /api/packages/gcs/` answers 413 beyond (Ray 2.60). The head holds it in memory.
_MOST_BYTES_IN_RAY = 100 * 1024 * 1024
_TIMESTAMP = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class LargeBundle:
    """A bundle that has been stored.

    Attributes:
        header: Says where.
        package: URI in Ray's store, which the job has to name in `py_modules`; None if it is
            elsewhere.
    """

    header: BundleHeader
    package: str | None = None


def store(
    bundle: PackedBundle,
    storage: WritableFileSystem | None,
    pool: WorkPool,
    variables: dict[str, Any],
) -> LargeBundle:
    """Store a large bundle where a driver finds it.

    A call asks Ray for nothing else, and for this only where there is no result storage.

    Args:
        bundle: The bundle.
        storage: The saved block in which the pool keeps results.
        pool: The work pool.
        variables: The job variables of the call.

    Raises:
        BundleRefused: No way takes it; the message names the largest files.
    """
    if storage is not None:
        return LargeBundle(header_of_stored(bundle.content, storage))
    connection = run_coro_as_sync(_connection_of(pool, variables))
    if connection is None:
        raise bundle.too_large(
            "The store of the Ray cluster would take more, but this process knows no address of "
            "the cluster (job variable address or cluster)."
        )
    # Not after its content: Ray deletes a package with the last job that uses it (2.60), when
    # another call with equal content may still wait for a worker.
    name = f"_ray_pkg_bundle_{uuid4().hex}.zip"
    package = _package(bundle.content)
    if len(package) > _MOST_BYTES_IN_RAY:
        mib = _MOST_BYTES_IN_RAY // (1024 * 1024)
        raise bundle.too_large(f"The store of the Ray cluster takes {mib} MiB at most.")
    try:
        run_coro_as_sync(_put(connection, name, package))
    except JobsApiError as exc:
        raise bundle.too_large(f"The store of the Ray cluster did not take it: {exc}") from exc
    header = BundleHeader.of(bundle.content, carrier="cluster", path=_file_of(bundle.content))
    return LargeBundle(header, f"gcs://{name}")


async def _connection_of(pool: WorkPool, variables: dict[str, Any]) -> Connection | None:
    """Return how this process reaches the cluster of a call; None if it knows no address."""
    async with get_client() as client:
        configuration = await RayJobConfiguration.from_template_and_values(
            pool.base_job_template, dict(variables), client=client
        )
    connection = configuration.connection()
    address = worker_settings().address
    if connection is None and address is not None:
        connection = Connection(normalize_address(address), TokenSource(environment=True))
    # The caller's own token, to an address that the caller or its pool has named.
    return connection and connection.with_token_of_environment(True)


async def _put(connection: Connection, name: str, package: bytes) -> None:
    async with JobsClient(connection) as client:
        # Not asked for first: Ray 2.60 drops a package 600 s after a GET that no job has followed.
        await client.put_package(name, package)


def _package(content: bytes) -> bytes:
    """Return a package with one file, which Ray unpacks and the driver checks."""
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            entry = zipfile.ZipInfo(_file_of(content), _TIMESTAMP)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
        return file.getvalue()


def _file_of(content: bytes) -> str:
    return f"ray-bundle-{hashlib.sha256(content).hexdigest()}"
