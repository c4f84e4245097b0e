"""The job variable `kuberay`: a Ray cluster that the worker makes on Kubernetes when runs need it.

Pure. The worker turns it into a RayCluster of KubeRay, and deletes that after the run, or when it
is idle.
"""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from prefect_ray_worker.config.memory import Memory
from prefect_ray_worker.config.runtime_env import Text

CONFIG_BLOCK_SLUG = "kubernetes-cluster-config"
"""The block type of kubeconfigs that every Prefect server knows (3.8.8)."""
DEFAULT_IDLE_SECONDS = 600
RESERVED_LABELS = ("prefect.io/", "prefect-ray-worker/", "ray.io/", "app.kubernetes.io/managed-by")

_SECRET_KEY = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?/[A-Za-z0-9._-]+")
_OBJECT_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_GROUP_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
_PLACEHOLDERS = re.compile(r"\{([^{}]*)\}")


def _secret_references(value: dict[str, str]) -> dict[str, str]:
    wrong = sorted(name for name, where in value.items() if not _SECRET_KEY.fullmatch(where))
    if wrong:
        raise ValueError(
            f"has no Secret and key for {', '.join(wrong)}. Write the name of a Kubernetes Secret, "
            'a slash and the key in it: {"PREFECT_API_KEY": "prefect-api/api-key"}'
        )
    return value


def _free_labels(value: dict[str, str]) -> dict[str, str]:
    taken = sorted(key for key in value if key.startswith(RESERVED_LABELS))
    if taken:
        raise ValueError(
            f"uses {', '.join(taken)}, which this worker and KubeRay set themselves. Choose "
            "another key"
        )
    return value


def _object_name(value: str) -> str:
    if not _OBJECT_NAME.fullmatch(value):
        raise ValueError(
            "is no name of a Kubernetes object: lower-case letters, digits, dashes and dots, the "
            "first and the last a letter or a digit. Write it as `kubectl get` shows it"
        )
    return value


def _unset_if_empty(value: Any) -> Any:
    # So a template or a form may have it that leaves the name out.
    return None if value == "" else value


ObjectName = Annotated[
    Annotated[str, AfterValidator(_object_name)] | None, BeforeValidator(_unset_if_empty)
]
"""The name of an object in Kubernetes, if there is one."""


def _group_name(value: str) -> str:
    if not _GROUP_NAME.fullmatch(value):
        raise ValueError(
            "is no name of a worker group: lower-case letters, digits and dashes, 40 at most, "
            'the first a letter. Example: "cpu"'
        )
    return value


def _template(value: str) -> str:
    unknown = sorted(set(_PLACEHOLDERS.findall(value)) - {"namespace", "name"})
    if unknown:
        raise ValueError(
            f"has unknown placeholders: {', '.join(unknown)}. Use {{namespace}} and {{name}} only"
        )
    if "{name}" not in value or not value.startswith(("http://", "https://")):
        raise ValueError(
            "is not the URL of a cluster's dashboard. Example: https://ray.example.com/{name}"
        )
    return value


class KubeRayNode(BaseModel):
    """What a Ray pod gets, as request and as limit."""

    model_config = ConfigDict(extra="forbid")

    cpus: float = Field(default=1, gt=0, title="CPUs", description="CPUs of the pod. Example: 2")
    memory: Memory = Field(
        default="4GiB", title="Memory", description='Memory of the pod. Example: "8GiB"'
    )
    gpus: int = Field(
        default=0, ge=0, title="GPUs", description="GPUs of the pod (nvidia.com/gpu). Example: 1"
    )


class KubeRayHead(KubeRayNode):
    """The head of the cluster, where the driver runs unless it asks for resources."""

    model_config = ConfigDict(extra="forbid", title="Head")

    num_cpus: float | None = Field(
        default=None,
        ge=0,
        title="CPUs for tasks",
        description=(
            "CPUs of the head that Ray gives to tasks. Unset: none if the cluster has worker "
            "groups, else all of the head. Example: 0"
        ),
    )


