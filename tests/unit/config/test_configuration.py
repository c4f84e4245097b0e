"""Job variables in, one frozen request or one clear refusal out."""

import json
import re
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import Flow, FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.settings import PREFECT_API_KEY, PREFECT_API_URL, temporary_settings
from prefect.utilities.schema_tools.validation import validate

from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.errors import InvalidConfiguration
from prefect_ray_worker.ray_api.models import JobSubmitRequest
from prefect_ray_worker.shared.environment import variables_of_run
from prefect_ray_worker.worker import RayWorker
from tests.unit.config import CLIENT

TEMPLATE = RayWorker.get_default_base_job_template()
SECRET = "hunter2-do-not-show"
BLOCK_REFERENCE = {"$ref": {"block_document_id": str(uuid4())}}


async def configure(**values: Any) -> RayJobConfiguration:
    return await RayJobConfiguration.from_template_and_values(TEMPLATE, values, client=CLIENT)


def prepared(configuration: RayJobConfiguration, name: str = "quiet-owl") -> JobSubmitRequest:
    flow = Flow(id=uuid4(), name="my flow", labels={})
    run = FlowRun(id=uuid4(), flow_id=flow.id, name=name)
    configuration.prepare_for_flow_run(run, flow=flow, worker_name="worker 1")
    return configuration.submission_request("prefect-id")


REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "ray client address": ({"address": "ray://head:10001"}, ["'address'", "http://<head>:8265"]),
    "no scheme": ({"address": "head:8265"}, ["'address'", "http://<head>"]),
    "credentials in the address": (
        {"address": f"http://u:{SECRET}@head:8265"}, ["'address'", "RayCluster"],
    ),
    "block with a bad address": (
        {"cluster": {"address": "ftp://head", "token": SECRET}}, ["cluster.address", "http"],
    ),
    "two tokens": (
        {"cluster": {"address": "http://h:1", "token": SECRET, "token_path": "/x"}},
        ["cluster", "token_path"],
    ),
    "unknown variable": (
        {"entrypoint_num_cpu": 1}, ["entrypoint_num_cpu", "Did you mean 'entrypoint_num_cpus'"],
    ),
    "pip and uv": ({"runtime_env": {"pip": ["a"], "uv": ["b"]}}, ["runtime_env", "pip and uv"]),
    "requirements file": (
        {"runtime_env": {"pip": "requirements.txt"}}, ["runtime_env.pip", "a text", "Write a list"],
    ),
    "local working_dir": (
        {"runtime_env": {"working_dir": "./code"}}, ["runtime_env.working_dir", "s3://"],
    ),
    "local py_modules": (
        {"runtime_env": {"py_modules": ["s3://b/a.zip", "lib"]}}, ["runtime_env.py_modules.1"],
    ),
    "image with pip": (
        {"runtime_env": {"image_uri": "img", "pip": ["a"]}}, ["runtime_env", "image_uri", "pip"],
    ),
    "env value that is no text": (
        {"runtime_env": {"env_vars": {"THREADS": [4]}}}, ["runtime_env.env_vars.THREADS", "string"],
    ),
    "nested value in env": ({"env": {"THREADS": {"a": 1}}}, ["'env'", "THREADS", "a text"]),
    "name of a variable with its value": (
        {"env": {f"A={SECRET}": "1"}}, ["'env' has a variable named 'A=…'", "Write"],
    ),
    "misspelt key of runtime_env": (
        {"runtime_env": {"pips": ["a"]}}, ["'pips'", "Did you mean 'pip'"],
    ),
    "empty requirement": ({"runtime_env": {"pip": [""]}}, ["runtime_env.pip", "empty"]),
    "memory": ({"entrypoint_memory": "2 Gigs"}, ["entrypoint_memory", "2GiB"]),
    "no memory": ({"entrypoint_memory": 0}, ["entrypoint_memory", "bytes"]),
    "negative cpus": ({"entrypoint_num_cpus": -1}, ["entrypoint_num_cpus", "-1", "0"]),
    "name with a slash": ({"name": "a/b"}, ["'name'", "slash"]),
    "reserved metadata": ({"metadata": {"job_name": "x"}}, ["metadata", "job_name"]),
    "reserved label": ({"labels": {"prefect.io/flow-run-id": "x"}}, ["labels", "prefect.io"]),
    "timeout of zero": ({"run_timeout_seconds": 0}, ["run_timeout_seconds", "1"]),
    "secrets in env are masked": ({"env": [SECRET]}, ["'env'"]),
}  # fmt: skip


