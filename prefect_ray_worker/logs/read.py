"""`ClusterLogs`: reads the logs of all runs on a cluster, in small pieces and at one pace."""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

import anyio

from prefect_ray_worker.errors import AgentUnreachable, JobsApiError, LogNotFound
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.logs import LogPiece, LogsClient, log_file_name
from prefect_ray_worker.shared.backoff import jittered

_AGENT_ROOM = 256 * 1024
_DASHBOARD_ROOM = 1024 * 1024
# A shorter log is read from the dashboard as a whole, without searching for our place.
_SHORT = 128 * 1024
# The bytes by which we find our place in the last lines: too many to repeat by chance.
_RECENT = 16 * 1024
_FEWEST_LINES = 200
_MORE_LINES = 20
_FIRST_BYTES = 512

_SHORTEST_PAUSE_SECONDS = 1.0
# 10 looks a second at all logs of a cluster together, however many there are: a look costs the
# worker 3 ms. And 5 where they come through the head, which has other work.
_PAUSE_PER_RUN_SECONDS = 0.1
_PAUSE_PER_RUN_AT_HEAD_SECONDS = 0.2
_READS_AT_ONCE = 4
# After an answer of the dashboard, wait this many times as long as it took.
_REST_FACTOR = 4
_SHORTEST_AVOIDANCE_SECONDS = 60.0
_LONGEST_AVOIDANCE_SECONDS = 600.0

_log = logging.getLogger("prefect.workers.ray.logs")


@dataclass(frozen=True)
class LogPlace:
    """Where the log of a job is, as the cluster says.

    Attributes:
        submission_id: The job.
        node_id: The node of its driver.
        agent: The HTTP address of that node's agent, if the cluster gives one.
    """

    submission_id: str
    node_id: str
    agent: str | None


@dataclass
class Progress:
    """How far a log has been read.

    Attributes:
        offset: How many bytes.
        recent: The last of them.
        lines: How many of the last lines to ask a dashboard for.
        rest: Seconds for which to leave the dashboard alone now.
    """

    offset: int = 0
    recent: bytes = b""
    lines: int = _FEWEST_LINES
    rest: float = 0.0

    def advance(self, data: bytes) -> None:
        """Note that the next bytes have been read."""
        self.offset += len(data)
        self.recent = (self.recent + data[-_RECENT:])[-_RECENT:]


@dataclass
class _Avoidance:
    until: float
    seconds: float = field(default=_SHORTEST_AVOIDANCE_SECONDS)


class ClusterLogs:
    """The reading side of the logs of one cluster.

    Reads from the agent of a driver's node if that answers and belongs to this cluster, else
    through the dashboard. An agent that does not answer is asked again after a minute, then
    after two, at last every ten.

    Args:
        client: The cluster's log endpoints.
    """

    def __init__(self, client: LogsClient) -> None:
        self._client = client
        self._limiter = anyio.CapacityLimiter(_READS_AT_ONCE)
        self._followers = 0
        self._known: set[str] = set()
        self._avoided: dict[str, _Avoidance] = {}

    async def reconnect(self, connection: Connection) -> None:
        """Read through another connection from now on, for example with a renewed token."""
        await self._client.reconnect(connection)

    @contextmanager
    def following(self) -> Generator[None, None, None]:
        """Count as a reader while the context is open: all readers share one pace."""
        self._followers += 1
        try:
            yield
        finally:
            self._followers -= 1

    def pause(self, place: LogPlace) -> float:
        """Return the seconds that a run should wait between two looks at its log."""
        at_head = place.agent is None or not self._may_ask(place.agent)
        each = _PAUSE_PER_RUN_AT_HEAD_SECONDS if at_head else _PAUSE_PER_RUN_SECONDS
        return jittered(max(_SHORTEST_PAUSE_SECONDS, self._followers * each))

    async def read(self, place: LogPlace, progress: Progress) -> LogPiece:
        """Return what follows in a log: at most a bounded piece.

        Args:
            place: Where the log is.
            progress: How far it has been read. The caller advances it.

        Raises:
            LogNotFound: The cluster answers, and has not got the log, or its node, any more.
            JobsApiError: Any other subclass; ask again later.
        """
        async with self._limiter:
            progress.rest = 0.0
            disowned = None
            if place.agent is not None and self._may_ask(place.agent):
                try:
                    return await self._from_agent(place, place.agent, progress)
                except AgentUnreachable as exc:
                    self._avoid(place.agent, exc)
                except LogNotFound as exc:
                    disowned = exc
            began = anyio.current_time()
            piece = await self._from_dashboard(place, progress)
            progress.rest = (anyio.current_time() - began) * _REST_FACTOR
            if disowned is not None and place.agent is not None:
                self._avoid(place.agent, disowned)
            return piece

    async def _from_agent(self, place: LogPlace, agent: str, progress: Progress) -> LogPiece:
        name = log_file_name(place.submission_id)
        piece = await self._client.from_agent(agent, name, start=progress.offset, room=_AGENT_ROOM)
        if agent not in self._known and piece.data:
            await self._recognise(place, agent, name)
            self._known.add(agent)
        self._avoided.pop(agent, None)
        return piece

    async def _recognise(self, place: LogPlace, agent: str, name: str) -> None:
        """Check once that an agent is the cluster's: private addresses lead to other hosts too."""
        try:
            shown = await self._client.from_dashboard(
                place.node_id, name, lines=-1, skip=0, room=_FIRST_BYTES
            )
        except JobsApiError as exc:
            raise AgentUnreachable(f"The log at {agent} cannot be compared ({exc}).") from exc
        own = await self._client.from_agent(agent, name, start=0, room=_FIRST_BYTES)
        if not shown.data or not own.data.startswith(shown.data):
            raise AgentUnreachable(f"{agent} has another log of that name than the cluster.")

    async def _from_dashboard(self, place: LogPlace, progress: Progress) -> LogPiece:
        name = log_file_name(place.submission_id)
        if progress.offset > _SHORT:
            for lines in (progress.lines, progress.lines * _MORE_LINES):
                shown = await self._client.from_dashboard(
                    place.node_id, name, lines=lines, skip=0, room=_RECENT + _DASHBOARD_ROOM
                )
                begin = _end_of_only(progress.recent, shown.data)
                if begin is not None:
                    new = shown.data[begin:]
                    progress.lines = max(2 * new.count(b"\n"), _FEWEST_LINES)
                    return LogPiece(new, shown.is_last)
        # Our place is not among those lines, or in more than one: all of it, from the start.
        return await self._client.from_dashboard(
            place.node_id, name, lines=-1, skip=progress.offset, room=_DASHBOARD_ROOM
        )

    def _may_ask(self, agent: str) -> bool:
        avoidance = self._avoided.get(agent)
        return avoidance is None or anyio.current_time() >= avoidance.until

    def _avoid(self, agent: str, reason: Exception) -> None:
        before = self._avoided.get(agent)
        seconds = _SHORTEST_AVOIDANCE_SECONDS
        if before is None:
            _log.info("Logs of jobs come through the dashboard: %s", reason)
        else:
            seconds = min(before.seconds * 2, _LONGEST_AVOIDANCE_SECONDS)
        self._known.discard(agent)
        self._avoided[agent] = _Avoidance(anyio.current_time() + jittered(seconds), seconds)


def _end_of_only(wanted: bytes, data: bytes) -> int | None:
    """Return where the only occurrence of some bytes ends; None if there is none, or several."""
    first = data.find(wanted)
    return first + len(wanted) if first >= 0 and first == data.rfind(wanted) else None