class KubeRayWorkerGroup(KubeRayNode):
    """A group of equal worker pods."""

    model_config = ConfigDict(extra="forbid", title="Worker group")

    name: Annotated[str, AfterValidator(_group_name)] = Field(
        title="Name", description="Name of the group. Example: cpu"
    )
    min: int = Field(
        default=1, ge=0, title="Fewest pods", description="Pods that are always there. Example: 1"
    )
    max: int | None = Field(
        default=None,
        ge=1,
        title="Most pods",
        description=(
            "Largest number of pods. A value above min turns on Ray's autoscaler. Unset: the value "
            "of min. Example: 10"
        ),
    )

    @model_validator(mode="after")
    def _min_and_max(self) -> Self:
        if self.max is None and self.min == 0:
            raise ValueError("has min 0 and no max, so it would never have a pod. Set max")
        if self.max is not None and self.max < self.min:
            raise ValueError("has a max below its min. Raise max or lower min")
        return self

    @property
    def most(self) -> int:
        """The most pods of the group."""
        return self.min if self.max is None else self.max


def _in_the_form(schema: dict[str, Any]) -> None:
    """Have the form offer blocks, and the server accept a reference to one.

    The server checks job variables, and does not look up a block that is referred to below a
    variable: with required fields it refused each run of such a pool (Prefect 3.8.8).
    """
    schema.pop("required")
    # The form shows this in place of the field's own description.
    schema["description"] = (
        "A block with a kubeconfig. Unset: the worker's service account in a pod, else the file "
        "that KUBECONFIG names, else ~/.kube/config."
    )
    schema["block_type_slug"] = CONFIG_BLOCK_SLUG
    schema["secret_fields"] = []
    schema["block_schema_references"] = {}


class KubernetesConfig(BaseModel):
    """The content of a `kubernetes-cluster-config` block of Prefect.

    Not a Block: `prefect-kubernetes` defines that, and a process can use both packages.
    """

    model_config = ConfigDict(
        extra="ignore",
        title="Kubernetes Cluster Config",
        json_schema_extra=_in_the_form,
    )

    config: dict[str, Any] = Field(
        title="Config", description="The kubeconfig, as a mapping.", repr=False
    )
    context_name: str = Field(title="Context", description="The context of it to use.")


