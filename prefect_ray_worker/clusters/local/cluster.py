"""`LocalCluster`: finds or starts the local Ray, and stops it when no worker uses it."""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread

from prefect_ray_worker.clusters.local import launch, processes
from prefect_ray_worker.clusters.local.launch import Launch, Ports, TempDirectory
from prefect_ray_worker.clusters.local.state import ClusterRecord, StateDirectory
from prefect_ray_worker.errors import JobsApiError, LocalClusterError, NotAuthorized
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.tokens import TokenSource

_START_SECONDS = 60.0
# Wait for a Ray that is busy, or that a killed worker was starting: replacing it would end its
# jobs. If Ray is broken, its `ray start` process has already exited.
_ANSWER_SECONDS = 30.0
_ATTEMPTS = 3
_REQUEST_SECONDS = 5.0
_POLL_SECONDS = 0.2
_CLEANUP_SECONDS = 25.0
# Longer than any work done under the lock, so the limit is reached only if another worker hangs.
_LOCK_SECONDS = 180.0
_RELEASE_LOCK_SECONDS = 30.0

T = TypeVar("T")


@dataclass(frozen=True)
class LocalClusterInfo:
    """Address, process and files of the local Ray.

    Attributes:
        address: `http://127.0.0.1:<port>` of its dashboard.
        token_path: The file with its bearer token, readable by this user only.
        started: True if this call started it, False if it found it.
        pid: Process id of `ray start`.
        log_path: Output of `ray start`.
        session_path: Ray's own session directory, with `logs/`; deleted when the cluster stops.
    """

    address: str
    token_path: str | None
    started: bool
    pid: int
    log_path: Path
    session_path: Path


