"""What we rely on in Ray's Jobs API; the fake must answer as a real Ray does."""

import pytest

from prefect_ray_worker.errors import (
    JobAlreadyExists,
    JobNotFound,
    JobNotTerminal,
    NotRayDashboard,
    RequestRejected,
)
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.models import JobDetails, JobStatus
from prefect_ray_worker.shared.resources import Asked, ClusterResources
from tests.contract.conftest import Cluster, new_id
from tests.waiting import wait_until


async def test_version_names_the_release_and_the_session(cluster: Cluster) -> None:
    version = await cluster.client.version()
    assert version.version == "4"
    assert version.ray_version.startswith("2.")
    assert version.session_name is not None
    assert version.session_name.startswith("session_")


async def test_a_submitted_job_can_be_read_back(cluster: Cluster) -> None:
    submission_id = new_id()
    answer = await cluster.submit("true", submission_id=submission_id, metadata={"flow": "a"})
    assert answer == submission_id
    job = await cluster.client.get(submission_id)
    assert (job.submission_id, job.type, job.entrypoint) == (submission_id, "SUBMISSION", "true")
    assert job.metadata == {"flow": "a"}
    assert job.start_time is not None


async def test_a_job_that_exits_with_0_succeeds(cluster: Cluster) -> None:
    job = await cluster.until(await cluster.submit("true"), "SUCCEEDED")
    assert job.driver_exit_code == 0
    assert job.error_type is None
    assert job.message == "Job finished successfully."
    assert job.end_time is not None


async def test_a_failed_entrypoint_has_its_exit_code_and_a_message(cluster: Cluster) -> None:
    job = await cluster.until(await cluster.submit("exit 3"), "FAILED")
    assert job.driver_exit_code == 3
    assert job.error_type == "JOB_ENTRYPOINT_COMMAND_ERROR"
    assert job.message is not None
    assert job.message.startswith("Job entrypoint command failed with exit code 3")


async def test_an_id_is_taken_once(cluster: Cluster) -> None:
    submission_id = await cluster.submit("true")
    with pytest.raises(JobAlreadyExists):
        await cluster.submit("true", submission_id=submission_id)


async def test_a_duplicate_id_is_a_500_that_says_so(cluster: Cluster) -> None:
    """The raw answer that makes reading texts necessary."""
    submission_id = await cluster.submit("true")
    body = {"entrypoint": "true", "submission_id": submission_id}
    response = await cluster.raw.post("/api/jobs/", json=body)
    assert response.status_code == 500
    assert response.headers["content-type"].startswith("text/plain")
    assert "RuntimeError: Request failed with status code 400:" in response.text
    assert f"Job with submission_id {submission_id} already exists" in response.text


async def test_an_unknown_job_is_not_found(cluster: Cluster) -> None:
    with pytest.raises(JobNotFound, match="does not exist"):
        await cluster.client.get(new_id())


async def test_the_list_contains_the_job(cluster: Cluster) -> None:
    submission_id = await cluster.submit("true")
    assert submission_id in [job.submission_id for job in await cluster.client.list()]


async def test_a_running_job_that_is_stopped_ends_stopped(cluster: Cluster) -> None:
    submission_id = await cluster.submit("exec sleep 300")
    await cluster.until(submission_id, "RUNNING")
    assert await cluster.client.stop(submission_id) is True
    job = await cluster.until(submission_id, "STOPPED")
    assert job.driver_exit_code is None
    assert job.message == "Job was intentionally stopped."


async def test_stopping_an_ended_job_answers_false(cluster: Cluster) -> None:
    submission_id = await cluster.submit("true")
    await cluster.until(submission_id, "SUCCEEDED")
    # The supervisor outlives the status by a moment, and Ray answers true until it is gone.
    await _until_nothing_is_left_to_stop(cluster, submission_id)
    assert (await cluster.client.get(submission_id)).status == JobStatus.SUCCEEDED