class KubeRay(BaseModel):
    """A Ray cluster of KubeRay that the worker makes for a run, or for runs that share it."""

    model_config = ConfigDict(extra="forbid", title="KubeRay cluster")

    scope: Literal["run", "shared"] = Field(
        default="run",
        title="One cluster for",
        description=(
            "`run`: each attempt at a run gets its own cluster, which is deleted afterwards. "
            "`shared`: runs of the pool with the same kuberay share one cluster, which is "
            "deleted when it is idle."
        ),
    )
    namespace: str | None = Field(
        default=None,
        title="Namespace",
        description=(
            "Kubernetes namespace of the cluster. Unset: the worker's own, or that of its "
            "kubeconfig's context. Example: ray"
        ),
    )
    image: str | None = Field(
        default=None,
        title="Image",
        description=(
            "Image of the head and the workers, with Ray, Prefect and the flows' packages. "
            "Example: rayproject/ray:2.60.0-py311"
        ),
    )
    ray_version: str | None = Field(
        default=None,
        title="Ray version",
        description=(
            "Version of Ray in the image, 2.52 or later, for KubeRay's token authentication. "
            "Unset: the version at the beginning of the image's tag. Example: 2.60.0"
        ),
    )
    head: KubeRayHead | None = Field(
        default=None,
        title="Head",
        description='The head\'s resources. Unset: 1 CPU and 4 GiB. Example: {"cpus": 2}',
    )
    workers: list[KubeRayWorkerGroup] = Field(
        default_factory=list[KubeRayWorkerGroup],
        title="Worker groups",
        description=(
            "Groups of equal worker pods. Unset: the head alone. "
            'Example: [{"name": "cpu", "cpus": 4, "memory": "8GiB", "min": 0, "max": 10}]'
        ),
    )
    manifest: dict[str, Any] | None = Field(
        default=None,
        title="Manifest",
        description=(
            "A whole `spec` of a RayCluster, instead of head and workers. Image, secrets, queue "
            "and labels are still filled in. Example: {\"headGroupSpec\": {…}}"
        ),
    )  # fmt: skip
    secrets: Annotated[dict[str, str], AfterValidator(_secret_references)] = Field(
        default_factory=dict,
        title="Secrets",
        description=(
            "Environment variables of the Ray pods that hold a key of a Kubernetes Secret of the "
            'namespace. Example: {"PREFECT_API_KEY": "prefect-api/api-key"}'
        ),
    )
    token_secret: ObjectName = Field(
        default=None,
        title="Token secret",
        description=(
            "Kubernetes Secret whose key auth_token is the Ray token of the cluster (KubeRay 1.6 "
            "and later). Unset: KubeRay makes a Secret for each cluster. Example: ray-token"
        ),
    )
    queue: str | None = Field(
        default=None,
        title="Kueue queue",
        description="Local queue of Kueue that admits the cluster. Example: research",
    )
    service_account: ObjectName = Field(
        default=None,
        title="Service account",
        description="Service account of the Ray pods. Unset: the namespace's default.",
    )
    labels: Annotated[dict[str, Text], AfterValidator(_free_labels)] = Field(
        default_factory=dict,
        title="Kubernetes labels",
        description=(
            'Labels of the RayCluster and its pods, for cost reports. Example: {"team": "research"}'
        ),
    )
    ready_when: Literal["head", "all"] = Field(
        default="head",
        title="Ready when",
        description="`head`: when the head accepts jobs. `all`: when all pods are ready too.",
    )
    start_timeout_seconds: int = Field(
        default=900,
        ge=1,
        title="Start timeout (seconds)",
        description=(
            "How long the cluster may take from its creation until it accepts jobs. Then the run "
            "is Crashed. Time in a Kueue queue does not count. Example: 900"
        ),
    )
    keep_failed_seconds: int = Field(
        default=0,
        ge=0,
        title="Keep failed (seconds)",
        description=(
            "Scope `run` only. How long the cluster of a failed or crashed run stays, so that you "
            "can look at it. It is deleted earlier if another attempt begins. Example: 3600"
        ),
    )
    idle_seconds: int | None = Field(
        default=None,
        ge=1,
        title="Idle time (seconds)",
        description=(
            "Scope `shared` only. How long the cluster stays after its last job and its last run. "
            f"Unset: {DEFAULT_IDLE_SECONDS}. Example: 1800"
        ),
    )
    max_lifetime_seconds: int | None = Field(
        default=None,
        ge=60,
        title="Longest life (seconds)",
        description=(
            "The cluster is deleted at this age, even while a run uses it. Unset: no limit. "
            "Example: 86400"
        ),
    )
    access: Literal["auto", "service", "proxy"] = Field(
        default="auto",
        title="Access",
        description=(
            "How the worker reaches the dashboard. `service`: by the name of its Kubernetes "
            "service. `proxy`: through the API server. `auto`: by service inside the Kubernetes "
            "cluster, else through the API server."
        ),
    )
    address_template: Annotated[str, AfterValidator(_template)] | None = Field(
        default=None,
        title="Address template",
        description=(
            "URL of the dashboard behind an ingress, with {namespace} and {name} of the cluster. "
            "If set, `access` is not used, and links on runs lead there. "
            "Example: https://ray.example.com/{namespace}/{name}"
        ),
    )
    kubeconfig: KubernetesConfig | None = Field(
        default=None,
        title="Kubeconfig",
        description=(
            "A Kubernetes Cluster Config block. Unset: the worker's service account in a pod, "
            "else the file that KUBECONFIG names, else ~/.kube/config."
        ),
    )

    @model_validator(mode="after")
    def _of_scope(self) -> Self:
        if self.scope == "shared" and self.keep_failed_seconds:
            raise ValueError(
                "names keep_failed_seconds, which is for scope run: a shared cluster stays until "
                "it is idle. Leave it out, or set idle_seconds"
            )
        if self.scope == "run" and self.idle_seconds is not None:
            raise ValueError(
                "names idle_seconds, which is for scope shared: a cluster of one run is deleted "
                "after it. Leave it out, or set scope to shared"
            )
        return self

    @model_validator(mode="after")
    def _one_spec(self) -> Self:
        if self.manifest is not None:
            doubled = [n for n, set_ in (("head", self.head), ("workers", self.workers)) if set_]
            if doubled:
                raise ValueError(
                    f"names manifest together with {' and '.join(doubled)}. Put the pods into the "
                    "manifest, or leave it out"
                )
        elif self.image is None:
            raise ValueError("names neither image nor manifest. Set image to one that has Ray")
        names = [group.name for group in self.workers]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"has several worker groups named {', '.join(doubled)}. Rename one")
        return self
