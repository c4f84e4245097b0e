"""Creates the flow run of a call, gives it its bundle, and makes it due.

The run is created AwaitingCode, which is Scheduled for ten minutes ahead: no worker takes it yet,
and it cancels cleanly. It becomes Scheduled once its bundle is complete. So a caller that dies at
any moment takes no slot: after the ten minutes a worker finds the run AwaitingCode, and settles it.
"""

import shlex
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import FlowRunCreate
from prefect.client.schemas.objects import (
    FlowRun,
    FlowRunPolicy,
    State,
    StateType,
    Worker,
    WorkerStatus,
    WorkPool,
)
from prefect.context import FlowRunContext, TagsContext
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.filesystems import WritableFileSystem
from prefect.futures import PrefectFuture, resolve_futures_to_results
from prefect.results import resolve_result_storage
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, get_current_settings, temporary_settings
from prefect.states import Failed, Scheduled, to_state_create
from prefect.tasks import Task
from prefect.utilities.asyncutils import run_coro_as_sync

from prefect_ray_worker.adhoc.dependencies import requirements_of
from prefect_ray_worker.adhoc.following import RayFlowRunFuture
from prefect_ray_worker.adhoc.large import store
from prefect_ray_worker.adhoc.waiting import cancel
from prefect_ray_worker.bundles.carriers import HEADER_KEY, patiently, read_input, send_bundle
from prefect_ray_worker.bundles.header import BundleHeader
from prefect_ray_worker.bundles.packing import pack
from prefect_ray_worker.config.block import RayCluster
from prefect_ray_worker.config.refusals import refuse_unknown
from prefect_ray_worker.config.variables import RayWorkerVariables
from prefect_ray_worker.errors import BundleMissing, InvalidConfiguration, NoWorkerOnline
from prefect_ray_worker.prefect_api.compat.flows import raise_if_suspended
from prefect_ray_worker.prefect_api.compat.settings import saved_block_id
from prefect_ray_worker.prefect_api.due_runs import policy_for_workers
from prefect_ray_worker.shared.ids import AWAITING_CODE

if TYPE_CHECKING:
    from prefect_ray_worker.adhoc.flow import CallTerms, RayBoundFlow

_PREPARING = timedelta(minutes=10)
# All else of the call is done by then. A rate limit of a minute must not end it.
_DUE_SECONDS = 300.0


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
    raise_if_suspended()
    for awaited in call.wait_for:
        awaited.wait()
    parameters: dict[str, Any] = resolve_futures_to_results(call.parameters)
    with get_client(sync_client=True) as client, ThreadPoolExecutor(2) as beside:
        default = beside.submit(copy_context().run, _default_storage, client)
        pool = _usable_pool(client, call.flow.work_pool, beside)
        variables = _variables(call, pool)
        storage = _storage_of_pool(pool, default)
        flow = _with_storage(call.flow, storage)
        bundle = pack(
            flow,
            parameters,
            include_files=call.terms.include_files,
            include_files_base_dir=call.terms.include_files_base_dir,
            values_by_inputs=flow.result_storage is None,
        )
        header = None
        if not bundle.is_small:
            large = store(bundle, storage, pool, variables)
            header, variables = large.header, _with_module(variables, pool, large.package)
        run = _create(client, call, pool.name, bundle.parameters, variables)
        future = RayFlowRunFuture[Any](run.id)
        future.parent_task_run_id = run.parent_task_run_id
        try:
            send_bundle(client, run.id, bundle.content, header)
            _make_due(client, run)
        except Exception as exc:
            _give_up(client, run.id, exc)
            raise
        except BaseException as exc:  # Ctrl-C
            try:
                cancel(future)
            except Exception as trouble:
                raise exc from trouble
            raise
    return future


def _make_due(client: SyncPrefectClient, run: FlowRun, *, force: bool = False) -> None:
    """Schedule a run whose bundle is complete, once.

    A worker may have taken the run when the answer got lost. Scheduled again, it would run twice;
    so the run is read first, and Prefect's client repeats nothing by itself (3.8.8).
    """
    before = run.state.id if run.state is not None else None
    was_asked = False

    def ask() -> None:
        nonlocal was_asked
        if was_asked:
            state = client.read_flow_run(run.id).state
            if state is not None and state.id != before:
                return
        was_asked = True
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            client.set_flow_run_state(run.id, Scheduled(), force=force)

    patiently(ask, _DUE_SECONDS)


def run_again(flow_run_id: UUID) -> RayFlowRunFuture[Any]:
    """Schedule a run again that has ended. Its bundle is still there.

    Raises:
        BundleMissing: It has none.
        InvalidConfiguration: It has not ended, or its work pool or queue was deleted.
    """
    with get_client(sync_client=True) as client:
        run = patiently(lambda: client.read_flow_run(flow_run_id))
        if run.state is None or not run.state.is_final():
            raise InvalidConfiguration(
                f"The flow run {flow_run_id} is {run.state_name}: only a run that has ended can "
                "run again."
            )
        if run.work_queue_id is None:
            raise InvalidConfiguration(
                f"The work pool or work queue of the flow run {flow_run_id} was deleted, so no "
                "worker would be given it. Call the flow anew."
            )
        text = read_input(client, flow_run_id, HEADER_KEY)
        if text is None:
            raise BundleMissing(
                f"The flow run {flow_run_id} has no bundle to run again. Call the flow anew."
            )
        if BundleHeader.parse(text).carrier == "cluster":
            raise BundleMissing(
                f"The bundle of the flow run {flow_run_id} was in the store of the Ray cluster, "
                "which drops it with its job. Call the flow anew."
            )
        if (policy := policy_for_workers(run.empirical_policy, run.state)) is not None:
            patiently(lambda: client.update_flow_run(flow_run_id, empirical_policy=policy))
        # Without `force` the server refuses a run without a deployment (3.8.8).
        _make_due(client, run, force=True)
    return RayFlowRunFuture[Any](flow_run_id)


