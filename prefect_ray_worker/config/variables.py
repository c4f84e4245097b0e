"""The job variables: the form that Prefect's UI shows, and the checks on each field."""

from typing import Annotated, Any

from prefect.workers.base import BaseVariables
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, WithJsonSchema

from prefect_ray_worker.config.block import DashboardAddress, RayCluster
from prefect_ray_worker.config.cluster_source import check_cluster_source
from prefect_ray_worker.config.kuberay import KubeRay
from prefect_ray_worker.config.memory import Memory
from prefect_ray_worker.config.runtime_env import RuntimeEnv, Text, as_text

RESERVED_METADATA = frozenset({"job_submission_id", "job_name"})
RESERVED_PREFIXES = ("prefect.io/", "prefect-ray-worker/")
"""Metadata keys that users must not set.

Ray writes `job_submission_id` and `job_name` itself, and links drivers to jobs by them
(`job_supervisor.py`, Ray 2.60). The worker sets the keys with these prefixes.
"""


def _no_slash(value: object) -> object:
    if isinstance(value, str) and "/" in value:
        raise ValueError("must not contain a slash: Ray uses job names in paths. Use '-' instead")
    return value


def _no_reserved_keys(value: object) -> object:
    if isinstance(value, dict):
        taken = sorted(
            str(key)
            for key in value
            if key in RESERVED_METADATA or str(key).startswith(RESERVED_PREFIXES)
        )
        if taken:
            raise ValueError(
                f"uses {', '.join(taken)}, which this worker and Ray set themselves. Choose "
                "another key (for the job's name there is the variable name)"
            )
    return value


JobName = Annotated[str, BeforeValidator(_no_slash)]
UserMetadata = Annotated[dict[str, Text], BeforeValidator(_no_reserved_keys)]
EnvValue = Annotated[
    str | None,
    BeforeValidator(as_text),
    WithJsonSchema({"anyOf": [{"type": t} for t in ("string", "number", "boolean", "null")]}),
]


