"""The fake Ray's endpoints: Ray 2.60's answers to the letter, odd ones included."""

import asyncio
import itertools
import json
import re
import socket
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Self

from aiohttp import web

from tests.fake_ray import answers, nodes
from tests.fake_ray.faults import Faults, Handler
from tests.fake_ray.logs import LogEndpoints
from tests.fake_ray.nodes import FakeNode
from tests.fake_ray.script import SUCCEEDS_SOON, FakeJob, OnSubmit, Timeline

_BROWSER_HEADERS = (
    "Referer",
    "Origin",
    "Sec-Fetch-Mode",
    "Sec-Fetch-Dest",
    "Sec-Fetch-Site",
    "Sec-Fetch-User",
    "Access-Control-Request-Method",
    "Access-Control-Request-Headers",
)
_LABEL_NAME = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?")
# Between two looks of the head at a job (`job_manager.py`, Ray 2.60).
_MONITOR_SECONDS = 1.0
_LARGEST_PACKAGE = 100 * 1024 * 1024
_sessions = itertools.count(1)


class RequestLog(list[tuple[str, str]]):
    """Every `(method, path)` in order of arrival.

    Attributes:
        in_flight: Requests being answered now, hanging ones included.
        max_in_flight: The most there have been at once.
        headers: The headers of each request, in the same order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.in_flight = 0
        self.max_in_flight = 0
        self.headers: list[dict[str, str]] = []

    def number_of(self, method: str, path: str = "") -> int:
        """Count the requests of a method whose path matches a regular expression."""
        return sum(m == method and bool(re.search(path, p)) for m, p in self)

    @contextmanager
    def answering(self, request: web.Request) -> Generator[None, None, None]:
        """Log a request, and count it as in flight while the context is open."""
        self.append((request.method, request.path))
        self.headers.append({k.lower(): v for k, v in request.headers.items()})
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            yield
        finally:
            self.in_flight -= 1

    @property
    def by_kind(self) -> Counter[str]:
        """Requests per kind, submission ids left out, such as `GET /api/jobs/{id}`."""
        return Counter(
            f"{method} {re.sub(r'(?<=^/api/jobs/)[^/]+|(?<=^/logs/)[^/]+', '{id}', path)}"
            for method, path in self
        )

    def reset(self) -> None:
        """Forget what was logged; requests in flight stay counted."""
        self.clear()
        self.headers.clear()
        self.max_in_flight = self.in_flight


class FakeRay:
    """A scriptable Ray head on a free loopback port.

    Args:
        token: The bearer token that requests must carry; None for an open cluster.

    Attributes:
        jobs: The records by submission id; add, change and delete them freely.
        drivers: DRIVER-type records, which `GET /api/jobs/` lists after the jobs.
        on_submit: A `Timeline`, or a function from `FakeJob` to one, for new jobs.
        stop_seconds: From a stop request to STOPPED, for new jobs.
        ghost_seconds: A record that is deleted within so many seconds after its end comes back
            as a FAILED ghost, once, a second later at most. Ray 2.60 does that (about 2 s); 0
            leaves it out.
        nodes: Its nodes; nothing takes place on them.
        listed_agent_port: Port of the agents, as the cluster itself lists it; None as before 2.60.
        has_agent: Whether the head's agent has started. The dashboard waits 10 s for it; here not
            at all.
        last_driver_end: When a driver last ended, as the cluster says it; seconds since the epoch.
        other_activities: What `RAY_CLUSTER_ACTIVITY_HOOK` of the head adds.
        has_monitor: Whether the autoscaler's monitor says what of them is in use.
        requests: What was asked.
        faults: What goes wrong.
        logs: The logs of the jobs, on the agent and on the dashboard.
    """

    def __init__(self, *, token: str | None = None) -> None:
        self.token = token
        self.jobs: dict[str, FakeJob] = {}
        self.drivers: dict[str, FakeJob] = {}
        self.packages: dict[str, bytes] = {}
        self.on_submit: OnSubmit = SUCCEEDS_SOON
        self.stop_seconds = 0.05
        self.ghost_seconds = 0.0
        self.ray_version = "2.60.0"
        self.session_name = _new_session_name()
        self.nodes = [FakeNode({"CPU": 2.0, "memory": 8.0 * 1024**3})]
        self.has_agent = True
        self.has_monitor = True
        self.listed_agent_port: int | None = None
        self.last_driver_end: float | None = None
        self.other_activities: dict[str, Any] = {}
        self.requests = RequestLog()
        self.faults = Faults()
        self.logs = LogEndpoints(self.jobs)
        self._socket = _bound_socket(0)
        self._port: int = self._socket.getsockname()[1]
        self.listed_agent_port = self._port
        self._runner: web.AppRunner | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        await self.listen_again()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.faults.release()
        await self.stop_listening()
        self._socket.close()

    async def stop_listening(self) -> None:
        """Become unreachable: connections break, new ones are refused; jobs live on."""
        if self._runner is None:
            return
        runner, self._runner = self._runner, None
        await runner.cleanup()
        # Holding the port, without listening, keeps other programs of the machine off it.
        self._socket = _bound_socket(self._port)

    async def listen_again(self) -> None:
        """Be reachable again, on the same port."""
        app = web.Application(client_max_size=_LARGEST_PACKAGE, middlewares=[self._middleware])
        app.add_routes(
            [
                web.get("/api/version", self._version),
                web.post("/api/jobs/", self._submit),
                web.get("/api/jobs/", self._list),
                web.get("/api/jobs/{id}", self._get),
                web.post("/api/jobs/{id}/stop", self._stop),
                web.delete("/api/jobs/{id}", self._delete),
                web.get("/api/packages/gcs/{name}", self._get_package),
                web.put("/api/packages/gcs/{name}", self._put_package),
                web.get("/api/v0/nodes", self._nodes),
                web.get("/nodes", self._node_summary),
                web.get("/api/cluster_status", self._cluster_status),
                web.get("/api/component_activities", self._activities),
            ]
        )
        app.add_routes(self.logs.routes())
        # 0 would mean "no limit": a hanging request must not hold up the end of a test.
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01)
        await self._runner.setup()
        await web.SockSite(self._runner, self._socket).start()

    def restart(self, *, new_session: bool) -> None:
        """Live through a restart of the head, which takes no time here.

        Args:
            new_session: True for a head without fault-tolerant storage, which forgets all
                jobs and takes a new session name; False for one that remembers.
        """
        if new_session:
            self.jobs.clear()
            self.drivers.clear()
            self.packages.clear()
            self.session_name = _new_session_name()

    def add_job(
        self, submission_id: str, status: str = "RUNNING", *, ago: float = 0.0, **body: Any
    ) -> FakeJob:
        """Add a record as if somebody had submitted it earlier, so many seconds ago."""
        body = {"entrypoint": "true", **body}
        timeline = Timeline([(0.0, status)])
        self.jobs[submission_id] = FakeJob(
            submission_id,
            body,
            timeline,
            self.stop_seconds,
            node_address=self.address,
            submitted_at=time.time() - ago,
        )
        return self.jobs[submission_id]

    def add_driver(self, job_id: str, status: str = "RUNNING") -> FakeJob:
        """Add a driver that was not submitted through the Jobs API."""
        body = {"entrypoint": "python notebook.py", "metadata": {}, "runtime_env": {}}
        timeline = Timeline([(0.0, status)])
        self.drivers[job_id] = FakeJob(None, body, timeline, type="DRIVER", job_id=job_id)
        return self.drivers[job_id]

    @property
    def _middleware(self) -> Any:
        @web.middleware
        async def around(request: web.Request, handler: Handler) -> web.StreamResponse:
            with self.requests.answering(request):
                return await self.faults.handle(request, self._guarded(handler))

        return around

    def _guarded(self, handler: Handler) -> Handler:
        """Put Ray's two gates before an endpoint: the token, then the browser filter."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            if self.token is not None:
                shown = _shown_credentials(request)
                if not shown:
                    return web.Response(status=401, text=answers.MISSING_TOKEN)
                if shown != f"Bearer {self.token}":
                    return web.Response(status=403, text=answers.INVALID_TOKEN)
            if _is_browser(request) and request.method not in ("GET", "HEAD", "OPTIONS"):
                return web.Response(status=405, text=answers.no_browsers(request.method))
            return await handler(request)

        return guarded

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response(
            {
                "version": "4",
                "ray_version": self.ray_version,
                "ray_commit": "b7f4259e944bf6959f721b106adc366ddfa0c356",
                "session_name": self.session_name,
            }
        )

    async def _submit(self, request: web.Request) -> web.Response:
        try:
            body = {k: v for k, v in (await request.json()).items() if v is not None}
        except (json.JSONDecodeError, AttributeError):
            return web.Response(status=500, text=answers.SERVER_IN_TROUBLE)
        if problem := answers.problem_with(body):
            return web.Response(status=400, text=answers.bad_request(problem))
        if not self.has_agent:
            return web.Response(status=500, text=answers.NO_AGENT)
        submission_id = body.get("submission_id") or body.get("job_id")
        submission_id = submission_id or f"raysubmit_{len(self.jobs):016d}"
        for key in body.get("entrypoint_label_selector", {}):
            if not _LABEL_NAME.fullmatch(key.rsplit("/", 1)[-1]):
                return web.Response(status=500, text=answers.bad_label(key))
        if submission_id in self.jobs:
            return web.Response(status=500, text=answers.already_exists(submission_id))
        job = FakeJob(
            submission_id,
            body,
            Timeline([(0.0, "PENDING")]),
            self.stop_seconds,
            node_address=self.address,
        )
        job.timeline = (
            self.on_submit if isinstance(self.on_submit, Timeline) else self.on_submit(job)
        )
        self.jobs[submission_id] = job
        return web.json_response({"job_id": submission_id, "submission_id": submission_id})

    async def _list(self, _: web.Request) -> web.Response:
        records = [*self.jobs.values(), *self.drivers.values()]
        return web.json_response([record.details() for record in records])

    async def _get(self, request: web.Request) -> web.Response:
        job = self._find(request)
        return _unknown(request) if job is None else web.json_response(job.details())

    async def _stop(self, request: web.Request) -> web.Response:
        job = self._find(request)
        if job is None:
            return _unknown(request)
        if job.type != "SUBMISSION":
            return web.Response(status=400, text="Can only stop submission type jobs")
        return web.json_response({"stopped": job.request_stop()})

    async def _delete(self, request: web.Request) -> web.Response:
        job = self._find(request)
        if job is None:
            return _unknown(request)
        if job.type != "SUBMISSION" or job.submission_id is None:
            return web.Response(status=400, text="Can only delete submission type jobs")
        if not job.is_terminal:
            text = answers.not_terminal(job.submission_id, job.status)
            return web.Response(status=500, text=text)
        del self.jobs[job.submission_id]
        left = self.ghost_seconds - job.seconds_since_end
        if left > 0 and not job.is_ghost:
            loop = asyncio.get_running_loop()
            loop.call_later(min(left, _MONITOR_SECONDS), self._haunt, job.submission_id)
        return web.json_response({"deleted": True})

    async def _get_package(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self.packages:
            return web.Response(status=404, text=f"Package gcs://{name} does not exist")
        return web.Response()

    async def _put_package(self, request: web.Request) -> web.Response:
        self.packages[request.match_info["name"]] = await request.read()
        return web.Response()

    async def _nodes(self, _: web.Request) -> web.Response:
        return web.json_response(nodes.listing(self.nodes))

    async def _node_summary(self, _: web.Request) -> web.Response:
        return web.json_response(nodes.summary(self.nodes, self.listed_agent_port))

    async def _cluster_status(self, _: web.Request) -> web.Response:
        return web.json_response(nodes.status(self.nodes, has_monitor=self.has_monitor))

    async def _activities(self, _: web.Request) -> web.Response:
        # `job_head.py`, Ray 2.60: drivers that have called `ray.init`, not jobs.
        active = sum(not driver.is_terminal for driver in self.drivers.values())
        driver = {
            "is_active": "ACTIVE" if active else "INACTIVE",
            "reason": f"Number of active drivers: {active}" if active else None,
            "timestamp": time.time(),
            "last_activity_at": self.last_driver_end,
        }
        return web.json_response({"driver": driver, **self.other_activities})

    def _haunt(self, submission_id: str) -> None:
        body = {"entrypoint": "Entrypoint not found."}
        ghost = FakeJob(submission_id, body, Timeline(()), is_ghost=True)
        ghost.set(
            "FAILED",
            message="Job supervisor actor died: The actor died unexpectedly before finishing "
            "this task.",
            error_type="JOB_SUPERVISOR_ACTOR_DIED",
        )
        self.jobs.setdefault(submission_id, ghost)

    def _find(self, request: web.Request) -> FakeJob | None:
        wanted = request.match_info["id"]
        if wanted in self.drivers:
            return self.drivers[wanted]
        by_driver = (job for job in self.jobs.values() if job.job_id == wanted)
        return next(by_driver, None) or self.jobs.get(wanted)


def _unknown(request: web.Request) -> web.Response:
    return web.Response(status=404, text=f"Job {request.match_info['id']} does not exist")


def _shown_credentials(request: web.Request) -> str:
    headers, cookie = request.headers, request.cookies.get("ray-authentication-token")
    shown = headers.get("Authorization", "") or headers.get("X-Ray-Authorization", "")
    return shown or (f"Bearer {cookie}" if cookie else "")


def _is_browser(request: web.Request) -> bool:
    agent = request.headers.get("User-Agent", "")
    return agent.startswith("Mozilla") or any(h in request.headers for h in _BROWSER_HEADERS)


def _bound_socket(port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    return bound


def _new_session_name() -> str:
    return time.strftime(f"session_%Y-%m-%d_%H-%M-%S_{next(_sessions):06d}_1")
