"""The doctor where there is nothing to examine, or something else: one clear line, and soon."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio.to_thread
import pytest
from aiohttp import web
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import (
    PREFECT_API_KEY,
    PREFECT_API_SSL_CERT_FILE,
    temporary_settings,
)

from prefect_ray_worker.doctor import probe
from prefect_ray_worker.doctor.examine import examine
from prefect_ray_worker.doctor.report import Check, CheckSubject, Grade
from tests.fake_ray import FakeJob, FakeRay, Timeline
from tests.fake_ray.faults import Fault, Kind
from tests.fake_ray.nodes import FakeNode
from tests.fake_ray.script import PENDING_FOREVER, SUCCEEDS_SOON
from tests.integration.busy_api import busy_api
from tests.integration.harness import Pool, set_default, settings_of
from tests.ports import free_port
from tests.prefect_server import PrefectServer
from tests.real_ray import RealRay

_MOST_SECONDS = 30
_AUTO_INSTALL = "PREFECT_RUNNER_AUTO_INSTALL_DEPENDENCIES"


async def failure_of(target: str | None, *, wait: float = 5) -> Check:
    """Return the one thing that has failed, and check that it was said soon and last."""
    began = time.monotonic()
    checks = [check async for check in examine(target, {}, wait=wait)]
    assert time.monotonic() - began < _MOST_SECONDS
    failures = [check for check in checks if check.grade is Grade.FAILED]
    assert failures == checks[-1:], checks
    assert "\n" not in str(failures[0])
    return failures[0]


class _NotRay(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<html>Welcome to the coffee machine.</html>")

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def web_page() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _NotRay)
    thread = threading.Thread(target=server.serve_forever, name="web-page")
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


async def test_nothing_listens() -> None:
    failure = await failure_of(f"http://127.0.0.1:{free_port()}")
    assert failure.subject is CheckSubject.DASHBOARD
    assert "No answer from the Ray cluster" in failure.says


async def test_https_where_ray_speaks_http(ray: FakeRay) -> None:
    failure = await failure_of(ray.address.replace("http://", "https://"))
    assert failure.subject is CheckSubject.TLS
    assert "Ray itself serves plain http" in failure.advice


async def test_another_web_server() -> None:
    with web_page() as address:
        failure = await failure_of(address)
    assert failure.subject is CheckSubject.DASHBOARD
    assert "does not answer as a Ray dashboard" in failure.says


async def test_server_that_hangs(ray: FakeRay) -> None:
    ray.faults.add(Fault("GET", "/api/version", Kind.HANG, times=None))
    failure = await failure_of(ray.address)
    assert failure.subject is CheckSubject.DASHBOARD
    assert "does not answer within 10 s" in failure.says
    assert "8265" in failure.advice


@pytest.mark.extra
async def test_old_ray_and_many_records(ray: FakeRay) -> None:
    ray.ray_version = "2.9.3"
    ray.on_submit = PENDING_FOREVER
    for number in range(1001):
        ray.add_job(f"old-{number}", "SUCCEEDED")
    checks = {check.subject: check async for check in examine(ray.address, {}, wait=1)}
    assert checks[CheckSubject.RAY_VERSION].grade is Grade.FAILED
    assert "2.10" in checks[CheckSubject.RAY_VERSION].advice
    assert checks[CheckSubject.FINISHED_JOBS].grade is Grade.WARNING
    assert "Finished jobs on record: 1001." in checks[CheckSubject.FINISHED_JOBS].says
    assert "delete_job_after_seconds" in checks[CheckSubject.FINISHED_JOBS].advice


async def checks_of_dropped_gpus(ray: FakeRay) -> dict[Any, Check]:
    """Return what the doctor says who was to ask for four GPUs, and has not asked for them."""
    asked: list[Any] = []

    def on_submit(job: FakeJob) -> Timeline:
        asked.append(job.body.get("entrypoint_num_gpus"))
        return SUCCEEDS_SOON

    ray.on_submit = on_submit
    variables = {"entrypoint_num_gpus": 4}
    checks = {check.subject: check async for check in examine(ray.address, variables, wait=5)}
    assert asked == [None]
    assert checks[CheckSubject.PROBE_JOB].grade is Grade.WARNING, checks
    return checks


async def test_request_that_no_node_can_fulfil_is_not_sent(ray: FakeRay) -> None:
    """Ray's autoscaler writes an error about it into the log of every run on the cluster."""
    checks = await checks_of_dropped_gpus(ray)
    probe = checks[CheckSubject.PROBE_JOB]
    assert "asks for 4 GPU" in probe.says
    assert "autoscaler" in probe.advice
    assert checks[CheckSubject.CLEAN_UP].grade is Grade.OK