class RayFields(BaseModel):
    """The job variables that the form and the job configuration share."""

    address: DashboardAddress | None = Field(
        default=None,
        title="Ray address",
        description=(
            "Address of the Ray dashboard. Unset: the cluster block, else the worker's setting, "
            "else a Ray that the worker starts on its own machine. Example: http://ray-head:8265"
        ),
        examples=["http://ray-head:8265"],
    )
    cluster: RayCluster | None = Field(
        default=None,
        title="Ray cluster",
        description=(
            "A RayCluster block: address, token, headers and TLS of the cluster. If the variable "
            "address names another cluster, the block is not used, and its secrets are not sent. "
            "Set it on the pool: `prefect deploy` would store its secrets in plain text."
        ),
    )
    kuberay: KubeRay | None = Field(
        default=None,
        title="KubeRay cluster",
        description=(
            "A Ray cluster on Kubernetes that the worker creates for each run and deletes "
            "afterwards. Cannot be combined with address or cluster. A deployment can set single "
            "fields, such as kuberay.image, and keeps the pool's other fields. The worker needs "
            'prefect-ray-worker[kuberay]. Example: {"image": "rayproject/ray:2.60.0-py311"}'
        ),
        examples=[{"image": "rayproject/ray:2.60.0-py311"}],
    )
    cluster_source: Annotated[dict[str, Any], AfterValidator(check_cluster_source)] | None = Field(
        default=None,
        title="Cluster source",
        description=(
            "A Ray cluster that a source from another package creates for each run. Cannot be "
            "combined with address, cluster or kuberay. `type` names the source; every source has "
            "start_timeout_seconds (900) and keep_failed_seconds (0), and defines the other "
            'fields. Example: {"type": "shell", "port": 8300}'
        ),
        examples=[{"type": "shell", "port": 8300}],
    )
    runtime_env: RuntimeEnv = Field(
        default_factory=RuntimeEnv,
        title="Runtime environment",
        description=(
            "Ray's runtime_env for the flow's driver and its tasks: packages, code, image. "
            'Example: {"pip": ["pandas"]}'
        ),
        examples=[{"pip": ["pandas"]}],
    )
    entrypoint_num_cpus: float | None = Field(
        default=None,
        ge=0,
        title="Driver CPUs",
        description=(
            "CPUs that the flow's driver holds while it runs. If no entrypoint_ variable is "
            "set, Ray starts the driver on the head node and reserves nothing. Example: 1"
        ),
        examples=[1],
    )
    entrypoint_num_gpus: float | None = Field(
        default=None,
        ge=0,
        title="Driver GPUs",
        description="GPUs that the flow's driver holds while it runs. Example: 0.5",
        examples=[0.5],
    )
    entrypoint_memory: Memory | None = Field(
        default=None,
        title="Driver memory",
        description=(
            "Memory that Ray reserves for the flow's driver: with a unit, or in bytes. "
            'Example: "2GiB"'
        ),
        examples=["2GiB"],
    )
    entrypoint_resources: dict[str, Annotated[float, Field(ge=0)]] | None = Field(
        default=None,
        title="Driver custom resources",
        description='Custom resources that the driver holds. Example: {"ssd": 1}',
        examples=[{"ssd": 1}],
    )
    entrypoint_label_selector: dict[str, Text] | None = Field(
        default=None,
        title="Driver node labels",
        description=(
            "Labels of the nodes on which the driver may run: a value, !value, in(a,b) or "
            '!in(a,b). Needs a Ray that knows labels. Example: {"ray.io/node-group": "cpu"}'
        ),
        examples=[{"ray.io/node-group": "cpu"}],
    )
    metadata: UserMetadata = Field(
        default_factory=dict,
        title="Job metadata",
        description=(
            "Metadata of the job in Ray. Everyone who can list jobs can read it, so never put a "
            'secret here. Example: {"team": "research"}'
        ),
        examples=[{"team": "research"}],
    )
    start_timeout_seconds: int | None = Field(
        default=None,
        ge=1,
        title="Start timeout (seconds)",
        description=(
            "How long the job may wait for resources and its runtime environment before it is "
            "stopped and the run marked Crashed. Unset: Ray's own limit, 900 s unless its "
            "head sets another. Example: 600"
        ),
        examples=[600],
    )
    run_timeout_seconds: int | None = Field(
        default=None,
        ge=1,
        title="Run timeout (seconds)",
        description=(
            "How long the job may run before it is stopped and the run marked Crashed. "
            "Unset: no limit. Example: 3600"
        ),
        examples=[3600],
    )
    stop_grace_seconds: int = Field(
        default=30,
        ge=1,
        title="Stop grace (seconds)",
        description=(
            "On cancellation, how long the driver may take to stop by itself before the worker "
            "stops its job; and how long Ray then waits between SIGTERM and SIGKILL. Near or above "
            "300 s, raise PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_CANCELLING_TIMEOUT_SECONDS "
            "on the (self-hosted) Prefect server too. Example: 30"
        ),
        examples=[30],
    )
    forward_logs: bool = Field(
        default=True,
        title="Forward logs",
        description=(
            "Whether everything that the job prints appears in the logs of the flow run. What "
            "the flow's own loggers send is there in any case. Example: false"
        ),
        examples=[False],
    )
    infrastructure_retries: int = Field(
        default=0,
        ge=0,
        le=100,
        title="Infrastructure retries",
        description=(
            "How often a run is repeated after its infrastructure has failed: the node or "
            "the job's supervisor died, or the cluster lost the job. Not after an error of "
            "the flow; use the flow's own retries for that. Example: 3"
        ),
        examples=[3],
    )
    delete_job_after_seconds: int | None = Field(
        default=None,
        ge=5,
        title="Delete job after (seconds)",
        description=(
            "How long after its end the job's record stays in Ray, which never removes one "
            "by itself. Logs in Prefect stay. Unset: for ever. Example: 86400"
        ),
        examples=[86400],
    )
    warm_driver_seconds: int = Field(
        default=300,
        ge=0,
        le=86400,
        title="Keep a warm driver (seconds)",
        description=(
            "How long a process that has imported Prefect stays on the node after a run. The "
            "drivers of later runs with the same environment are forked from it, and start in "
            "a fraction of the time. 0: no process stays. Example: 3600"
        ),
        examples=[3600],
    )


