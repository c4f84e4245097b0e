"""Turn job variables and a flow run into one frozen submission request, or refuse them."""

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self, cast
from uuid import UUID

import prefect
from prefect.logging.loggers import flow_run_logger
from prefect.workers.base import BaseJobConfiguration
from pydantic import (
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from prefect_ray_worker.config.cluster_source import over_pool_default
from prefect_ray_worker.config.memory import memory_in_bytes
from prefect_ray_worker.config.origin import ClusterOrigin, refuse_foreign_files
from prefect_ray_worker.config.refusals import (
    NO_MAPPING,
    explain,
    missing_variable,
    prefect_variables,
    refuse_auto_install,
    refuse_bad_references,
    refuse_oversized,
    refuse_unknown,
    refuse_unmergeable,
    unfilled_block,
)
from prefect_ray_worker.config.runtime_env import as_text, can_ship, check_names, compose
from prefect_ray_worker.config.secrets import NO_SECRETS, Delivery
from prefect_ray_worker.config.variables import JobName, RayFields, UserMetadata
from prefect_ray_worker.errors import InvalidConfiguration
from prefect_ray_worker.prefect_api.answers import wait_for_answer
from prefect_ray_worker.prefect_api.compat.settings import setting_of_variable
from prefect_ray_worker.prefect_api.compat.workers import settings_as_variables
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.models import JobSubmitRequest
from prefect_ray_worker.settings import worker_settings
from prefect_ray_worker.shared.environment import (
    PREFECT_VERSION,
    RUN_ID,
    WARM_SECONDS,
    WORKER_ID,
    WORKER_ID_KEY,
    variables_of_run,
)
from prefect_ray_worker.shared.ids import DELETE_AFTER_KEY, POOL_KEY, attempt_in

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import Flow, FlowRun, WorkPool
    from prefect.client.schemas.responses import DeploymentResponse

# Our driver cannot be shipped to a job with an image of its own; Prefect's executor runs there.
_PREFECTS_OWN = "python -m prefect flow-run execute"
_NO_IMAGE_FOR_BUNDLES = (
    "runtime_env names an image, in which Prefect's own executor runs a flow, and that runs no "
    "flow without a deployment. Remove image_uri from runtime_env, or deploy the flow."
)
_DRIVER = "python -m prefect_ray_worker.driver"
_PER_RUN_PREFIX = "PREFECT__"


class RayJobConfiguration(RayFields, BaseJobConfiguration):
    """The job configuration of one flow run: the work pool's template, filled in.

    Raises:
        InvalidConfiguration: From `from_template_and_values` and `submission_request`; the
            message names the job variable and the way out, and shows no secret.
    """

    # A key that is accepted but never read would mislead its author.
    model_config = ConfigDict(extra="forbid")

    name: JobName | None = Field(default=None)
    labels: UserMetadata = Field(default_factory=dict)

    _asked_env: dict[str, str | None] = PrivateAttr(default_factory=dict)
    _asked_command: str | None = PrivateAttr(default=None)
    _is_adhoc: bool = PrivateAttr(default=False)
    _origin: ClusterOrigin = PrivateAttr(default=ClusterOrigin())

    @model_validator(mode="before")
    @classmethod
    def _env_is_text(cls, data: Any) -> Any:
        # Before Prefect's own validator, which assumes a mapping and makes "True" of true (3.8.8).
        if not isinstance(data, dict) or "env" not in data:
            return cast("Any", data)
        env: object = data["env"]
        if not isinstance(env, dict):
            raise ValueError(NO_MAPPING)  # noqa: TRY004 (pydantic collects these only)
        check_names(env)
        nested = sorted(str(name) for name, value in env.items() if isinstance(value, dict | list))
        if nested:
            raise ValueError(f"has no text for {', '.join(nested)}. Write a text or a number")
        return {**data, "env": {name: as_text(value) for name, value in env.items()}}

    @field_validator("kuberay", "cluster_source")
    @classmethod
    def _is_the_only_cluster(cls, value: Any, info: ValidationInfo) -> Any:
        # Of the fields before this one.
        named = ("address", "cluster", "kuberay")
        others = [name for name in named if info.data.get(name) is not None]
        if value is not None and others:
            there = " and ".join(others)
            raise ValueError(
                f"stands beside {there}: a run goes to one cluster. Set {there} to null, or "
                f"{info.field_name}"
            )
        return value

    @classmethod
    async def from_template_and_values(
        cls,
        base_job_template: dict[str, Any],
        values: dict[str, Any],
        client: "PrefectClient | None" = None,
    ) -> Self:
        """Fill in the work pool's template; refuse what it does not offer.

        Raises:
            InvalidConfiguration: A variable is unknown, a value cannot work, or it refers to a
                Prefect variable, or a field of a block, that does not exist.
        """
        refuse_unknown(values, base_job_template, cls.model_fields)
        refuse_unmergeable(values, base_job_template)
        refuse_bad_references(values, base_job_template)
        values = over_pool_default(base_job_template, values)
        if client is not None:  # a worker always has one
            for name, places in prefect_variables(values, base_job_template).items():
                if await client.read_variable_by_name(name) is None:
                    raise missing_variable(name, places)
        origin = ClusterOrigin.of(base_job_template, values)
        try:
            made = await super().from_template_and_values(base_job_template, values, client=client)
        except ValidationError as exc:
            # `from None`: pydantic's own text shows the raw input, secrets included.
            raise InvalidConfiguration(explain(exc, cls.model_fields)) from None
        except ValueError as exc:
            if (refusal := unfilled_block(exc, values, base_job_template)) is None:
                raise
            raise refusal from None
        if made.cluster is not None:
            refuse_foreign_files(made.cluster, origin, worker_settings().credentials_folder)
        made._origin = origin  # noqa: SLF001 (an object of this class)
        return made

    @classmethod
    async def of_pool(cls, pool: "WorkPool", client: "PrefectClient | None" = None) -> Self:
        """Return the configuration of a run of a pool that sets no job variable.

        It has the pool's id: without it, the clusters that runs of the pool share are not found.

        Raises:
            InvalidConfiguration: See `from_template_and_values`.
        """
        made = await cls.from_template_and_values(pool.base_job_template, {}, client)
        made.labels = {**made.labels, POOL_KEY: str(pool.id)}
        return made

    @classmethod
    async def resolve_for_flow_run(
        cls,
        flow_run: "FlowRun",
        *,
        client: "PrefectClient",
        work_pool: "WorkPool",
        worker_name: str,
        worker_id: UUID | None = None,
        deployment: "DeploymentResponse | None" = None,
    ) -> Self:
        """Build the configuration of a run that Prefect has given to a worker.

        Waits while the Prefect API is busy or away: an error would crash the run (3.8.8).
        """

        async def resolve() -> Self:
            return await cls.resolve_once(
                # Prefect takes `env` out of these (3.8.8).
                flow_run.model_copy(update={"job_variables": dict(flow_run.job_variables or {})}),
                client=client,
                work_pool=work_pool,
                worker_name=worker_name,
                worker_id=worker_id,
                deployment=deployment,
            )

        return await wait_for_answer(resolve, run_log=flow_run_logger(flow_run))

    @classmethod
    async def resolve_once(cls, flow_run: "FlowRun", **of: Any) -> Self:
        """Build the configuration of a run; raise at once if the Prefect API does not answer."""
        return await super().resolve_for_flow_run(flow_run, **of)

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
        self._is_adhoc = flow_run.deployment_id is None
        super().prepare_for_flow_run(
            flow_run=flow_run,
            deployment=deployment,
            flow=flow,
            work_pool=work_pool,
            worker_name=worker_name,
            worker_id=worker_id,
        )

    @classmethod
    def _base_environment(cls) -> dict[str, str]:
        """Return Prefect's settings as variables, which it would work out again for each run."""
        return settings_as_variables()

    @property
    def makes_clusters(self) -> bool:
        """Whether clusters are made for runs, and deleted after them."""
        return self.kuberay is not None or self.cluster_source is not None

    @property
    def drops_the_pool_s_cluster(self) -> bool:
        """Whether the work pool names a cluster, and the run sets it to null and names none."""
        names_one = self.makes_clusters or self.connection() is not None
        return self._origin.pool_names_any and not names_one

    def connection(self) -> Connection | None:
        """Return the cluster that the run names, or None if it names none."""
        if self.cluster is not None and self.address in (None, self.cluster.address):
            connection = self.cluster.connection()
            return connection.with_token_of_environment(self._origin.pool_names_cluster)
        if self.address is None:
            return None
        # The block's credentials belong to the block's address and must not go elsewhere.
        connection = Connection(self.address)
        return connection.with_token_of_environment(self._origin.pool_names_address)

    def dashboard_of(self, address: str) -> str:
        """Return where people find the dashboard of an existing cluster at an address."""
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
            InvalidConfiguration: Entrypoint or environment are too large for Ray, or the
                environment asks for what only Prefect's own executor does.
        """
        own = {k: v for k, v in self.env.items() if k not in self._asked_env and v is not None}
        per_run = {k: v for k, v in own.items() if k.startswith(_PER_RUN_PREFIX)}
        settings = {k: v for k, v in own.items() if k not in per_run}
        beside = _not_named_in(self.runtime_env.env_vars or {}, self._asked_env)
        inherited = {
            PREFECT_VERSION: prefect.__version__,
            WARM_SECONDS: str(0 if self._has_own_cluster() else self.warm_driver_seconds),
            **_not_named_in(delivery.applied_to(settings), {**self._asked_env, **beside}),
        }
        ours = can_ship(self.runtime_env) and self._asked_command is None
        if self._is_adhoc and not can_ship(self.runtime_env) and self._asked_command is None:
            raise InvalidConfiguration(_NO_IMAGE_FOR_BUNDLES)
        if ours:
            refuse_auto_install({**beside, **self._asked_env})
        run = (per_run.get(RUN_ID, ""), attempt_in(submission_id))
        driver = f"{_DRIVER} {shlex.join(run)}" if can_ship(self.runtime_env) else _PREFECTS_OWN
        command = self._asked_command or f"exec {driver}"
        metadata = self._job_metadata(submission_id, per_run)
        if ours and package is not None:
            # The driver that goes with the job reads these from its metadata. One that the nodes
            # have may be older and does not.
            read = variables_of_run(run[0], metadata)
            per_run = {k: v for k, v in per_run.items() if read.get(k) != v}
        request = JobSubmitRequest(
            submission_id=submission_id,
            entrypoint=f"export {_assignments(per_run)}; {command}" if per_run else command,
            runtime_env=compose(
                self.runtime_env.model_copy(update={"env_vars": beside or None}),
                inherited=inherited,
                env={k: v for k, v in self._asked_env.items() if v is not None},
                stop_grace_seconds=self.stop_grace_seconds,
                package=package if can_ship(self.runtime_env) else None,
            ),
            metadata=metadata,
            entrypoint_num_cpus=self.entrypoint_num_cpus,
            entrypoint_num_gpus=self.entrypoint_num_gpus,
            entrypoint_memory=memory_in_bytes(self.entrypoint_memory),
            entrypoint_resources=self.entrypoint_resources,
            entrypoint_label_selector=self.entrypoint_label_selector,
        )
        refuse_oversized(request)
        return request

    def _has_own_cluster(self) -> bool:
        return self.kuberay is not None and self.kuberay.scope == "run"

    def _job_metadata(self, submission_id: str, per_run: Mapping[str, str]) -> dict[str, str]:
        # Ray has one place for both variables. `labels` is Prefect's own field, into which it
        # puts the labels of run, deployment and pool; `metadata` is Ray's word, for Ray's users.
        seconds, worker_id = self.delete_job_after_seconds, per_run.get(WORKER_ID)
        return {
            **self.labels,
            **self.metadata,
            **({} if seconds is None else {DELETE_AFTER_KEY: str(seconds)}),
            **({} if worker_id is None else {WORKER_ID_KEY: worker_id}),
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
