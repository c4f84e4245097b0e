"""`Overview`: what a work pool's workers, clusters and runs do now."""

import math
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import WorkPoolFilter, WorkPoolFilterId
from prefect.client.schemas.objects import StateType, Worker, WorkerStatus, WorkPool, WorkQueue

from prefect_ray_worker.commands.seen_clusters import ClusterSeen, seen_clusters
from prefect_ray_worker.prefect_api.active_runs import type_in_effect
from prefect_ray_worker.prefect_api.due_runs import why_not_taken
from prefect_ray_worker.runs.recovery.labels import (
    labelled_cluster,
    labelled_owner,
    submitter_in,
)
from prefect_ray_worker.shared.ids import ClusterRef, InfrastructurePid, job_of_attempt

# All that an attempt has begun on and not ended, and what waits for a worker.
_ACTIVE = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING, StateType.PAUSED]
# The end of a reason that the worker writes for the page of the run.
_UNTIL_NEWS = " Should that change, the run's log says so."

Record = dict[str, Any]


@dataclass(frozen=True)
class WorkerSeen:
    """A worker of the pool.

    Attributes:
        name: As Prefect knows it.
        is_online: Whether Prefect has heard of it lately.
        silent_seconds: Since its last heartbeat; None if it sent none.
        runs: How many of the listed runs it owns.
    """

    name: str
    is_online: bool
    silent_seconds: float | None
    runs: int


@dataclass(frozen=True)
class RunSeen:
    """A run of the pool that is due or running.

    Attributes:
        id: The flow run.
        name: Its name.
        state: The name of its state.
        state_seconds: Since it came into that state.
        job_id: The submission id of its present job; None if it has none yet.
        cluster: Where that job is, or is to go.
        worker: Who owns the run.
        waits_for: A sentence; None for a run that waits for nothing.
    """

    id: UUID
    name: str
    state: str
    state_seconds: float
    job_id: str | None
    cluster: str | None
    worker: str | None
    waits_for: str | None


@dataclass(frozen=True)
class Overview:
    """What a work pool does at one moment.

    Attributes:
        pool: The pool's name.
        state: `READY`, `PAUSED` or `NOT_READY`, as Prefect calls it.
        limit: How many runs it allows at once; None for any number.
        slots: How many slots of the limit are taken; None without a limit.
        workers: Those that are online, and those that own a run.
        clusters: Those of the runs, and the pool's own.
        runs: The oldest first.
        more_runs: How many were left out.
    """

    pool: str
    state: str
    limit: int | None
    slots: int | None
    workers: tuple[WorkerSeen, ...]
    clusters: tuple[ClusterSeen, ...]
    runs: tuple[RunSeen, ...]
    more_runs: int


@dataclass(frozen=True)
class _JobPlace:
    """The job of a run's present attempt; also before Ray has it, as its cluster is named by it."""

    job: str | None
    cluster: ClusterRef | None
    is_submitted: bool


_NOWHERE = _JobPlace(None, None, False)


async def overview_of(client: PrefectClient, pool: WorkPool, *, most_runs: int) -> Overview:
    """Return what a work pool does now.

    Args:
        client: An open client.
        pool: The pool, just read.
        most_runs: How many runs to show; more are counted.

    Raises:
        Exception: Prefect did not answer.
    """
    records, total = await _records(client, pool, most_runs)
    workers = await _workers(client, pool.name)
    online = frozenset(worker.name for worker in workers if worker.status == WorkerStatus.ONLINE)
    queues = {str(q.name): q for q in await client.read_work_queues(work_pool_name=pool.name)}
    now = datetime.now(UTC)
    runs = tuple(
        _run_of(record, pool, queues.get(record.get("work_queue_name") or ""), online, now)
        for record in records
    )
    return Overview(
        pool=pool.name,
        state=str(pool.status.value if pool.status else "PAUSED" if pool.is_paused else "READY"),
        limit=pool.concurrency_limit,
        slots=pool.active_slots if pool.concurrency_limit is not None else None,
        workers=tuple(_seen_workers(workers, runs, now)),
        clusters=await seen_clusters(client, pool, _jobs_by_cluster(records)),
        runs=runs,
        more_runs=max(0, total - len(runs)),
    )


async def _records(client: PrefectClient, pool: WorkPool, most: int) -> tuple[list[Record], int]:
    of_pool = WorkPoolFilter(id=WorkPoolFilterId(any_=[pool.id])).model_dump(mode="json")
    now = datetime.now(UTC).isoformat()
    begun = {"state": {"type": {"any_": [kind.value for kind in _ACTIVE]}}}
    scheduled = {"type": {"any_": [StateType.SCHEDULED.value]}}
    due = {"state": scheduled, "next_scheduled_start_time": {"before_": now}}
    retried = {
        "state": {**scheduled, "name": {"any_": ["AwaitingRetry"]}},
        "next_scheduled_start_time": {"after_": now},
    }
    found, total = await _oldest(client, {"flow_runs": begun, "work_pools": of_pool}, most)
    # Prefect cannot filter by what tells those that wait in their process from those that do not.
    body = {"flow_runs": retried, "work_pools": of_pool}
    waiting = [r for r in await _read(client, body) if _type_of(r) != StateType.SCHEDULED]
    found, total = [*found, *waiting], total + len(waiting)
    body = {"flow_runs": due, "work_pools": of_pool}
    more, count = await _oldest(client, body, max(0, most - len(found)))
    return [*found, *more][:most], total + count