async def test_stopping_an_unknown_job_is_not_found(cluster: Cluster) -> None:
    with pytest.raises(JobNotFound):
        await cluster.client.stop(new_id())


async def test_stopping_a_job_that_waits_for_resources_answers_true_and_leaves_it_pending(
    cluster: Cluster,
) -> None:
    submission_id = await cluster.submit("true", entrypoint_resources={"nope": 1})
    assert await cluster.client.stop(submission_id) is True
    # Asking twice proves that the first request had its chance.
    assert await cluster.client.stop(submission_id) is True
    job = await cluster.client.get(submission_id)
    assert job.status == JobStatus.PENDING
    assert "waiting for resources" in (job.message or "")


async def test_the_record_of_a_running_job_is_not_deleted(cluster: Cluster) -> None:
    submission_id = await cluster.submit("exec sleep 300")
    await cluster.until(submission_id, "RUNNING")
    with pytest.raises(JobNotTerminal, match="non-terminal state RUNNING"):
        await cluster.client.delete(submission_id)
    await cluster.client.stop(submission_id)
    await cluster.until(submission_id, "STOPPED")


async def test_the_record_of_a_finished_job_is_deleted(cluster: Cluster) -> None:
    submission_id = await cluster.submit("true")
    await cluster.until(submission_id, "SUCCEEDED")
    assert await cluster.client.delete(submission_id) is True
    with pytest.raises(JobNotFound):
        await cluster.client.get(submission_id)


async def test_a_record_that_is_deleted_right_after_the_end_comes_back_as_failed(
    cluster: Cluster,
) -> None:
    """A trap: Ray's monitor misses the record, blames the supervisor and writes a new one."""
    # The monitor looks once a second and may look just before the deletion: hence three.
    jobs = [await cluster.submit("true") for _ in range(3)]
    for submission_id in jobs:
        await cluster.until(submission_id, "SUCCEEDED")
        await cluster.client.delete(submission_id)

    async def ghosts() -> list[JobDetails]:
        return [job for job in await cluster.client.list() if job.submission_id in jobs]

    ghost = (await wait_until(ghosts, timeout=60, description="a deleted job comes back"))[0]
    assert (ghost.status, ghost.error_type) == ("FAILED", "JOB_SUPERVISOR_ACTOR_DIED")
    assert ghost.entrypoint == "Entrypoint not found."
    assert ghost.metadata is None
    assert ghost.submission_id is not None
    assert await cluster.client.delete(ghost.submission_id) is True


async def test_deleting_an_unknown_job_is_not_found(cluster: Cluster) -> None:
    with pytest.raises(JobNotFound):
        await cluster.client.delete(new_id())


async def test_an_unknown_field_is_rejected(cluster: Cluster) -> None:
    body = {"entrypoint": "true", "submission_id": new_id(), "from_the_future": 1}
    response = await cluster.raw.post("/api/jobs/", json=body)
    assert response.status_code == 400
    assert "unexpected keyword argument 'from_the_future'" in response.text


async def test_null_fields_are_ignored_even_unknown_ones(cluster: Cluster) -> None:
    body = {"entrypoint": "true", "submission_id": new_id(), "from_the_future": None}
    response = await cluster.raw.post("/api/jobs/", json=body)
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "missing 1 required positional argument: 'entrypoint'"),
        ({"entrypoint": "true", "metadata": {"n": 1}}, "metadata values must be strings"),
    ],
)
async def test_a_wrong_body_is_a_400_that_ends_in_the_cause(
    cluster: Cluster, body: dict[str, object], words: str
) -> None:
    response = await cluster.raw.post("/api/jobs/", json=body)
    assert response.status_code == 400
    assert words in response.text.splitlines()[-1]