class RayWorkerVariables(RayFields, BaseVariables):
    """The variables of a `ray` work pool, in the order in which the form shows them."""

    name: JobName | None = Field(
        default=None,
        title="Job name",
        description=(
            "Name of the Ray Job in the dashboard, without slashes; {{ ctx.flow.name }} and "
            "{{ ctx.flow_run.name }} are filled in. Unset: the flow run's name. "
            "Example: nightly-{{ ctx.flow.name }}"
        ),
        examples=["nightly-{{ ctx.flow.name }}"],
    )
    env: dict[str, EnvValue] = Field(
        default_factory=dict,
        title="Environment variables",
        description=(
            "Environment variables of the driver and its tasks. Everyone who can list the "
            "cluster's jobs can read them: set secrets on the Ray nodes instead. "
            'Example: {"OMP_NUM_THREADS": "4"}'
        ),
        examples=[{"OMP_NUM_THREADS": "4"}],
    )
    labels: UserMetadata = Field(
        default_factory=dict,
        title="Labels",
        description=(
            "Labels of the job, kept in its metadata beside Prefect's own. "
            'Example: {"cost-center": "42"}'
        ),
        examples=[{"cost-center": "42"}],
    )
    command: str | None = Field(
        default=None,
        title="Command",
        description=(
            "Shell command to run instead of this package's driver; PREFECT__FLOW_RUN_ID is set "
            "for it. Rarely needed. Example: exec python -m prefect flow-run execute"
        ),
        examples=["exec python -m prefect flow-run execute"],
    )

    @classmethod
    def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the JSON schema, adapted to the form in Prefect's UI.

        * The most used variables come first. Pydantic would start with those of Prefect's base
          class.
        * Optional fields do not list "null" as a type. Prefect's UI would show a switch for it,
          and the server accepts null for any optional field anyway.
        * A field that refers to a definition copies its own title and description into it, because
          the UI shows those of the definition (3.8.8).
        * The definition of a block keeps its title. The server finds the definition by its title
          and would otherwise reject a reference to a block (`schema_tools/validation.py`, 3.8.8).
        * The definition of a block has no properties: the form offers saved blocks, and Prefect has
          checked those. The server checks the whole schema twice for each run that is created.
        """
        schema = super().model_json_schema(*args, **kwargs)
        properties = schema["properties"]
        schema["properties"] = {name: _without_null(properties[name]) for name in FORM_ORDER}
        for name, field in schema["properties"].items():
            if "$ref" in field:
                definition = schema["definitions"][field["$ref"].rpartition("/")[2]]
                info = cls.model_fields[name]
                definition["description"] = info.description
                if "block_type_slug" not in definition:
                    definition["title"] = info.title
        for definition in schema["definitions"].values():
            fields = definition.pop("properties")
            if "block_type_slug" not in definition:
                definition["properties"] = {n: _without_null(f) for n, f in fields.items()}
        return schema


FORM_ORDER = (
    "address",
    "cluster",
    "kuberay",
    "cluster_source",
    "env",
    "runtime_env",
    "entrypoint_num_cpus",
    "entrypoint_num_gpus",
    "entrypoint_memory",
    "entrypoint_resources",
    "entrypoint_label_selector",
    "start_timeout_seconds",
    "run_timeout_seconds",
    "stop_grace_seconds",
    "forward_logs",
    "infrastructure_retries",
    "delete_job_after_seconds",
    "warm_driver_seconds",
    "name",
    "labels",
    "metadata",
    "command",
)


def _without_null(field: dict[str, Any]) -> dict[str, Any]:
    options = [option for option in field.get("anyOf", []) if option != {"type": "null"}]
    if len(options) == len(field.get("anyOf", [])):
        return field
    rest = {k: v for k, v in field.items() if k != "anyOf" and (k, v) != ("default", None)}
    return {**(options[0] if len(options) == 1 else {"anyOf": options}), **rest}