async def test_request_is_not_sent_where_the_cluster_does_not_list_its_nodes(ray: FakeRay) -> None:
    """Nothing tells whether a node can fulfil it, and an infeasible job cannot be ended."""
    ray.faults.add(Fault("GET", "/api/v0/nodes", Kind.STATUS, times=None, status=404))
    probe = (await checks_of_dropped_gpus(ray))[CheckSubject.PROBE_JOB]
    assert "does not list its nodes, so nothing shows whether one has 4 GPU" in probe.says
    assert "/api/v0/nodes" in probe.advice


async def test_probe_that_cannot_start_says_why_and_what_is_left(ray: FakeRay) -> None:
    """Ray ends no PENDING job: what stays behind has to be named."""
    ray.on_submit = PENDING_FOREVER
    ray.nodes = [FakeNode({"CPU": 2.0}, used={"CPU": 2.0})]
    variables = {"entrypoint_num_cpus": 1}
    checks = {check.subject: check async for check in examine(ray.address, variables, wait=1)}
    probe = checks[CheckSubject.PROBE_JOB]
    assert probe.says.startswith("ResourcesBusy: ")
    assert "asks for 1 CPU" in probe.says
    assert checks[CheckSubject.LOGS].grade is Grade.SKIPPED
    left = checks[CheckSubject.CLEAN_UP]
    assert left.grade is Grade.FAILED
    assert next(iter(ray.jobs)) in left.says
    assert "ray job stop" in left.advice


async def test_probe_knows_for_how_long_it_is_waited_for(ray: FakeRay) -> None:
    asked: list[str] = []

    def on_submit(job: FakeJob) -> Timeline:
        asked.append(job.body["entrypoint"])
        return SUCCEEDS_SOON

    ray.on_submit = on_submit
    async for _ in examine(ray.address, {}, wait=600):
        pass
    assert [entrypoint.endswith(" '' 600") for entrypoint in asked] == [True]


async def test_record_that_comes_back_as_a_ghost_is_deleted_again(ray: FakeRay) -> None:
    ray.ghost_seconds = 60  # a head that is slow to notice that the job has ended
    checks = {check.subject: check async for check in examine(ray.address, {}, wait=5)}
    assert checks[CheckSubject.CLEAN_UP].grade is Grade.OK, checks[CheckSubject.CLEAN_UP]
    assert ray.requests.number_of("DELETE") == 2, "it said that all is gone before the ghost came"
    assert ray.jobs == {}


async def test_no_cluster_is_named(tmp_path: Path) -> None:
    with settings_of("", tmp_path):
        failure = await failure_of(None)
    assert failure.subject is CheckSubject.TARGET
    assert "PREFECT_INTEGRATIONS_RAY_WORKER_ADDRESS" in failure.advice


@pytest.mark.parametrize(
    ("api_url", "named", "says"),
    [
        ("", "research", "PREFECT_API_URL is not set"),
        ("http://127.0.0.1:9/api", "research", "Cannot read work pool 'research'"),
        ("", "ray://head:10001", "is a Ray Client address"),
        ("", "http://user:pw@head:8265", "holds credentials"),
    ],
)
async def test_target_that_cannot_be_found(
    tmp_path: Path, api_url: str, named: str, says: str
) -> None:
    with settings_of(api_url, tmp_path):
        failure = await failure_of(named)
    assert failure.subject is CheckSubject.TARGET
    assert says in failure.says
    assert "pw@" not in failure.says


async def test_login_page_in_front_of_prefect_is_no_traceback(tmp_path: Path) -> None:
    with web_page() as address, settings_of(f"{address}/api", tmp_path):
        failure = await failure_of("research")
    assert failure.subject is CheckSubject.TARGET
    assert f"What answers at {address}/api is not a Prefect API" in failure.says
    assert "login" in failure.advice


async def test_certificates_of_the_prefect_api_that_are_not_there_are_named(tmp_path: Path) -> None:
    with (
        settings_of("http://127.0.0.1:9/api", tmp_path),
        temporary_settings({PREFECT_API_SSL_CERT_FILE: "/no/such.pem"}),
    ):
        failure = await failure_of("research")
    assert "PREFECT_API_SSL_CERT_FILE '/no/such.pem' cannot be used" in failure.says