class LocalCluster:
    """A Ray cluster on this machine that the workers of one Prefect home share, start and stop.

    The cluster survives Ctrl-C and the death of a worker; the next worker finds it again.
    It listens on loopback only and requires a bearer token, because anyone who reaches Ray's
    Jobs API can run code as its user. It uses free ports, so it does not disturb another Ray on
    the machine.

    Example:
        ```python
        cluster = LocalCluster(state_directory(prefect_home))
        info = await cluster.ensure()
        connection = Connection(info.address, TokenSource(path=info.token_path))
        async with JobsClient(connection) as client:
            print(await client.version())
        await cluster.release(jobs_running=False)
        ```

    Args:
        directory: The state directory; see `state.state_directory`. Each directory has a cluster
            of its own.
    """

    def __init__(self, directory: Path) -> None:
        self._state = StateDirectory(directory)
        self._lock = anyio.Lock()
        self._mark: int | None = None

    async def ensure(self) -> LocalClusterInfo:
        """Find the running cluster or start one, mark it as in use, and return it.

        You can call this any number of times, from several tasks and processes at once: one
        starts the cluster and the others wait. It replaces a cluster that has died.

        It takes about 6 s to start a cluster and 10 ms to find one. The limit is 60 s for each
        of 3 attempts; it tries again only if another process took a port in the meantime. If
        cancelled, it stops the half-started Ray first.

        Raises:
            LocalClusterError: Ray is not installed, lacks its dashboard, or does not start.
                The message says what to do; if Ray did not start, it quotes the end of its log.
        """
        async with self._lock:
            await _in_thread(self._state.prepare)
            async with self._state.locked(_LOCK_SECONDS):
                held = self._mark is not None
                try:
                    await _in_thread(self._mark_in_use)
                    return await self._reuse() or await self._start()
                except BaseException:
                    if not held:
                        await _shielded(self._unmark)
                    raise

    async def find(self) -> LocalClusterInfo | None:
        """Return the cluster if its `ray start` process runs, else None.

        The cluster can still be starting, or be too busy to answer. This takes no lock, sends no
        request, and does not mark the cluster as in use.
        """
        return await _in_thread(self._running)

    async def release(self, *, jobs_running: bool) -> bool:
        """Stop using the cluster, and stop it if no other worker uses it and no job runs on it.

        Does nothing unless `ensure` has succeeded before. Stopping takes about 3 s; the limit is
        55 s (30 s for the lock, 25 s for processes that hang).

        Args:
            jobs_running: True if jobs run on the cluster, or if that is unknown. The cluster then
                keeps running, and the next worker finds it.

        Returns:
            Whether the cluster was stopped.

        Raises:
            LocalClusterError: A process of the cluster cannot be ended, or another worker held
                the lock for 30 s. This worker's mark is removed in both cases.
        """
        async with self._lock:
            if self._mark is None:
                return False
            try:
                await _in_thread(self._state.prepare)
                async with self._state.locked(_RELEASE_LOCK_SECONDS):
                    await _shielded(self._unmark)
                    if jobs_running or await _in_thread(self._state.is_in_use):
                        return False
                    record = await _in_thread(self._state.read_record)
                    await _shielded(lambda: self._discard(record))
                    return record is not None
            finally:
                # If another worker held the lock, it uses the cluster and will stop it.
                await _shielded(self._unmark)

    async def _reuse(self) -> LocalClusterInfo | None:
        """Return the cluster if it accepts jobs; otherwise remove what is left of it."""
        record = await _in_thread(self._state.read_record)
        if record is not None and await self._takes_jobs(record, _ANSWER_SECONDS):
            return await _in_thread(lambda: self._info(record, started=False))
        await _shielded(lambda: self._discard(record))
        return None

    async def _start(self) -> LocalClusterInfo:
        launch.require_ray()
        for attempt in range(1, _ATTEMPTS + 1):
            ports = await _in_thread(Ports.find)
            info = await self._try_start(ports)
            if info is not None:
                return info
            # If another process took one of the ports, try again with other ports.
            if attempt == _ATTEMPTS or await _in_thread(ports.are_free):
                break
        raise LocalClusterError(await _in_thread(self._why_not_started))

    async def _try_start(self, ports: Ports) -> LocalClusterInfo | None:
        temp = TempDirectory.for_state(self._state.path)
        starting = Launch(
            launch.command(ports, temp),
            launch.environment(os.environ, self._state.token_path, temp),
            cwd=temp.work,
            log_path=self._state.log_path,
        )
        try:
            record = await _in_thread(lambda: self._launch(starting, ports, temp))
            if await self._takes_jobs(record, _START_SECONDS):
                await self._require_guard(record)
                return await _in_thread(lambda: self._info(record, started=True))
            await _shielded(lambda: self._discard(record))
        except BaseException:
            # Keep the first error: it helps more than one about a process that cannot be ended.
            with suppress(LocalClusterError):
                await _shielded(lambda: self._abandon(starting))
            raise
        return None

    async def _takes_jobs(self, record: ClusterRecord, within: float) -> bool:
        """Wait until the cluster accepts jobs. Return False if it ends or `within` seconds pass."""
        connection = Connection(
            # The address is plain HTTP: skip loading certificates.
            record.address,
            token=TokenSource(path=record.token_path),
            verify=False,
        )
        with anyio.move_on_after(within):
            async with JobsClient(connection) as client:
                while await _in_thread(record.leader.is_alive):
                    # Check both: the dashboard answers before the agent, which starts jobs, is up.
                    with suppress(JobsApiError, OSError, TimeoutError):
                        with anyio.fail_after(_REQUEST_SECONDS):
                            await client.version()
                            agent = await anyio.connect_tcp(launch.LOOPBACK, record.agent_port)
                            await agent.aclose()
                            return True
                    await anyio.sleep(_POLL_SECONDS)
        return False

    async def _require_guard(self, record: ClusterRecord) -> None:
        """Check that the cluster refuses a request without a token.

        Raises:
            LocalClusterError: The cluster accepts the request, or does not answer.
        """
        try:
            with anyio.fail_after(_REQUEST_SECONDS):
                async with JobsClient(Connection(record.address, verify=False)) as client:
                    version = (await client.version()).ray_version
        except NotAuthorized:
            return
        except (JobsApiError, TimeoutError) as exc:
            raise LocalClusterError(
                f"The local Ray was stopped: whether it wants a token is not known ({exc})."
            ) from exc
        raise LocalClusterError(
            "The local Ray was stopped: it takes requests without a token, so any user of this "
            f"machine could run code as this one. It is Ray {version}; token authentication came "
            f"with Ray 2.52. Update it, or {launch.SET_AN_ADDRESS}."
        )

    def _launch(self, starting: Launch, ports: Ports, temp: TempDirectory) -> ClusterRecord:
        temp.create()
        self._state.write_token()
        leader = starting.start()
        record = ClusterRecord(
            pid=leader.pid,
            birth=leader.birth,
            address=f"http://{launch.LOOPBACK}:{ports.dashboard}",
            agent_port=ports.agent,
            token_path=str(self._state.token_path),
            temp_dir=str(temp.path),
        )
        self._state.write_record(record)
        return record

    def _abandon(self, starting: Launch) -> None:
        starting.call_off()
        self._discard(self._state.read_record())

    def _discard(self, record: ClusterRecord | None) -> None:
        """End all processes of a cluster and remove its files.

        Without a record, only the marker identifies the processes.
        """
        ours = TempDirectory.for_state(self._state.path)
        # If the state directory was moved, the record names another directory.
        temp = ours if record is None else TempDirectory(Path(record.temp_dir))
        processes.stop_all(None if record is None else record.leader, str(temp.path))
        temp.remove()
        self._state.forget()

    def _why_not_started(self) -> str:
        tail = self._state.log_tail()
        if "missing packages" in tail:
            return (
                "Ray is installed without its dashboard, which takes the jobs. Run "
                f'`pip install "ray[default]"`, or {launch.SET_AN_ADDRESS}. '
                f"Ray's own message is in {self._state.log_path}."
            )
        return (
            f"The local Ray did not start (the limit is {_START_SECONDS:.0f} s). The end of "
            f"{self._state.log_path}:\n{tail or '(empty)'}\n"
            f"Remove the cause and start the worker again, or {launch.SET_AN_ADDRESS}."
        )

    def _mark_in_use(self) -> None:
        if self._mark is None:
            self._mark = self._state.mark_in_use()

    def _unmark(self) -> None:
        mark, self._mark = self._mark, None
        if mark is not None:
            os.close(mark)

    def _running(self) -> LocalClusterInfo | None:
        record = self._state.read_record()
        if record is None or not record.leader.is_alive():
            return None
        return self._info(record, started=False)

    def _info(self, record: ClusterRecord, *, started: bool) -> LocalClusterInfo:
        return LocalClusterInfo(
            address=record.address,
            token_path=record.token_path,
            started=started,
            pid=record.pid,
            log_path=self._state.log_path,
            session_path=(TempDirectory(Path(record.temp_dir)).ray / "session_latest").resolve(),
        )


async def _in_thread(call: Callable[[], T]) -> T:
    return await anyio.to_thread.run_sync(call)


async def _shielded(call: Callable[[], None]) -> None:
    """Run a clean-up for at most 25 s, even if the caller is cancelled."""
    with anyio.CancelScope(shield=True), anyio.move_on_after(_CLEANUP_SECONDS):
        await anyio.to_thread.run_sync(call, abandon_on_cancel=True)
