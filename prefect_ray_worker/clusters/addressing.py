"""Which cluster a run goes to: job variable, block, worker setting, or a Ray of our own."""

from collections.abc import Callable
from pathlib import Path

import anyio

from prefect_ray_worker.clusters.local.cluster import LocalCluster, LocalClusterInfo
from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.errors import JobsApiError, LocalClusterError
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection, normalize_address
from prefect_ray_worker.ray_api.tokens import TokenSource
from prefect_ray_worker.shared.loopback import is_loopback_url

ADDRESS_SETTING = "PREFECT_INTEGRATIONS_RAY_WORKER_ADDRESS"

_LEAVE_SECONDS = 20.0

Report = Callable[[str], None]


class Addressing:
    """Resolves addresses for one worker, and owns the embedded Ray where it comes to that.

    The order: job variable `address`, block `cluster`, the setting
    `PREFECT_INTEGRATIONS_RAY_WORKER_ADDRESS`, a Ray that is started on this machine. Ray's own
    `RAY_ADDRESS` is never read: it would send the runs of a worker on a Ray node elsewhere.

    Args:
        directory: Where the embedded Ray keeps its state.
        default_address: The setting's value.

    Raises:
        InvalidConfiguration: The setting is no address.
    """

    def __init__(self, directory: Path, default_address: str | None) -> None:
        self._local = LocalCluster(directory)
        self._uses_local = False
        self._never_to_start: set[str] = set()
        self._default = (
            Connection(normalize_address(default_address, variable=ADDRESS_SETTING))
            if default_address
            else None
        )

    async def resolve(self, configuration: RayJobConfiguration, report: Report) -> Connection:
        """Return the cluster for a run; start the embedded one if no other is named.

        Args:
            configuration: The run's configuration.
            report: Called with one line when an embedded Ray is started or found.

        Raises:
            LocalClusterError: Ray is not installed or did not start.
        """
        named = configuration.connection() or self._default
        if named is not None:
            return named
        return _connection_to(await self._join_local(report))

    async def find(self, configuration: RayJobConfiguration) -> Connection | None:
        """Return the cluster that a run would use, without starting any."""
        named = configuration.connection() or self._default
        if named is not None:
            return named
        info = await self._local.find()
        return None if info is None else _connection_to(info)

    async def rejoin(self, report: Report) -> None:
        """Hold on to an embedded Ray that an earlier worker has left, so that we stop it."""
        if self._default is None and await self._local.find() is not None:
            try:
                await self._join_local(report)
            except LocalClusterError as exc:
                report(f"The Ray cluster that an earlier worker left cannot be used: {exc}")

    def discount(self, submission_id: str) -> None:
        """Take a job for ended that Ray still shows as PENDING, with a stop queued."""
        self._never_to_start.add(submission_id)

    async def leave(self, report: Report) -> None:
        """Stop the embedded Ray, unless jobs run on it or another worker uses it."""
        if not self._uses_local:
            return
        with anyio.move_on_after(_LEAVE_SECONDS, shield=True):
            info = await self._local.find()
            running = 0 if info is None else await self._count_running(_connection_to(info))
            try:
                stopped = await self._local.release(jobs_running=running > 0)
            except LocalClusterError as exc:
                report(str(exc))
                return
            if stopped:
                report("Stopped the Ray cluster on this machine.")
            elif running and info is not None:
                report(
                    f"Ray Jobs that go on at {info.address}: {running}. The next worker finds "
                    f"that Ray and stops it when it exits; ending process {info.pid} does too."
                )

    async def _count_running(self, connection: Connection) -> int:
        try:
            async with JobsClient(connection) as client:
                jobs = await client.list()
        except JobsApiError:
            return 0
        return sum(
            job.type == "SUBMISSION"
            and not job.is_terminal
            and job.submission_id not in self._never_to_start
            for job in jobs
        )

    async def _join_local(self, report: Report) -> LocalClusterInfo:
        info = await self._local.ensure()
        if info.started or not self._uses_local:
            verb = "Started" if info.started else "Using"
            report(
                f"{verb} a Ray cluster on this machine, as no address is set. "
                f"Dashboard: {info.address} (its token is in {info.token_path})"
            )
        self._uses_local = True
        return info


def warn_of_local_api(connection: Connection, api_url: str | None, report: Report) -> None:
    """Say so if the cluster is told to find the Prefect API on its own nodes."""
    if api_url and is_loopback_url(api_url) and not connection.is_loopback:
        report(
            f"PREFECT_API_URL is {api_url}: on the nodes of {connection.address} that is the "
            "node itself. If the run stays Pending, set env.PREFECT_API_URL to an address that "
            "the cluster can reach."
        )


def _connection_to(info: LocalClusterInfo) -> Connection:
    return Connection(info.address, TokenSource(path=info.token_path))