def _usable_pool(client: SyncPrefectClient, name: str, beside: ThreadPoolExecutor) -> WorkPool:
    word = shlex.quote(name)
    asked = beside.submit(copy_context().run, client.read_workers_for_work_pool, name)
    try:
        pool = client.read_work_pool(name)
    except ObjectNotFound:
        raise InvalidConfiguration(
            f"The work pool {name!r} does not exist. Create it with `prefect work-pool create "
            f"{word} --type ray`."
        ) from None
    if pool.type != "ray":
        raise InvalidConfiguration(
            f"The work pool {name!r} is of type {pool.type!r}; ray_job needs one of type 'ray'."
        )
    if pool.is_paused:
        raise NoWorkerOnline(
            f"The work pool {name!r} is paused. Resume it with `prefect work-pool resume {word}`."
        )
    workers: list[Worker] = asked.result()
    if not any(worker.status == WorkerStatus.ONLINE for worker in workers):
        raise NoWorkerOnline(
            f"No worker of the work pool {name!r} is online. Start one where it reaches the Ray "
            f"cluster: `prefect worker start --pool {word}`."
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
        variables["runtime_env"] = _with_packages(_runtime_env(variables, pool), packages)
    return variables


def _runtime_env(variables: dict[str, Any], pool: WorkPool) -> dict[str, Any]:
    """Return the runtime_env of a call: its own, or else the one that the pool has by default."""
    offered = pool.base_job_template.get("variables", {}).get("properties", {})
    default = offered.get("runtime_env", {}).get("default")
    found = variables.get("runtime_env") or default or {}
    if not isinstance(found, dict):
        raise InvalidConfiguration(
            "runtime_env, of the call or by default of the work pool, is no mapping, and a package "
            "has to be added to it. Write its fields out, and use placeholders in their values."
        )
    return {**found}


def _with_module(variables: dict[str, Any], pool: WorkPool, package: str | None) -> dict[str, Any]:
    """Return job variables with which Ray brings a package to the job's nodes."""
    if package is None:
        return variables
    runtime_env = _runtime_env(variables, pool)
    modules = [package, *(runtime_env.get("py_modules") or [])]
    return {**variables, "runtime_env": {**runtime_env, "py_modules": modules}}


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


def _storage_of_pool(
    pool: WorkPool, default: "Future[UUID | str | None]"
) -> WritableFileSystem | None:
    """Return the saved block in which the pool keeps results, or else the one by setting."""
    block = pool.storage_configuration.default_result_storage_block_id or default.result()
    if block is None:
        return None
    return resolve_result_storage(block, _sync=True)  # pyright: ignore[reportCallIssue]


def _default_storage(client: SyncPrefectClient) -> UUID | str | None:
    """Return the block that keeps results by a setting, here or on the server."""
    named = get_current_settings().results.default_storage_block
    if named is not None:
        return named
    try:
        return client.read_server_default_result_storage().default_result_storage_block_id
    except (PrefectHTTPStatusError, httpx.HTTPError, AttributeError):
        return None  # a server, or a client, that is older than this default


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
) -> FlowRun:
    flow, parent = call.flow, None
    if context := FlowRunContext.get():
        # So that the UI shows the run as a subflow (`submit_to_work_pool`, 3.8.8).
        task = Task[Any, Any](name=flow.name, fn=flow.fn, version=flow.version)
        parent = run_coro_as_sync(
            task.create_run(flow_run_context=context, parameters=call.parameters)
        )
    asked = FlowRunCreate(
        flow_id=patiently(lambda: client.create_flow(flow)),
        flow_version=flow.version,
        parameters=parameters,
        state=to_state_create(_awaiting_code()),
        empirical_policy=FlowRunPolicy(
            retries=flow.retries, retry_delay=int(flow.retry_delay_seconds or 0)
        ),
        # After a lost answer the client asks again (3.8.8); without a key there were two runs.
        idempotency_key=uuid4().hex,
        job_variables=variables,
        work_pool_name=pool_name,
        tags=list(TagsContext.get().current_tags),
        parent_task_run_id=getattr(parent, "id", None),
    ).model_dump(mode="json", exclude_unset=True)
    try:
        answer = patiently(lambda: client.request("POST", "/flow_runs/", json=asked))
    except Exception as exc:
        if parent is not None:  # no run will ever move it
            with suppress(Exception):
                failed: State[Any] = Failed(message=f"The flow could not be called: {exc}")
                client.set_task_run_state(parent.id, failed, force=True)
        raise
    return FlowRun.model_validate(answer.json())


def _awaiting_code() -> State[Any]:
    state: State[Any] = Scheduled(
        scheduled_time=datetime.now(UTC) + _PREPARING, message="The flow's code is being sent."
    )
    state.name = AWAITING_CODE
    return state


def _give_up(client: SyncPrefectClient, flow_run_id: UUID, exc: Exception) -> None:
    """End a run that did not get its bundle, unless the API is away: then a worker does, later."""
    try:
        state = client.read_flow_run(flow_run_id).state
        if state is not None and state.type == StateType.SCHEDULED:
            why = f"The flow could not be sent: {type(exc).__name__}: {exc}"
            client.set_flow_run_state(flow_run_id, Failed(message=why), force=True)
    except Exception:  # noqa: BLE001 (the first error is the one to raise)
        return
