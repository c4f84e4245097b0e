"""The two log endpoints of the fake Ray: the agent's files and the dashboard's last lines."""

import re
from typing import Any

from aiohttp import web

from tests.fake_ray.script import FakeJob

_NAME = re.compile(r"job-driver-(.+)\.log")
_CHUNK = 64 * 1024


class LogEndpoints:
    """Serves the logs of jobs as Ray 2.60 does, on the node and on the head.

    Args:
        jobs: The jobs by submission id.

    Attributes:
        lost_nodes: Whether all nodes have died: the dashboard says so, the agent is not there.
        bytes_sent: How much of logs has left, by either way.
        longest_answer: The most bytes that one answer had.
    """

    def __init__(self, jobs: dict[str, FakeJob]) -> None:
        self._jobs = jobs
        self.lost_nodes = False
        self.bytes_sent = 0
        self.longest_answer = 0

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/logs/{name}", self._agent_file),
            web.get("/api/v0/logs/file", self._last_lines),
        ]

    async def _agent_file(self, request: web.Request) -> web.StreamResponse:
        log = self._log(request.match_info["name"])
        if self.lost_nodes:
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        if log is None:
            return web.Response(status=404, text="404: Not Found")
        size = len(log)
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
        if asked is None:
            return web.Response(body=log[:], content_type="application/octet-stream")
        start, end = int(asked[1]), min(int(asked[2]) + 1, size)
        if start >= size:
            return web.Response(status=416, headers={"Content-Range": f"bytes */{size}"})
        data = log[start:end]
        self._count(len(data))
        return web.Response(
            status=206,
            body=data,
            content_type="application/octet-stream",
            headers={"Content-Range": f"bytes {start}-{end - 1}/{size}"},
        )

    async def _last_lines(self, request: web.Request) -> web.StreamResponse:
        node, name = request.query["node_id"], request.query["filename"]
        if self.lost_nodes:
            return web.Response(status=500, text=f"Agent for node id: {node} doesn't exist.")
        log = self._log(name)
        if log is None:
            text = f"A file is not found at: /tmp/ray/session/logs/{name}"
            return web.Response(status=500, text=text)
        data = _tail(log[:], int(request.query.get("lines", 1000)) or 1000)
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        for start in range(0, len(data), _CHUNK):
            await response.write(data[start : start + _CHUNK])
        await response.write_eof()
        self._count(len(data))
        return response

    def _log(self, name: str) -> Any:
        found = _NAME.fullmatch(name)
        job = self._jobs.get(found[1]) if found else None
        return job.log if job is not None else None

    def _count(self, size: int) -> None:
        self.bytes_sent += size
        self.longest_answer = max(self.longest_answer, size)


def _tail(log: bytes, lines: int) -> bytes:
    if lines == -1:
        return log
    # A last line without its end counts as one, as in `log_agent.py`.
    position = len(log)
    wanted = lines + (log.endswith(b"\n"))
    for _ in range(wanted):
        position = log.rfind(b"\n", 0, position)
        if position < 0:
            return log
    return log[position + 1 :]