async def _oldest(client: PrefectClient, body: Record, most: int) -> tuple[list[Record], int]:
    """Return the oldest runs that a filter selects, and the number of all."""
    count = (await client.request("POST", "/flow_runs/count", json=body)).json()
    return await _read(client, body, most), count


async def _read(client: PrefectClient, body: Record, most: float = math.inf) -> list[Record]:
    oldest_first = {**body, "sort": "EXPECTED_START_TIME_ASC"}
    found: list[Record] = []
    read = 0
    while len(found) < most and (page := await _page(client, {**oldest_first, "offset": read})):
        read += len(page)
        found += [record for record in page if record["state"]]
    return found


async def _page(client: PrefectClient, body: Record) -> list[Record]:
    return (await client.request("POST", "/flow_runs/filter", json=body)).json()


async def _workers(client: PrefectClient, pool: str) -> list[Worker]:
    found: list[Worker] = []
    while page := await client.read_workers_for_work_pool(pool, offset=len(found)):
        found += page
    return found


def _run_of(
    record: Record, pool: WorkPool, queue: WorkQueue | None, online: frozenset[str], now: datetime
) -> RunSeen:
    state, labels = record["state"], record.get("labels") or {}
    name = state["name"] or state["type"].title()
    is_due = _type_of(record) == StateType.SCHEDULED
    place = _NOWHERE if is_due else _place_of(record)
    owner = None if is_due else _owner_in(labels)
    since = datetime.fromisoformat(state["timestamp"])
    if is_due:
        since = datetime.fromisoformat(record["next_scheduled_start_time"])
    return RunSeen(
        id=UUID(record["id"]),
        name=record["name"],
        state=name,
        state_seconds=max(0.0, (now - since).total_seconds()),
        job_id=place.job if place.is_submitted else None,
        cluster=None if place.cluster is None else str(place.cluster),
        worker=owner,
        waits_for=_reason(record, pool, queue, online, owner),
    )


def _type_of(record: Record) -> StateType:
    state = record["state"]
    details = state.get("state_details") or {}
    retry_type = (record.get("empirical_policy") or {}).get("retry_type")
    kind = StateType(state["type"])
    return type_in_effect(kind, retry_type, details.get("pause_reschedule"))


def _place_of(record: Record) -> _JobPlace:
    """Return where the job of a run's present attempt is, or goes, as its labels and pid tell."""
    labels: Mapping[str, object] = record.get("labels") or {}
    owned = labelled_owner(labels)
    attempt = owned[0] if owned is not None else None
    try:
        pid = InfrastructurePid.parse(record.get("infrastructure_pid") or "")
    except ValueError:
        pid = None
    if attempt is None:
        return _NOWHERE if pid is None else _JobPlace(pid.submission_id, pid.cluster, True)
    job = job_of_attempt(UUID(record["id"]), attempt)
    if pid is not None and pid.submission_id == job:
        return _JobPlace(job, pid.cluster, True)
    return _JobPlace(job, labelled_cluster(labels, attempt), False)


def _owner_in(labels: Mapping[str, object]) -> str | None:
    owned = labelled_owner(labels)
    return submitter_in(labels) if owned is None else owned[1].name


def _reason(
    record: Record,
    pool: WorkPool,
    queue: WorkQueue | None,
    online: frozenset[str],
    owner: str | None,
) -> str | None:
    state = record["state"]
    kind, message = _type_of(record), (state.get("message") or "").removesuffix(_UNTIL_NEWS)
    if kind == StateType.SCHEDULED:
        return why_not_taken(state["name"], message, pool, queue, has_worker=bool(online))
    if owner is not None and owner not in online and kind != StateType.PAUSED:
        return f"Its worker {owner} is offline; " + (
            "another worker of the pool takes it over."
            if online
            else f"no other is online: `prefect worker start --pool {shlex.quote(pool.name)}`."
        )
    if kind == StateType.PENDING:
        return message or "Its worker submits it."
    if kind == StateType.CANCELLING:
        return "The end of its job."
    if kind == StateType.PAUSED:
        return "Somebody to resume it."
    if state["type"] == StateType.SCHEDULED.value:
        return f"Its next try, {state['name']}."
    return None


def _seen_workers(
    workers: Iterable[Worker], runs: Iterable[RunSeen], now: datetime
) -> Iterable[WorkerSeen]:
    owned: dict[str, int] = {}
    for run in runs:
        if run.worker is not None:
            owned[run.worker] = owned.get(run.worker, 0) + 1
    for worker in sorted(workers, key=lambda worker: worker.name):
        is_online = worker.status == WorkerStatus.ONLINE
        if is_online or worker.name in owned:
            beat = worker.last_heartbeat_time
            silent = None if beat is None else max(0.0, (now - beat).total_seconds())
            yield WorkerSeen(worker.name, is_online, silent, owned.get(worker.name, 0))


def _jobs_by_cluster(records: Iterable[Record]) -> dict[ClusterRef, list[str]]:
    found: dict[ClusterRef, list[str]] = {}
    for record in records:
        if _type_of(record) != StateType.SCHEDULED:
            place = _place_of(record)
            if place.cluster is not None and place.job is not None:
                found.setdefault(place.cluster, []).append(place.job)
    return found
