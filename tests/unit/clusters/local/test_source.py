"""`LocalClusters` with a small HTTP server in the place of `ray start`."""

import sys
from pathlib import Path

import pytest

from prefect_ray_worker.clusters.local import launch
from prefect_ray_worker.clusters.local.cluster import LocalCluster
from prefect_ray_worker.clusters.local.launch import Ports, TempDirectory
from prefect_ray_worker.clusters.local.source import LocalClusters
from prefect_ray_worker.clusters.source import ClusterPlan
from prefect_ray_worker.errors import LocalClusterError
from tests.unit.clusters import Heard

PLAN = ClusterPlan()
RAY = """
import http.server, json, os, pathlib, sys, threading

class Head(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        token = pathlib.Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text()
        guarded = os.environ["GUARDED"] == "yes"
        if guarded and self.headers.get("Authorization") != f"Bearer {token}":
            return self.answer(401, "Unauthorized: Missing authentication token")
        if self.path == "/api/version":
            return self.answer(200, json.dumps({
                "version": "4", "ray_version": "2.50.1", "ray_commit": "c", "session_name": "s",
            }))
        self.answer(int(pathlib.Path(os.environ["JOBS_STATUS"]).read_text()), "[]")

    def answer(self, status, text):
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

for port in sys.argv[1:]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Head)
    threading.Thread(target=server.serve_forever).start()
"""


@pytest.fixture
def jobs_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with the status of the answer to `GET /api/jobs/`."""
    file = tmp_path / "status"
    file.write_text("200")

    def command(ports: Ports, _: TempDirectory) -> list[str]:
        return [sys.executable, "-c", RAY, str(ports.dashboard), str(ports.agent)]

    monkeypatch.setattr(launch, "command", command)
    monkeypatch.setenv("JOBS_STATUS", str(file))
    monkeypatch.setenv("GUARDED", "yes")
    return file


@pytest.mark.parametrize("status", [500, 401, 404])
async def test_ray_is_left_up_when_its_jobs_are_not_known(
    jobs_status: Path, tmp_path: Path, status: int
) -> None:
    """The flows that ran were ended when the Jobs API failed as their worker exited."""
    directory, told = tmp_path / "state", []
    source = LocalClusters(directory, in_use=True)
    await source.acquire(PLAN, Heard(told.append))
    jobs_status.write_text(str(status))
    await source.close(told.append, frozenset())
    info = await LocalCluster(directory).find()
    assert info is not None
    assert "left up" in told[-1]
    assert f"kill {info.pid}" in told[-1]

    jobs_status.write_text("200")
    heir = LocalClusters(directory, in_use=True)
    await heir.take_over(told.append)
    await heir.close(told.append, frozenset())
    assert await LocalCluster(directory).find() is None
    assert told[-1] == "Stopped the local Ray cluster."


async def test_a_ray_that_takes_requests_without_a_token_is_stopped(
    jobs_status: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray before 2.52 has no token authentication: any user of the machine could run code."""
    monkeypatch.setenv("GUARDED", "no")
    source = LocalClusters(tmp_path / "state", in_use=True)
    with pytest.raises(LocalClusterError, match=r"without a token.*Ray 2\.50\.1.*2\.52"):
        await source.acquire(PLAN, Heard(pytest.fail))
    assert await LocalCluster(tmp_path / "state").find() is None