@pytest.mark.parametrize("content", ["{", "[1]"])
async def test_a_body_that_is_no_object_is_a_bare_500(cluster: Cluster, content: str) -> None:
    headers = {"Content-Type": "application/json"}
    response = await cluster.raw.post("/api/jobs/", content=content, headers=headers)
    assert response.status_code == 500
    assert response.text == "500 Internal Server Error\n\nServer got itself in trouble"


async def test_the_agent_that_takes_jobs_is_found_without_a_job(cluster: Cluster) -> None:
    await cluster.client.expect_agent()
    with pytest.raises(JobNotFound):  # others use this Ray, so the whole list tells nothing
        await cluster.client.get("prefect-ray-worker-asks-for-the-agent")


async def test_a_bad_label_selector_is_rejected_with_the_cause(cluster: Cluster) -> None:
    with pytest.raises(RequestRejected, match="Invalid label key name `not a label`"):
        await cluster.submit("true", entrypoint_label_selector={"not a label": "x"})


async def test_without_its_trailing_slash_the_list_is_a_404_that_is_not_about_a_job(
    cluster: Cluster,
) -> None:
    for method in ("GET", "POST"):
        response = await cluster.raw.request(method, "/api/jobs")
        assert response.status_code == 404
        assert "does not exist" not in response.text


async def test_an_address_with_a_wrong_path_is_not_a_dashboard(cluster: Cluster) -> None:
    address = f"{cluster.client.connection.address}/elsewhere"
    async with JobsClient(Connection(address)) as client:
        with pytest.raises(NotRayDashboard):
            await client.get(new_id())


@pytest.mark.parametrize(
    "headers", [{"User-Agent": "Mozilla/5.0"}, {"Origin": "http://a"}, {"Referer": "http://a"}]
)
async def test_browsers_may_only_read(cluster: Cluster, headers: dict[str, str]) -> None:
    path = f"/api/jobs/{new_id()}"
    for method, url in (("POST", "/api/jobs/"), ("POST", f"{path}/stop"), ("DELETE", path)):
        response = await cluster.raw.request(method, url, headers=headers)
        assert response.status_code == 405
        assert response.text == f"'{method}' method not allowed for browser traffic."
    assert (await cluster.raw.get("/api/version", headers=headers)).status_code == 200


async def _until_nothing_is_left_to_stop(cluster: Cluster, submission_id: str) -> None:
    async def over() -> bool:
        return not await cluster.client.stop(submission_id)

    await wait_until(over, timeout=60, description="the supervisor is gone")


async def test_a_package_is_there_once_it_has_been_put(cluster: Cluster) -> None:
    name = f"_ray_pkg_{new_id()}.zip"
    assert not await cluster.client.has_package(name)
    await cluster.client.put_package(name, b"PK\x05\x06" + bytes(18))
    assert await cluster.client.has_package(name)


async def test_nodes_say_what_they_have_and_what_is_free(cluster: Cluster) -> None:
    async def known() -> ClusterResources | None:
        found = await cluster.client.resources()
        # Ray's monitor speaks some seconds after the head's start.
        return found if found.free({"CPU": 1}) is not None else None

    found = await wait_until(known, timeout=30, description="free resources")
    assert found is not None
    (node,) = found.nodes
    assert node.total["CPU"] == 2
    assert 0 <= (node.free or {})["CPU"] <= 2
    assert node.total["memory"] > 1024**3
    assert node.labels["ray.io/node-id"]
    assert node.could_take(Asked({"CPU": 2}, {"ray.io/node-id": node.labels["ray.io/node-id"]}))
    assert not node.could_take(Asked({"CPU": 3}))


async def test_nodes_name_the_address_and_the_port_of_their_agent(cluster: Cluster) -> None:
    """The worker's token goes to no other port of a node."""
    response = await cluster.raw.get("/nodes", params={"view": "summary"})
    (node,) = response.json()["data"]["summary"]
    assert node["raylet"]["nodeManagerAddress"]
    assert isinstance(node["raylet"]["dashboardAgentListenPort"], int)
