"""`LocalClusters` with a small HTTP server in the place of `ray start`."""

import json
import sys
from pathlib import Path

import pytest

from prefect_ray_worker.clusters.choice import ClusterSources
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
        status, _, jobs = pathlib.Path(os.environ["JOBS_ANSWER"]).read_text().partition(" ")
        self.answer(int(status), jobs)

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
def jobs_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with the answer to `GET /api/jobs/`: its status and the body."""
    file = tmp_path / "answer"
    file.write_text("200 []")

    def command(ports: Ports, _: TempDirectory) -> list[str]:
        return [sys.executable, "-c", RAY, str(ports.dashboard), str(ports.agent)]

    monkeypatch.setattr(launch, "command", command)
    monkeypatch.setenv("JOBS_ANSWER", str(file))
    monkeypatch.setenv("GUARDED", "yes")
    return file


@pytest.mark.parametrize("status", [500, 401, 404])
async def test_ray_is_left_up_when_its_jobs_are_not_known(
    jobs_answer: Path, tmp_path: Path, status: int
) -> None:
    """The flows that ran were ended when the Jobs API failed as their worker exited."""
    directory, told = tmp_path / "state", []
    source = LocalClusters(directory, in_use=True)
    await source.acquire(PLAN, Heard(told.append))
    jobs_answer.write_text(f"{status} []")
    await source.close(told.append, frozenset())
    info = await LocalCluster(directory).find()
    assert info is not None
    assert "left up" in told[-1]
    assert f"kill {info.pid}" in told[-1]

    jobs_answer.write_text("200 []")
    heir = LocalClusters(directory, in_use=True)
    await heir.take_over(told.append)
    await heir.close(told.append, frozenset())
    assert await LocalCluster(directory).find() is None
    assert told[-1] == "Stopped the local Ray cluster."


async def test_ray_is_left_up_for_jobs_that_run_or_wait_unless_their_runs_have_ended(
    jobs_answer: Path, tmp_path: Path
) -> None:
    """A job that was stopped before it started shows as PENDING until Ray starts it."""

    def jobs(**statuses: str) -> str:
        found = [
            {"type": "SUBMISSION", "submission_id": name, "status": status}
            for name, status in statuses.items()
        ]
        return f"200 {json.dumps(found)}"

    directory, told = tmp_path / "state", list[str]()
    source = LocalClusters(directory, in_use=True)
    first = ClusterSources(source)
    await source.acquire(PLAN, Heard(told.append))
    jobs_answer.write_text(jobs(runs="RUNNING", waits="PENDING", ended="PENDING", over="FAILED"))
    first.count_as_ended("ended")
    await first.close(told.append)
    assert told[-1].startswith("2 Ray Job(s) are still running")
    assert await LocalCluster(directory).find() is not None

    heir = ClusterSources(LocalClusters(directory, in_use=True))
    await heir.take_over(told.append)
    jobs_answer.write_text(jobs(waits="STOPPED", ended="PENDING"))
    heir.count_as_ended("ended")
    await heir.close(told.append)
    assert told[-1] == "Stopped the local Ray cluster."
    assert await LocalCluster(directory).find() is None


async def test_a_ray_that_takes_requests_without_a_token_is_stopped(
    jobs_answer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray before 2.52 has no token authentication: any user of the machine could run code."""
    monkeypatch.setenv("GUARDED", "no")
    source = LocalClusters(tmp_path / "state", in_use=True)
    with pytest.raises(LocalClusterError, match=r"without a token.*Ray 2\.50\.1.*2\.52"):
        await source.acquire(PLAN, Heard(pytest.fail))
    assert await LocalCluster(tmp_path / "state").find() is None