async def test_a_key_with_the_line_feed_of_a_file_is_named(tmp_path: Path) -> None:
    """Prefect's client tries for a minute, and says `Illegal header value`."""
    with (
        settings_of("http://127.0.0.1:9/api", tmp_path),
        temporary_settings({PREFECT_API_KEY: "hunter2\n"}),
    ):
        failure = await failure_of("research")
    assert "PREFECT_API_KEY begins or ends with white space" in failure.says
    assert "api-key.txt" in failure.advice
    assert "hunter2" not in str(failure)


@pytest.mark.parametrize(
    ("name", "default", "says"),
    [
        ("cluster", {"$ref": {"block_document_id": str(UUID(int=7))}}, "Block not found: ID "),
        ("name", "{{ prefect.blocks.secret }}", "'name' has the placeholder 'prefect.blocks."),
    ],
)
async def test_default_of_the_pool_that_refers_to_nothing_is_named(
    here: Pool, name: str, default: object, says: str
) -> None:
    await set_default(here, name, default)
    failure = await failure_of(here.name)
    assert failure.subject is CheckSubject.TARGET
    assert says in str(failure)


@pytest.mark.parametrize(
    "cluster", [{"address": "http://127.0.0.1:9"}, {"kuberay": {"image": "ray:2.60.0"}}], ids=str
)
async def test_pool_whose_every_run_is_refused_is_named(
    here: Pool, cluster: dict[str, Any]
) -> None:
    """The probe's own command hid what our driver cannot do, and all was well."""
    for name, default in {**cluster, "env": {_AUTO_INSTALL: "true"}}.items():
        await set_default(here, name, default)
    failure = await failure_of(here.name)
    assert failure.subject is CheckSubject.TARGET
    assert f"'env.{_AUTO_INSTALL}' has no effect on a Ray Job" in failure.says


async def test_image_without_a_command_is_no_refusal(ray: FakeRay) -> None:
    """Only a flow without a deployment cannot run in one."""
    ray.on_submit = SUCCEEDS_SOON
    variables = {"runtime_env": {"image_uri": "flows:1"}}
    checks = [check async for check in examine(ray.address, variables, wait=5)]
    assert checks[0].grade is Grade.OK
    assert CheckSubject.PROBE_JOB in {check.subject for check in checks}


async def test_pool_that_prefect_does_not_have(prefect_settings: None) -> None:
    failure = await failure_of("no-such-pool")
    assert "has no work pool 'no-such-pool'" in failure.says


@pytest.mark.ray
async def test_a_404_that_is_not_prefects_does_not_mean_that_a_pool_is_missing(
    prefect_api: PrefectServer, prefect_settings: None, tmp_path: Path
) -> None:
    def refuses(request: web.Request) -> web.Response | None:
        if "/work_pools/" not in request.path:
            return None
        return web.Response(status=404, content_type="text/html", text="<html>no backend</html>")

    async with busy_api(prefect_api.api_url, refuses) as url:
        with settings_of(url, tmp_path / "behind-a-proxy"):
            failure = await failure_of("some-pool")
            with pytest.raises(PrefectHTTPStatusError, match="404"):
                await anyio.to_thread.run_sync(copy_context().run, probe.api, "some-pool")
    assert failure.subject is CheckSubject.TARGET
    assert "Cannot read work pool 'some-pool'" in str(failure)
    assert "has no work pool" not in str(failure)
    assert (await anyio.to_thread.run_sync(probe.api, "some-pool"))["knows_pool"] is False


@pytest.mark.extra
async def test_port_of_another_part_of_ray(ray_cluster: RealRay) -> None:
    failure = await failure_of(f"http://{ray_cluster.gcs_address}")
    assert failure.subject is CheckSubject.DASHBOARD
    assert "Ray's dashboard, 8265 by default" in failure.advice


async def test_port_of_the_prefect_server(prefect_api: PrefectServer) -> None:
    failure = await failure_of(prefect_api.api_url.removesuffix("/api"))
    assert failure.subject is CheckSubject.DASHBOARD
    assert failure.advice.startswith("This is a Prefect server.")


async def test_advice_of_an_error_is_in_the_field_for_advice() -> None:
    failure = await failure_of(f"http://127.0.0.1:{free_port()}")
    assert "Check that" not in failure.says
    assert failure.advice.startswith("Check that its dashboard runs")
