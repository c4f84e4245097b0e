"""Turn job variables and a flow run into one frozen submission request, or refuse them."""

import difflib
import json
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self, cast
from uuid import UUID

import prefect
from prefect.workers.base import BaseJobConfiguration
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from prefect_ray_worker.config.runtime_env import can_ship, compose
from prefect_ray_worker.config.secrets import NO_SECRETS, Delivery
from prefect_ray_worker.config.variables import JobName, RayFields, UserMetadata, memory_in_bytes
from prefect_ray_worker.errors import InvalidConfiguration
from prefect_ray_worker.prefect_api.compat import setting_of_variable
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.models import JobSubmitRequest
from prefect_ray_worker.shared.ids import DELETE_AFTER_KEY, attempt_in

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import Flow, FlowRun, WorkPool
    from prefect.client.schemas.responses import DeploymentResponse

# Ray passes the entrypoint as one argument of `sh -c`, and `runtime_env` with `metadata` as one
# environment variable. The kernel takes 128 KiB each; a job with more hangs PENDING (Ray issue
# 47432).
_LONGEST_ENTRYPOINT = 131_071
_LONGEST_ENVIRONMENT = 131_000

# Our driver cannot be shipped to a job with an image of its own; Prefect's executor runs there.
_PREFECTS_OWN = "python -m prefect flow-run execute"
_DRIVER = "python -m prefect_ray_worker.driver"
_PER_RUN_PREFIX = "PREFECT__"
_MASKED = frozenset({"env", "env_vars", "cluster", "token", "headers", "cookies"})


class RayJobConfiguration(RayFields, BaseJobConfiguration):
    """The job configuration of one flow run: the work pool's template, filled in.

    Raises:
        InvalidConfiguration: From `from_template_and_values` and `submission_request`; the
            message names the job variable, its value (secrets masked) and the way out.
    """

    # A key that is accepted but never read would mislead its author.
    model_config = ConfigDict(extra="forbid")

    name: JobName | None = Field(default=None)
    labels: UserMetadata = Field(default_factory=dict)

    _asked_env: dict[str, str | None] = PrivateAttr(default_factory=dict)
    _asked_command: str | None = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _env_is_a_mapping(cls, data: Any) -> Any:
        # Prefect's own validator of `env` assumes a mapping (3.8.8).
        if isinstance(data, dict) and not isinstance(data.get("env", {}), dict):
            message = 'is not a mapping of names to values. Write {"NAME": "value"}'
            raise ValueError(message)  # noqa: TRY004 (pydantic collects these only)
        return cast("Any", data)

    @classmethod
    async def from_template_and_values(
        cls,
        base_job_template: dict[str, Any],
        values: dict[str, Any],
        client: "PrefectClient | None" = None,
    ) -> Self:
        """Fill in the work pool's template; refuse what it does not offer.

        Raises:
            InvalidConfiguration: A variable is unknown, or a value cannot work.
        """
        _refuse_unknown(values, base_job_template)
        try:
            return await super().from_template_and_values(base_job_template, values, client=client)
        except ValidationError as exc:
            # `from None`: pydantic's own text shows the raw input, secrets included.
            raise InvalidConfiguration(_explain(exc)) from None

    def prepare_for_flow_run(
        self,
        flow_run: "FlowRun",
        deployment: "DeploymentResponse | None" = None,
        flow: "Flow | None" = None,
        work_pool: "WorkPool | None" = None,
        worker_name: str | None = None,
        worker_id: UUID | None = None,
    ) -> None:
        """Add what Prefect knows about the run: labels, name, command, environment."""
        self._asked_env = dict(self.env)
        self._asked_command = self.command
        super().prepare_for_flow_run(
            flow_run=flow_run,
            deployment=deployment,
            flow=flow,
            work_pool=work_pool,
            worker_name=worker_name,
            worker_id=worker_id,
        )

    def connection(self) -> Connection | None:
        """Return the cluster that the run names, or None if it names none."""
        if self.cluster is None:
            return None if self.address is None else Connection(self.address)
        if self.address is None or self.address == self.cluster.address:
            return self.cluster.connection()
        # The block's credentials belong to the block's address and must not go elsewhere.
        return Connection(self.address)

    def dashboard_of(self, address: str) -> str:
        """Return where people find the dashboard of the cluster at an address."""
        block = self.cluster
        published = block.dashboard_url if block and block.address == address else None
        return published or address

    def submission_request(
        self, submission_id: str, *, package: str | None = None, delivery: Delivery = NO_SECRETS
    ) -> JobSubmitRequest:
        """Return the request for a prepared configuration.

        Args:
            submission_id: The job's id.
            package: URI of our own package in the cluster's store, if it is shipped.
            delivery: How secrets reach the job.

        Raises:
            InvalidConfiguration: Entrypoint or environment are too large for Ray.
        """
        own = {k: v for k, v in self.env.items() if k not in self._asked_env and v is not None}
        per_run = {k: v for k, v in own.items() if k.startswith(_PER_RUN_PREFIX)}
        settings = {k: v for k, v in own.items() if k not in per_run}
        beside = _not_named_in(self.runtime_env.env_vars or {}, self._asked_env)
        inherited = {
            "PREFECT_RAY_WORKER_PREFECT_VERSION": prefect.__version__,
            **_not_named_in(delivery.applied_to(settings), {**self._asked_env, **beside}),
        }
        run = (per_run.get("PREFECT__FLOW_RUN_ID", ""), attempt_in(submission_id))
        driver = f"{_DRIVER} {shlex.join(run)}" if can_ship(self.runtime_env) else _PREFECTS_OWN
        command = self._asked_command or f"exec {driver}"
        request = JobSubmitRequest(
            submission_id=submission_id,
            entrypoint=f"export {_assignments(per_run)}; {command}",
            runtime_env=compose(
                self.runtime_env.model_copy(update={"env_vars": beside or None}),
                inherited=inherited,
                env={k: v for k, v in self._asked_env.items() if v is not None},
                stop_grace_seconds=self.stop_grace_seconds,
                package=package if can_ship(self.runtime_env) else None,
            ),
            metadata=self._job_metadata(submission_id),
            entrypoint_num_cpus=self.entrypoint_num_cpus,
            entrypoint_num_gpus=self.entrypoint_num_gpus,
            entrypoint_memory=memory_in_bytes(self.entrypoint_memory),
            entrypoint_resources=self.entrypoint_resources,
            entrypoint_label_selector=self.entrypoint_label_selector,
        )
        _refuse_oversized(request)
        return request

    def _job_metadata(self, submission_id: str) -> dict[str, str]:
        # Ray has one place for both variables. `labels` is Prefect's own field, into which it
        # puts the labels of run, deployment and pool; `metadata` is Ray's word, for Ray's users.
        seconds = self.delete_job_after_seconds
        return {
            **self.labels,
            **self.metadata,
            **({} if seconds is None else {DELETE_AFTER_KEY: str(seconds)}),
            "job_name": (self.name or submission_id).replace("/", "-"),
        }


