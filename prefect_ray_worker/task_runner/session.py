"""`RaySession`: the Ray that a started runner uses, joined or started, and left as it was found."""

import json
import os
import signal
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from prefect.logging import get_logger

from prefect_ray_worker.errors import NoRayCluster
from prefect_ray_worker.task_runner import code

_log = get_logger("task_runner.ray")

JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray in the entrypoint of a Ray Job (2.60)."""
# Of `ray._private.worker` (2.60): the mode of a driver.
_SCRIPT_MODE = 0
_OVERRIDE_VARIABLE = "RAY_OVERRIDE_JOB_RUNTIME_ENV"


def is_task_process() -> bool:
    """Say whether this process is one in which Ray runs tasks."""
    import ray

    if not ray.is_initialized():
        return False
    return ray.get_runtime_context().worker.mode not in (None, _SCRIPT_MODE)


@dataclass
class RaySession:
    """A Ray in use.

    Attributes:
        is_ours: Whether we have connected, and have to disconnect.
        paths: Folders with the flow's code, for the processes of tasks.
    """

    is_ours: bool
    paths: list[str]

    def leave(self) -> None:
        """Disconnect, if we have connected; a Ray that we have started ends with that."""
        if not self.is_ours:
            return
        import ray

        with signal_handlers_kept():
            ray.shutdown()


def connect(address: str | None, init_kwargs: Mapping[str, Any], *, ship_code: bool) -> RaySession:
    """Join the cluster that we are in, or that is asked for, or start a Ray on this machine.

    Args:
        address: Of the cluster, as `ray.init` takes it; None for the cluster of the Ray Job
            around us, or else a Ray of our own.
        init_kwargs: More for `ray.init`.
        ship_code: Whether a cluster that we join shall get the flow's folder.

    Raises:
        NoRayCluster: `auto` was asked for, or an address, and nothing is there.
    """
    import ray

    if ray.is_initialized():
        _log.debug("Ray is initialized already; it is used as it is")
        return RaySession(False, code.paths())
    in_job = JOB_CONFIG_VARIABLE in os.environ
    joins = in_job or address not in (None, "local") or bool(os.environ.get("RAY_ADDRESS"))
    if address in (None, "auto") and joins:
        address = os.environ.get("RAY_ADDRESS") or "auto"
    kwargs, paths = dict(init_kwargs), code.paths()
    if joins and ship_code:
        job_env = _job_runtime_env()
        shipped = code.for_cluster(job_env, kwargs.get("runtime_env"), in_job=in_job)
        kwargs["runtime_env"], paths = shipped.runtime_env, shipped.paths
    if not kwargs.get("runtime_env"):
        kwargs.pop("runtime_env", None)
    if str(address).startswith("ray://"):
        _log.warning(
            "Ray Client (%s) loses its driver after 30 s without a connection. Run the flow inside "
            "the cluster instead: give its deployment a work pool of type 'ray'.",
            address,
        )
    with signal_handlers_kept(), _override(in_job and "runtime_env" in kwargs):
        _init(address, kwargs)
    _log.info("Using a Ray cluster of %s nodes", sum(bool(n.get("alive")) for n in ray.nodes()))
    return RaySession(True, paths)


def _init(address: str | None, kwargs: dict[str, Any]) -> None:
    import ray

    try:
        context = ray.init(address, **kwargs) if address else ray.init(**kwargs)
    except ConnectionError as exc:
        what = (
            "address='auto' was asked for, but no Ray runs on this machine"
            if address == "auto"
            else f"There is no Ray at {address}"
        )
        raise NoRayCluster(
            f"{what}. Run the flow as a Ray Job (a work pool of type 'ray'), start a node of the "
            "cluster here (`ray start --address=...`), or leave the address of RayTaskRunner out "
            f"for a Ray of the flow's own. Ray says: {exc}"
        ) from exc
    url = getattr(context, "dashboard_url", None)
    if url:
        _log.info("Ray's dashboard is at %s", url)


def _job_runtime_env() -> dict[str, Any]:
    config = json.loads(os.environ.get(JOB_CONFIG_VARIABLE) or "{}")
    return dict(config.get("runtime_env") or {})


@contextmanager
def _override(needed: bool) -> Generator[None, None, None]:
    """Let `ray.init` take keys that the job has as well: we have merged them, Ray would refuse."""
    before = os.environ.get(_OVERRIDE_VARIABLE)
    if needed:
        os.environ[_OVERRIDE_VARIABLE] = "1"
    try:
        yield
    finally:
        if needed and before is None:
            del os.environ[_OVERRIDE_VARIABLE]


@contextmanager
def signal_handlers_kept() -> Generator[None, None, None]:
    """Put the SIGTERM handler back that `ray.init` replaces (Ray 2.60, `_private/worker.py`).

    Prefect's says that a flow run is cancelled; Ray's ends the process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