# A value of the wrong kind, or one that cannot work, for every place that a Secret block can fill.
PLACES: dict[str, Any] = {
    "address": SECRET,
    "address with credentials": {"address": f"http://u:{SECRET}/x@head"},
    "address as ray": {"address": f"ray://u:{SECRET}@h:10001"},
    "address with a path": {"address": f"ftp://h/{SECRET}"},
    "address with a query": {"address": f"http://h?{SECRET}"},
    "cluster": SECRET,
    "cluster.address": {"cluster": {"address": SECRET}},
    "cluster.dashboard_url": {"cluster": {"address": "http://h", "dashboard_url": SECRET}},
    "cluster.headers": {"cluster": {"address": "http://h", "headers": SECRET}},
    "cluster.verify": {"cluster": {"address": "http://h", "verify": SECRET}},
    "cluster.unknown": {"cluster": {"address": "http://h", "token": {"x": SECRET}}},
    "runtime_env": SECRET,
    "runtime_env.pip": {"runtime_env": {"pip": SECRET}},
    "runtime_env.pip of numbers": {"runtime_env": {"pip": [SECRET, 3]}},
    "runtime_env.uv": {"runtime_env": {"uv": SECRET}},
    "runtime_env.conda": {"runtime_env": {"conda": [SECRET]}},
    "runtime_env.image_uri": {"runtime_env": {"image_uri": [SECRET]}},
    "runtime_env.working_dir": {"runtime_env": {"working_dir": SECRET}},
    "runtime_env.py_modules": {"runtime_env": {"py_modules": [SECRET]}},
    "runtime_env.excludes": {"runtime_env": {"excludes": SECRET}},
    "runtime_env.config": {"runtime_env": {"config": SECRET}},
    "runtime_env.config.setup": {"runtime_env": {"config": {"setup_timeout_seconds": SECRET}}},
    "runtime_env.env_vars": {"runtime_env": {"env_vars": {"A": [SECRET]}}},
    "env": [SECRET],
    "env.A": {"env": {"A": {"b": SECRET}}},
    "name": f"a/{SECRET}",
    "labels": SECRET,
    "labels.a": {"labels": {"a": [SECRET]}},
    "metadata": SECRET,
    "metadata.a": {"metadata": {"a": {"b": SECRET}}},
    "entrypoint_num_cpus": SECRET,
    "entrypoint_num_gpus": SECRET,
    "entrypoint_memory": SECRET,
    "entrypoint_resources": SECRET,
    "entrypoint_resources.a": {"entrypoint_resources": {"a": SECRET}},
    "entrypoint_label_selector": SECRET,
    "start_timeout_seconds": SECRET,
    "run_timeout_seconds": SECRET,
    "stop_grace_seconds": SECRET,
    "forward_logs": SECRET,
    "infrastructure_retries": SECRET,
    "delete_job_after_seconds": SECRET,
    "warm_driver_seconds": SECRET,
    "command": [SECRET],
    "no such variable": SECRET,
}


@pytest.mark.parametrize("place", PLACES)
async def test_refusals_publish_no_secret(place: str) -> None:
    """A value from a Secret block stood in the run's state, its logs and an event."""
    value = PLACES[place]
    values = value if isinstance(value, dict) else {place: value}
    with pytest.raises(InvalidConfiguration) as refused:
        await configure(**values)
    message = str(refused.value)
    assert SECRET not in message
    assert place.partition(" ")[0].split(".")[0] in message
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


