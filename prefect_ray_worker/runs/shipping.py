"""Brings this package to the clusters that run its jobs: the driver is never another version.

The package goes as one zip into the cluster's own store (`/api/packages/gcs/`), named after its
content, and every job lists it in `py_modules`. Ray drops a package that no job uses, and keeps
one that was just asked for (600 s by default, Ray 2.60): so it is asked for before each job.
"""

import hashlib
import io
import zipfile
from functools import cache
from pathlib import Path

import anyio.to_thread

from prefect_ray_worker.ray_api.client import JobsClient

_PACKAGE = Path(__file__).parents[1]
# The earliest that a zip can say: equal content has to give equal bytes.
_TIMESTAMP = (1980, 1, 1, 0, 0, 0)


async def archive_uri() -> str:
    """Return the URI under which the package is, or will be, in a cluster's store."""
    name, _ = await anyio.to_thread.run_sync(_archive)
    return f"gcs://{name}"


async def ensure_shipped(client: JobsClient) -> None:
    """See to it that a cluster has the package, and keeps it until the next submission.

    Raises:
        JobsApiError: The cluster could not be asked, or did not take it.
    """
    name, content = await anyio.to_thread.run_sync(_archive)
    if not await client.has_package(name):
        await client.put_package(name, content)


@cache
def _archive() -> tuple[str, bytes]:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(_PACKAGE.rglob("*")):
            if path.suffix == ".py" or path.name == "py.typed":
                entry = zipfile.ZipInfo(str(path.relative_to(_PACKAGE.parent)), _TIMESTAMP)
                entry.external_attr = 0o644 << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, path.read_bytes())
    content = buffer.getvalue()
    return f"_ray_pkg_{hashlib.sha256(content).hexdigest()}.zip", content
