"""Creates the flow run of a call, gives it its bundle, and makes it due.

The run is created Scheduled for ten minutes ahead, which no worker takes yet and which cancels
cleanly. It becomes due once its bundle is complete. So a caller that dies at any moment takes no
slot: its run becomes due without a bundle, and the driver marks it Crashed.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType, WorkerStatus, WorkPool
from prefect.context import FlowRunContext, TagsContext
from prefect.exceptions import ObjectNotFound
from prefect.filesystems import WritableFileSystem
from prefect.futures import PrefectFuture, resolve_futures_to_results
from prefect.results import get_default_result_storage, resolve_result_storage
from prefect.states import Failed, Scheduled
from prefect.tasks import Task
from prefect.utilities.asyncutils import run_coro_as_sync

from prefect_ray_worker.adhoc.dependencies import requirements_of
from prefect_ray_worker.adhoc.following import RayFlowRunFuture
from prefect_ray_worker.bundles.carriers import HEADER_KEY, read_input, send_bundle
from prefect_ray_worker.bundles.packing import pack
from prefect_ray_worker.config.block import RayCluster
from prefect_ray_worker.config.refusals import refuse_unknown
from prefect_ray_worker.config.variables import RayWorkerVariables
from prefect_ray_worker.errors import BundleMissing, InvalidConfiguration, NoWorkerOnline
from prefect_ray_worker.prefect_api.compat import saved_block_id

if TYPE_CHECKING:
    from prefect_ray_worker.adhoc.flow import CallTerms, RayBoundFlow

_PREPARING = timedelta(minutes=10)


@dataclass(frozen=True)
class FlowCall:
    """One call of a bound flow.

    Attributes:
        flow: The flow.
        parameters: All of its parameters.
        terms: How it is called.
        wait_for: Futures to wait for first.
    """

    flow: Any  # a RayBoundFlow; type checkers take its `__get__` for a method's
    parameters: dict[str, Any]
    terms: "CallTerms"
    wait_for: tuple[PrefectFuture[Any], ...] = ()


def begin(call: FlowCall) -> RayFlowRunFuture[Any]:
    """Create the run of a call; a worker of the pool takes it from there.

    Raises:
        NoWorkerOnline: Nothing would run it.
        InvalidConfiguration: A job variable cannot work.
        Unpicklable: Something of the flow cannot be pickled.
        BundleRefused: The flow cannot be sent for another reason.
    """
    for awaited in call.wait_for:
        awaited.wait()
    parameters: dict[str, Any] = resolve_futures_to_results(call.parameters)
    with get_client(sync_client=True) as client:
        pool = _usable_pool(client, call.flow.work_pool)
        variables = _variables(call, pool)
        storage = _storage_of_pool(pool)
        flow = _with_storage(call.flow, storage)
        bundle = pack(
            flow,
            parameters,
            include_files=call.terms.include_files,
            include_files_base_dir=call.terms.include_files_base_dir,
            values_by_inputs=flow.result_storage is None,
        )
        bundle.check_size(has_storage=storage is not None)
        run_id = _create(client, call, pool.name, bundle.parameters, variables)
        future = RayFlowRunFuture[Any](run_id)
        try:
            send_bundle(client, run_id, bundle.content, storage)
            client.set_flow_run_state(run_id, Scheduled())
        except Exception as exc:
            _give_up(client, run_id, exc)
            raise
        except BaseException:  # Ctrl-C
            future.cancel()
            raise
    return future


def run_again(flow_run_id: UUID) -> RayFlowRunFuture[Any]:
    """Schedule a run again that has ended. Its bundle is still there.

    Raises:
        BundleMissing: It has none.
    """
    with get_client(sync_client=True) as client:
        if read_input(client, flow_run_id, HEADER_KEY) is None:
            raise BundleMissing(
                f"The flow run {flow_run_id} has no bundle to run again. FlowCall the flow anew."
            )
        # Without `force` the server refuses a run without a deployment (3.8.8).
        client.set_flow_run_state(flow_run_id, Scheduled(), force=True)
    return RayFlowRunFuture[Any](flow_run_id)


def _usable_pool(client: SyncPrefectClient, name: str) -> WorkPool:
    try:
        pool = client.read_work_pool(name)
    except ObjectNotFound:
        raise InvalidConfiguration(
            f"The work pool {name!r} does not exist. Create it with `prefect work-pool create "
            f"{name} --type ray`."
        ) from None
    if pool.type != "ray":
        raise InvalidConfiguration(
            f"The work pool {name!r} is of type {pool.type!r}; ray_job needs one of type 'ray'."
        )
    if pool.is_paused:
        raise NoWorkerOnline(
            f"The work pool {name!r} is paused. Resume it with `prefect work-pool resume {name}`."
        )
    workers = client.read_workers_for_work_pool(name)
    if not any(worker.status == WorkerStatus.ONLINE for worker in workers):
        raise NoWorkerOnline(
            f"No worker of the work pool {name!r} is online. Start one where it reaches the Ray "
            f"cluster: `prefect worker start --pool {name}`."
        )
    return pool


def _variables(call: FlowCall, pool: WorkPool) -> dict[str, Any]:
    """Return the job variables of a call, as the flow run keeps them."""
    variables = dict(call.flow.job_variables)
    refuse_unknown(variables, pool.base_job_template, RayWorkerVariables.model_fields)
    offered = pool.base_job_template.get("variables", {}).get("properties", {})
    if variables.get("command") or offered.get("command", {}).get("default"):
        raise InvalidConfiguration(
            "The job variable command is set, here or in the work pool, and replaces the driver "
            "that runs a flow without a deployment. Remove it."
        )
    cluster = variables.get("cluster")
    if isinstance(cluster, RayCluster):
        block_id = saved_block_id(cluster)
        if block_id is None:
            raise InvalidConfiguration(
                "The job variable cluster is a RayCluster block that is not saved. Save it, and "
                "pass RayCluster.load(…): a saved block travels by reference, without its secrets."
            )
        variables["cluster"] = {"$ref": {"block_document_id": str(block_id)}}
    packages = requirements_of(call.terms.dependencies)
    if packages:
        variables["runtime_env"] = _with_packages(variables.get("runtime_env") or {}, packages)
    return variables


def _with_packages(runtime_env: dict[str, Any], packages: list[str]) -> dict[str, Any]:
    taken = [name for name in ("pip", "conda", "image_uri", "container") if name in runtime_env]
    if taken:
        raise InvalidConfiguration(
            f"dependencies become runtime_env.uv, and runtime_env has {taken[0]}, which Ray does "
            "not take beside it. Use one of the two."
        )
    own = runtime_env.get("uv") or []
    if not isinstance(own, list):
        raise InvalidConfiguration(
            "dependencies are added to runtime_env.uv, which has to be a list of requirements."
        )
    return {**runtime_env, "uv": [*packages, *own]}


def _storage_of_pool(pool: WorkPool) -> WritableFileSystem | None:
    """Return the saved block in which the pool keeps results, or else the one by setting."""
    block_id = pool.storage_configuration.default_result_storage_block_id
    if block_id is not None:
        return resolve_result_storage(block_id, _sync=True)  # pyright: ignore[reportCallIssue]
    default = get_default_result_storage(_sync=True)  # pyright: ignore[reportCallIssue]
    return default if saved_block_id(default) is not None else None


def _with_storage(
    flow: "RayBoundFlow[Any, Any]", storage: WritableFileSystem | None
) -> "RayBoundFlow[Any, Any]":
    """Return the flow with the result storage that Prefect would choose."""
    if flow.result_storage is not None or storage is None:
        return flow
    return flow.with_options(result_storage=storage, persist_result=True)


def _create(
    client: SyncPrefectClient,
    call: FlowCall,
    pool_name: str,
    parameters: dict[str, Any],
    variables: dict[str, Any],
) -> UUID:
    flow, parent = call.flow, None
    if context := FlowRunContext.get():
        # So that the UI shows the run as a subflow (`submit_to_work_pool`, 3.8.8).
        task = Task[Any, Any](name=flow.name, fn=flow.fn, version=flow.version)
        parent = run_coro_as_sync(
            task.create_run(flow_run_context=context, parameters=call.parameters)
        )
    tags = TagsContext.get().current_tags
    run = client.create_flow_run(
        flow,
        parameters=parameters,
        state=Scheduled(
            scheduled_time=datetime.now(UTC) + _PREPARING, message="The flow's code is being sent."
        ),
        job_variables=variables,
        work_pool_name=pool_name,
        tags=tags,
        parent_task_run_id=getattr(parent, "id", None),
    )
    return run.id


def _give_up(client: SyncPrefectClient, flow_run_id: UUID, exc: Exception) -> None:
    """End a run that did not get its bundle, unless the API is away: then its driver does."""
    try:
        state = client.read_flow_run(flow_run_id).state
        if state is not None and state.type == StateType.SCHEDULED:
            why = f"The flow could not be sent: {type(exc).__name__}: {exc}"
            client.set_flow_run_state(flow_run_id, Failed(message=why), force=True)
    except Exception:  # noqa: BLE001 (the first error is the one to raise)
        return