def _assignments(variables: Mapping[str, str]) -> str:
    return " ".join(f"{name}={shlex.quote(value)}" for name, value in sorted(variables.items()))


def _not_named_in(variables: Mapping[str, str], stronger: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables whose setting of Prefect's the stronger ones do not name.

    Under any of its names: Prefect reads the longer name of a setting first, so a worker's setting
    under that name would win over the job's own under the shorter one (3.8.8).
    """
    named = {setting_of_variable(name) for name in stronger}
    return {k: v for k, v in variables.items() if setting_of_variable(k) not in named}


def _refuse_unknown(values: Mapping[str, Any], base_job_template: Mapping[str, Any]) -> None:
    offered = set(base_job_template.get("variables", {}).get("properties", {}))
    for key, value in values.items():
        name = key.partition(".")[0]
        if name in offered:
            continue
        close = difflib.get_close_matches(name, offered, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        if name in RayJobConfiguration.model_fields:
            hint = (
                " This release knows it, but the pool's base job template is older: update it "
                "with `prefect work-pool update --base-job-template`."
            )
        raise InvalidConfiguration(
            f"job variable {name!r} = {_shown((name,), value)} is not a variable of this work "
            f"pool.{hint} It offers: {', '.join(sorted(offered))}."
        )


def _refuse_oversized(request: JobSubmitRequest) -> None:
    entrypoint = len(request.entrypoint.encode())
    if entrypoint > _LONGEST_ENTRYPOINT:
        raise InvalidConfiguration(
            f"job variable 'command' makes an entrypoint of {entrypoint} bytes, and Ray takes "
            f"{_LONGEST_ENTRYPOINT} at most. Put the text into a file in the image or the "
            "working_dir and run that."
        )
    environment = len(
        json.dumps({"runtime_env": request.runtime_env, "metadata": request.metadata})
    )
    if environment > _LONGEST_ENVIRONMENT:
        sizes = {
            **{f"env.{k}": len(v) for k, v in request.runtime_env["env_vars"].items()},
            **{
                f"runtime_env.{k}": len(json.dumps(v))
                for k, v in request.runtime_env.items()
                if k != "env_vars"
            },
            **{f"metadata.{k}": len(v) for k, v in request.metadata.items()},
        }
        largest = max(sizes, key=lambda name: sizes[name])
        raise InvalidConfiguration(
            f"job variables 'runtime_env', 'env' and 'metadata' make {environment} bytes, and "
            f"Ray takes {_LONGEST_ENVIRONMENT} at most: with more, the job would hang. The "
            f"largest is {largest!r} with {sizes[largest]} bytes; put it into a file."
        )


def _explain(error: ValidationError) -> str:
    """Say for each mistake which variable, which value and what to do, secrets masked."""
    fields = RayJobConfiguration.model_fields
    lines: dict[str, list[str]] = {}
    for mistake in error.errors(include_url=False):
        # pydantic puts the branches of a union (`list[str]`, `dict[…]`) into the path as well.
        path = tuple(str(p) for p in mistake["loc"] if not _is_union_branch(str(p)))
        message = mistake["msg"].removeprefix("Value error, ")
        if mistake["type"] == "extra_forbidden" and path[0] not in fields:
            message = "is not known to this release; remove it from the pool's base job template"
        place = f"job variable {'.'.join(path)!r}"
        if not path:
            place = "job variable 'env' = ***"  # the only check on the configuration as a whole
        elif message.startswith(f"{path[-1]} "):
            # One of our own messages, which names the value itself, without its credentials.
            message = message.removeprefix(f"{path[-1]} ")
        else:
            place += f" = {_shown(path, mistake['input'])}"
            message = message[:1].lower() + message[1:]
        lines.setdefault(place, []).append(message)
    return "; ".join(f"{place} {', or '.join(messages)}" for place, messages in lines.items())


def _is_union_branch(part: str) -> bool:
    return "[" in part or part in {"str", "int", "float", "constrained-str", "RuntimeEnv"}


def _shown(path: tuple[str, ...], value: object) -> str:
    if _MASKED & set(path) or (path and path[-1].lower().endswith(("key", "token", "password"))):
        return "***"
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_none=True)
    if isinstance(value, dict):
        value = {k: "***" if k in _MASKED else v for k, v in value.items()}
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:120]}…"
