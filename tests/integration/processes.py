"""Finds the real processes of a run, to kill them and to see that none is left."""

from contextlib import suppress
from pathlib import Path
from uuid import UUID

import psutil

from prefect_ray_worker.driver.supervise.link import peer_of
from prefect_ray_worker.driver.supervise.rendezvous import Rendezvous
from tests.waiting import wait_until


def of_run(run_id: UUID) -> list[psutil.Process]:
    """Return what the entrypoint of a run's job has become and everything that it started."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            told = process.environ().get("PREFECT__FLOW_RUN_ID")
            # The guard has its run as an argument, from which it makes the variable.
            is_of_run = told == str(run_id) or str(run_id) in process.cmdline()
            if is_of_run and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def is_alive(process: psutil.Process) -> bool:
    """Say whether a process has not ended; one that nobody has waited for yet has."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def engine_of(folder: Path, trace: str = "pids") -> psutil.Process:
    """Return the engine: the process whose pid a flow has noted first."""
    return psutil.Process(int((folder / trace).read_text().split()[0]))


def supervisor_of(engine: psutil.Process) -> psutil.Process:
    """Return the process that has started the engine."""
    return _parent(engine, "prefect_ray_worker.driver")


def guard_of(engine: psutil.Process) -> psutil.Process:
    """Return the process that the job's entrypoint has become."""
    run_id = engine.environ()["PREFECT__FLOW_RUN_ID"]
    (guard,) = [p for p in of_run(UUID(run_id)) if _is_of_ray(p.parent())]
    return guard


def zygote_of(engine: psutil.Process) -> psutil.Process:
    """Return the process that supervisor and engine were forked from."""
    zygote = supervisor_of(engine).parent()
    assert zygote is not None
    assert " ".join(zygote.cmdline()).rstrip().endswith("prefect_ray_worker.driver zygote")
    return zygote


def is_forked(engine: psutil.Process) -> bool:
    """Return whether an engine was forked from a zygote."""
    return supervisor_of(engine) not in guard_of(engine).children()


def zygotes_at(rendezvous: Rendezvous) -> frozenset[int]:
    """Return the processes that listen there."""
    pids: set[int] = set()
    for fingerprint in rendezvous.fingerprints():
        connection = rendezvous.connect(fingerprint)
        if connection is not None:
            pids.add(peer_of(connection)[0])
            connection.close()
    return frozenset(pids)


def raylet_of(head: int) -> psutil.Process:
    """Return the raylet of a node that was started as this process."""
    found: list[psutil.Process] = []
    for process in psutil.Process(head).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # one of the others has ended meanwhile
            if process.name() == "raylet":
                found.append(process)
    (raylet,) = found
    return raylet


def _is_of_ray(process: psutil.Process | None) -> bool:
    return process is not None and "ray::JobSupervisor" in " ".join(process.cmdline())


def job_supervisor_of(engine: psutil.Process) -> psutil.Process:
    """Return Ray's own process of the job."""
    return _parent(guard_of(engine), "ray::JobSupervisor")


def _parent(process: psutil.Process, command: str) -> psutil.Process:
    parent = process.parent()
    assert parent is not None
    assert command in " ".join(parent.cmdline()), parent.cmdline()
    return parent


async def all_gone(run_id: UUID, *, within: float) -> None:
    """Wait until nothing of a run is alive any more, wherever it hides."""
    try:
        await wait_until(lambda: not of_run(run_id), timeout=within, description="no process left")
    except AssertionError as exc:
        left = [(p.pid, p.cmdline()) for p in of_run(run_id)]
        raise AssertionError(f"{exc}: {left}") from None