@pytest.mark.parametrize("name", REFUSED)
async def test_bad_input_names_variable_value_and_way_out(name: str) -> None:
    values, said = REFUSED[name]
    with pytest.raises(InvalidConfiguration) as refused:
        await configure(**values)
    message = str(refused.value)
    for text in said:
        assert text in message
    assert SECRET not in message
    assert refused.value.__cause__ is None, "pydantic's own text shows raw input"
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


async def test_variable_that_the_pool_does_not_offer_is_explained() -> None:
    old = json.loads(json.dumps(TEMPLATE))
    del old["variables"]["properties"]["run_timeout_seconds"]
    with pytest.raises(InvalidConfiguration, match="on purpose, or an older release made"):
        await RayJobConfiguration.from_template_and_values(
            old, {"run_timeout_seconds": 5}, client=CLIENT
        )


async def test_template_key_that_nobody_reads_is_refused() -> None:
    edited = json.loads(json.dumps(TEMPLATE))
    edited["job_configuration"]["adress"] = "http://head:8265"
    with pytest.raises(InvalidConfiguration, match=r"'adress'.*base job template"):
        await RayJobConfiguration.from_template_and_values(edited, {}, client=CLIENT)


async def test_oversized_entrypoint_is_refused() -> None:
    configuration = await configure(command="echo " + "x" * 131_072)
    with pytest.raises(InvalidConfiguration, match=r"'command'.*131071"):
        prepared(configuration)


async def test_oversized_environment_names_the_largest() -> None:
    configuration = await configure(env={"SMALL": "x", "HUGE": "y" * 131_000})
    with pytest.raises(InvalidConfiguration, match=r"'env.HUGE' with 131000 bytes"):
        prepared(configuration)


