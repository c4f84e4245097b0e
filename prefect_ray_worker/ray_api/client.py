"""`JobsClient`: one method per endpoint of Ray's Jobs API, no policy beyond a request."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, TypeVar, Unpack

import anyio
import anyio.to_thread
import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from prefect_ray_worker import metrics
from prefect_ray_worker.errors import JobsApiError, PackageNotFound, RequestRejected
from prefect_ray_worker.ray_api.answers import (
    Effect,
    error_from_illegal_header,
    error_from_response,
    error_from_transport,
    error_from_unusable_body,
)
from prefect_ray_worker.ray_api.bodies import (
    PLAIN,
    UnusableBody,
    beginning,
    plain_chunks,
    whole,
)
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.http import DashboardHttp
from prefect_ray_worker.ray_api.models import (
    ClusterVersion,
    ComponentActivity,
    JobDetails,
    JobSubmitRequest,
)
from prefect_ray_worker.ray_api.records import RecordReader, Wanted
from prefect_ray_worker.ray_api.resources import NodesAnswer, StatusAnswer, combined
from prefect_ray_worker.shared.resources import ClusterResources

# Ray answers a submission only after the head's agent has it. It waits up to 10 s for the agent,
# which imports Ray on the first job. Everything else is a look-up.
_SUBMIT_TIMEOUT = httpx.Timeout(60, connect=5)
_TIMEOUT = httpx.Timeout(30, connect=5)
# Ray's upper limit; its default is 100.
_MOST_NODES = 10_000
# Of a list: a thread decodes this much in a few milliseconds.
_CHUNK = 256 * 1024
# The list of a cluster with 10,000 jobs takes Ray 2.60 some 5 s.
_LONGEST_ANSWER_SECONDS = 180
# A label key that is none: the head's agent refuses it before it stores anything of the job.
_NO_JOB = JobSubmitRequest(
    entrypoint="true",
    submission_id="prefect-ray-worker-asks-for-the-agent",
    runtime_env={},
    metadata={},
    entrypoint_label_selector={"-": "-"},
)
_LIMITS = httpx.Limits(max_connections=16, max_keepalive_connections=8)

Method = Literal["GET", "POST", "PUT", "DELETE"]
T = TypeVar("T")
E = TypeVar("E", bound=Exception)


class _Options(TypedDict, total=False):
    json: dict[str, Any]
    content: bytes
    effect: Effect
    timeout: httpx.Timeout
    counts: bool


class _Submitted(BaseModel):
    submission_id: str


class _Stopped(BaseModel):
    stopped: bool


class _Deleted(BaseModel):
    deleted: bool


_ACTIVITIES = TypeAdapter(dict[str, ComponentActivity])


class JobsClient:
    """An asynchronous client for the Jobs API of one cluster, with one pool of connections.

    Every method raises a `JobsApiError` subclass that says whether asking again is safe, and
    nothing else. Timeouts: 5 s to connect, 30 s for an answer, 60 s for a submission.

    Example:
        ```python
        async with JobsClient(Connection("http://127.0.0.1:8265")) as client:
            print((await client.version()).ray_version)
        ```

    Args:
        connection: The cluster to talk to.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._http = DashboardHttp("JobsClient", limits=_LIMITS, timeouts=_TIMEOUT)

    async def __aenter__(self) -> Self:
        await self._http.connect(self.connection)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._http.close()

    async def reconnect(self, connection: Connection) -> None:
        """Send further requests through another connection, for example with a renewed token.

        Requests in flight end on the old one.
        """
        await self._http.connect(connection)
        self.connection = connection

    async def version(self) -> ClusterVersion:
        """Return the cluster's versions and session name (`GET /api/version`)."""
        response = await self._request("GET", "/api/version")
        return self._parse(response, ClusterVersion.model_validate_json)

    async def expect_agent(self) -> None:
        """Return if the head's agent takes jobs; none is made (`POST /api/jobs/`).

        The dashboard answers everything else before there is an agent. This sends a job that the
        agent refuses before it stores anything: its label is none (`job_manager.py`, Ray 2.60). The
        agent is ready then: it starts its job manager, which takes seconds, with the first job.
        A Ray that knows no labels refuses the request itself, and nothing is known of its agent.

        Raises:
            JobsApiError: There is no agent yet (after 10 s), or the cluster does not answer.
        """
        with suppress(RequestRejected):
            await self._request(
                "POST", "/api/jobs/", json=_NO_JOB.body(), timeout=_SUBMIT_TIMEOUT, counts=False
            )

    async def submit(self, request: JobSubmitRequest) -> str:
        """Submit a job and return its submission id (`POST /api/jobs/`).

        Raises:
            JobAlreadyExists: The id is taken; read the job back to see by whom.
            AmbiguousError: Ray may have taken the job; read it back.
            JobsApiError: Any other subclass; Ray did not take the job.
        """
        response = await self._request(
            "POST", "/api/jobs/", json=request.body(), effect="submits", timeout=_SUBMIT_TIMEOUT
        )
        answer = self._parse(response, _Submitted.model_validate_json, effect="submits")
        return answer.submission_id

    async def get(self, submission_id: str) -> JobDetails:
        """Return one job (`GET /api/jobs/{id}`).

        Raises:
            JobNotFound: A reachable cluster does not know it.
        """
        response = await self._request("GET", f"/api/jobs/{submission_id}")
        return self._parse(response, JobDetails.model_validate_json)

    async def list(self, wanted: Wanted | None = None) -> list[JobDetails]:
        """Return the jobs that the cluster remembers (`GET /api/jobs/`); Ray has no filter.

        Leaves out a record that cannot be read, so that it does not hide all the others.

        Args:
            wanted: Selects raw records; runs in another thread. None selects all.
        """
        reader = RecordReader(wanted)
        first = b""
        async with self._opened("GET", "/api/jobs/") as response:
            try:
                async for chunk in plain_chunks(response, _CHUNK):
                    first = first or chunk
                    await anyio.to_thread.run_sync(reader.feed, chunk)
                return await anyio.to_thread.run_sync(reader.close)
            except ValueError as exc:
                shown = httpx.Response(
                    response.status_code,
                    headers={"content-type": response.headers.get("content-type", "")},
                    content=first,
                )
                raise self._unusable(shown) from exc

    async def stop(self, submission_id: str) -> bool:
        """Ask Ray to stop a job (`POST /api/jobs/{id}/stop`).

        Returns:
            True if Ray passed the request on. The job may still run, and the request for a PENDING
            job waits until its supervisor starts. False if there is nothing left to stop.

        Raises:
            JobNotFound: A reachable cluster does not know it.
        """
        response = await self._request("POST", f"/api/jobs/{submission_id}/stop")
        return self._parse(response, _Stopped.model_validate_json).stopped

    async def delete(self, submission_id: str) -> bool:
        """Delete the record of a finished job (`DELETE /api/jobs/{id}`).

        Raises:
            JobNotFound: A reachable cluster does not know it.
            JobNotTerminal: The job has not ended.
        """
        response = await self._request("DELETE", f"/api/jobs/{submission_id}")
        return self._parse(response, _Deleted.model_validate_json).deleted

    async def has_package(self, name: str) -> bool:
        """Return whether the cluster's store has a package, and pin it there for a while.

        `GET /api/packages/gcs/{name}`; Ray 2.60 keeps a package for 600 s after that.
        """
        try:
            response = await self._request("GET", f"/api/packages/gcs/{name}")
        except PackageNotFound:
            return False
        # Ray 2.60 answers with nothing, a login proxy with a page.
        if response.content.lstrip().startswith(b"<"):
            raise self._unusable(response)
        return True

    async def put_package(self, name: str, content: bytes) -> None:
        """Put a package into the cluster's store (`PUT /api/packages/gcs/{name}`)."""
        await self._request("PUT", f"/api/packages/gcs/{name}", content=content)

    async def resources(self) -> ClusterResources:
        """Return the cluster's nodes, with their free resources if the cluster reports them.

        `GET /api/v0/nodes` and `GET /api/cluster_status`: a few milliseconds each (Ray 2.60).
        """
        response = await self._request("GET", f"/api/v0/nodes?limit={_MOST_NODES}")
        nodes = self._parse(response, NodesAnswer.model_validate_json)
        try:
            response = await self._request("GET", "/api/cluster_status")
            status = self._parse(response, StatusAnswer.model_validate_json)
        except JobsApiError:
            status = None  # without the autoscaler's monitor only totals are known
        return combined(nodes, status)

    async def activities(self) -> dict[str, ComponentActivity]:
        """Return what uses the cluster, by kind (`GET /api/component_activities`).

        `driver` stands for all processes that have called `ray.init`, Ray Client's included. What
        `RAY_CLUSTER_ACTIVITY_HOOK` of the head adds has names of its own (Ray 2.60).
        """
        response = await self._request("GET", "/api/component_activities")
        return self._parse(response, _ACTIVITIES.validate_json)

    async def _request(
        self, method: Method, path: str, **options: Unpack[_Options]
    ) -> httpx.Response:
        async with self._opened(method, path, **options) as response:
            try:
                return await whole(response)
            except UnusableBody as exc:
                shown = httpx.Response(response.status_code, text=str(exc))
                raise self._unusable(shown, options.get("effect", "safe")) from exc

    @asynccontextmanager
    async def _opened(
        self,
        method: Method,
        path: str,
        *,
        json: dict[str, Any] | None = None,
        content: bytes | None = None,
        effect: Effect = "safe",
        timeout: httpx.Timeout | None = None,  # noqa: ASYNC109 (httpx's own, phase by phase)
        counts: bool = True,
    ) -> AsyncGenerator[httpx.Response, None]:
        """Send a request and yield the answer, whose body has not been read yet."""
        address = self.connection.address
        try:
            async with (
                self._http.lent() as http,
                _in_time(),
                http.stream(
                    method,
                    path,
                    json=json,
                    content=content,
                    headers=PLAIN,
                    timeout=timeout or _TIMEOUT,
                ) as response,
            ):
                if not response.is_success:
                    answer = await beginning(response)
                    error = error_from_response(answer, address=address, effect=effect)
                    raise _counted(error) if counts else error
                yield response
        except (httpx.LocalProtocolError, UnicodeEncodeError):
            # `from None`: the cause quotes the header, and a traceback would show it.
            raise _counted(error_from_illegal_header(address=address)) from None
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise _counted(error_from_transport(exc, address=address, effect=effect)) from exc

    def _parse(
        self, response: httpx.Response, parser: Callable[[bytes], T], *, effect: Effect = "safe"
    ) -> T:
        try:
            return parser(response.content)
        except ValidationError as exc:
            raise self._unusable(response, effect) from exc

    def _unusable(self, response: httpx.Response, effect: Effect = "safe") -> JobsApiError:
        address = self.connection.address
        return _counted(error_from_unusable_body(response, address=address, effect=effect))


@asynccontextmanager
async def _in_time() -> AsyncGenerator[None, None]:
    """Give up an answer that trickles in for ever: httpx's own limits are for each piece of it."""
    try:
        with anyio.fail_after(_LONGEST_ANSWER_SECONDS):
            yield
    except TimeoutError as exc:
        raise httpx.ReadTimeout("the answer does not end") from exc


def _counted(error: E) -> E:
    metrics.ERRORS.labels(type(error).__name__).inc()
    return error