async def test_every_variable_has_a_reader() -> None:
    """No ghost knobs: each variable changes the request, the connection or the limits."""
    everything = {
        "address": "http://head:8265",
        "runtime_env": {"pip": ["pandas"]},
        "env": {"A": "1"},
        "entrypoint_num_cpus": 1.5,
        "entrypoint_num_gpus": 0.5,
        "entrypoint_memory": "2GiB",
        "entrypoint_resources": {"ssd": 1},
        "entrypoint_label_selector": {"zone": "a"},
        "name": "nightly",
        "labels": {"cost": "42"},
        "metadata": {"team": "research"},
        "command": "python run.py",
        "stop_grace_seconds": 7,
        "delete_job_after_seconds": 60,
        "warm_driver_seconds": 90,
    }
    followed_elsewhere = {
        "cluster",
        "kuberay",
        "cluster_source",
        "start_timeout_seconds",
        "run_timeout_seconds",
        "infrastructure_retries",
        "forward_logs",
    }
    assert set(TEMPLATE["variables"]["properties"]) == set(everything) | followed_elsewhere
    assert set(TEMPLATE["job_configuration"]) == set(TEMPLATE["variables"]["properties"])
    configuration = await configure(**everything)
    body = prepared(configuration).body()
    assert configuration.connection() is not None
    assert body["entrypoint"].endswith("; python run.py")
    assert body["entrypoint_num_cpus"] == 1.5
    assert body["entrypoint_num_gpus"] == 0.5
    assert body["entrypoint_memory"] == 2 * 1024**3
    assert body["entrypoint_resources"] == {"ssd": 1}
    assert body["entrypoint_label_selector"] == {"zone": "a"}
    assert body["metadata"]["job_name"] == "nightly"
    assert body["metadata"]["cost"] == "42"
    assert body["metadata"]["team"] == "research"
    assert body["metadata"]["prefect-ray-worker/delete-job-after-seconds"] == "60"
    assert body["runtime_env"]["pip"] == ["pandas"]
    assert body["runtime_env"]["env_vars"]["A"] == "1"
    assert body["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "7"
    assert body["runtime_env"]["env_vars"]["PREFECT_RAY_WORKER_WARM_SECONDS"] == "90"


async def test_bare_job_sends_only_what_ray_needs() -> None:
    """Older clusters refuse keys that they do not know, so unset ones are not sent."""
    body = prepared(await configure()).body()
    assert sorted(body) == ["entrypoint", "metadata", "runtime_env", "submission_id"]
    assert re.search(r"; exec python -m prefect_ray_worker.driver \S{36} id$", body["entrypoint"])


async def test_job_with_an_image_of_its_own_runs_prefects_executor() -> None:
    """Ray takes nothing of ours beside an image, so nothing of ours may be expected in it."""
    configuration = await configure(runtime_env={"image_uri": "docker.io/x"})
    flow = Flow(id=uuid4(), name="f", labels={})
    run = FlowRun(id=uuid4(), flow_id=flow.id, name="r", deployment_id=uuid4())
    configuration.prepare_for_flow_run(run, flow=flow)
    body = configuration.submission_request("prefect-id", package="gcs://ours.zip").body()
    assert body["entrypoint"].endswith("; exec python -m prefect flow-run execute")
    assert sorted(body["runtime_env"]) == ["env_vars", "image_uri"]


async def test_image_of_its_own_is_refused_where_only_our_driver_finds_the_code() -> None:
    configuration = await configure(runtime_env={"image_uri": "docker.io/x"})
    with pytest.raises(InvalidConfiguration, match=r"no flow without a deployment\. Remove image_"):
        prepared(configuration)


async def test_what_differs_from_run_to_run_is_in_the_entrypoint_only() -> None:
    bodies = [prepared(await configure(env={"A": "1"})).body() for _ in range(2)]
    assert bodies[0]["runtime_env"] == bodies[1]["runtime_env"]
    assert bodies[0]["entrypoint"] != bodies[1]["entrypoint"]
    assert "PREFECT__FLOW_RUN_ID=" in bodies[0]["entrypoint"]


async def test_entrypoint_of_a_driver_that_goes_with_the_job_names_only_run_and_attempt() -> None:
    """Ray's page of jobs showed `export PREFECT__DEPLOYMENT_ID=…` for each run."""
    configuration = await configure()
    flow = Flow(id=uuid4(), name="my flow", labels={})
    deployment = DeploymentResponse(id=uuid4(), name="nightly", flow_id=flow.id)
    run = FlowRun(id=uuid4(), flow_id=flow.id, name="r", deployment_id=deployment.id)
    configuration.prepare_for_flow_run(
        run, deployment=deployment, flow=flow, worker_name="worker 1", worker_id=uuid4()
    )
    body = configuration.submission_request("prefect-id", package="gcs://ours.zip").body()
    assert body["entrypoint"] == f"exec python -m prefect_ray_worker.driver {run.id} id"
    prefects = {k: v for k, v in configuration.env.items() if k.startswith("PREFECT__")}
    assert len(prefects) == 7
    assert variables_of_run(str(run.id), body["metadata"]) == prefects


async def test_variable_that_the_metadata_does_not_tell_is_exported_nevertheless() -> None:
    configuration = await configure()
    run = FlowRun(id=uuid4(), flow_id=uuid4(), name="r")
    configuration.prepare_for_flow_run(run)  # without the flow there is no label with its id
    body = configuration.submission_request("prefect-id", package="gcs://ours.zip").body()
    assert body["entrypoint"].startswith(f"export PREFECT__FLOW_ID={run.flow_id}; exec python -m")


@pytest.mark.parametrize("command", [None, "python run.py"])
async def test_what_may_not_know_the_metadata_gets_all_variables_exported(
    command: str | None,
) -> None:
    """A command of the user's, and a driver that the nodes have, which may be older."""
    configuration = await configure(**({"command": command} if command else {}))
    prepared(configuration)
    package = "gcs://ours.zip" if command else None
    entrypoint = configuration.submission_request("prefect-id", package=package).entrypoint
    assert entrypoint.startswith("export PREFECT__FLOW_ID=")
    for name in ("FLOW_RUN_ID", "FLOW_NAME", "WORKER_NAME"):
        assert f" PREFECT__{name}=" in entrypoint


async def test_flow_names_are_quoted_for_the_shell() -> None:
    body = prepared(await configure()).body()
    assert "PREFECT__FLOW_NAME='my flow'" in body["entrypoint"]


async def test_api_key_never_enters_the_job() -> None:
    with temporary_settings(
        {PREFECT_API_KEY: SECRET, PREFECT_API_URL: "https://api.example.com/api"}
    ):
        body = prepared(await configure()).body()
    assert SECRET not in json.dumps(body)
    assert body["runtime_env"]["env_vars"]["PREFECT_API_URL"] == "https://api.example.com/api"


async def test_run_name_with_a_slash_is_harmless() -> None:
    """Only what the user wrote into the variable is refused; Prefect's own names are adapted."""
    body = prepared(await configure(), name="2026/11/23").body()
    assert body["metadata"]["job_name"] == "2026-11-23"


async def test_name_template_is_filled_in() -> None:
    body = prepared(await configure(name="nightly-{{ ctx.flow.name }}")).body()
    assert body["metadata"]["job_name"] == "nightly-my flow"


async def test_env_of_none_removes_an_inherited_setting() -> None:
    with temporary_settings({PREFECT_API_URL: "http://server/api"}):
        body = prepared(await configure(env={"PREFECT_API_URL": None})).body()
    assert "PREFECT_API_URL" not in body["runtime_env"]["env_vars"]


async def test_address_beats_the_block_and_its_secrets_stay_at_home() -> None:
    block = {"address": "http://one:8265", "token": SECRET}
    same = (await configure(address="http://one:8265", cluster=block)).connection()
    other = (await configure(address="http://two:8265", cluster=block)).connection()
    assert same is not None
    assert other is not None
    assert same.token.literal == SECRET
    assert other.address == "http://two:8265"
    assert other.token.literal is None
    assert SECRET not in repr(same)


async def test_no_address_anywhere() -> None:
    assert (await configure()).connection() is None


@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param({"cluster": BLOCK_REFERENCE}, id="a block"),
        # The server masks a whole mapping as one text before it checks the pool's defaults.
        pytest.param({"cluster": {"address": "http://r:8265", "headers": "****"}}, id="masked"),
        pytest.param({"kuberay": {"kubeconfig": BLOCK_REFERENCE}}, id="below a variable"),
    ],
)
def test_the_server_s_check_takes_blocks(chosen: dict[str, Any]) -> None:
    validate(chosen, TEMPLATE["variables"], raise_on_error=True)


def test_the_form_has_no_fields_of_blocks() -> None:
    """The UI offers saved blocks; the fields were a sixth of what a new run costs the server."""
    definitions = TEMPLATE["variables"]["definitions"]
    blocks = [d for d in definitions.values() if "block_type_slug" in d]
    assert {d["block_type_slug"] for d in blocks} == {"ray-cluster", "kubernetes-cluster-config"}
    assert not [d for d in blocks if "properties" in d]


async def test_env_takes_what_yaml_gives_as_text() -> None:
    """`N: 4` in prefect.yaml was taken by the deployment and refused at each run with 422."""
    given = {"N": 4, "RATIO": 0.5, "FLAG": True, "OFF": False, "TEXT": "x"}
    as_text = {"N": "4", "RATIO": "0.5", "FLAG": "true", "OFF": "false", "TEXT": "x"}
    configuration = await configure(
        env=given, runtime_env={"env_vars": {"M": 8}}, labels={"a": 1}, metadata={"b": True}
    )
    body = prepared(configuration).body()
    assert (as_text | {"M": "8"}).items() <= body["runtime_env"]["env_vars"].items()
    assert {"a": "1", "b": "true"}.items() <= body["metadata"].items()


@pytest.mark.parametrize("field", ["env", "labels", "metadata"])
def test_the_server_s_check_takes_what_yaml_gives(field: str) -> None:
    import jsonschema

    jsonschema.validate({field: {"N": 4, "F": True}}, TEMPLATE["variables"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({field: {"N": [4]}}, TEMPLATE["variables"])
