"""`RaySession`: the Ray that a started runner uses, joined or started, and left as it was found."""

import gc
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.logging import get_logger

from prefect_ray_worker.errors import NoRayCluster
from prefect_ray_worker.shared.resources import nodes_in_words
from prefect_ray_worker.task_runner import code
from prefect_ray_worker.task_runner.modules import OwnModules

_log = get_logger("task_runner.ray")

JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray in the entrypoint of a Ray Job (2.60)."""
# How long `ray.shutdown()` may take, a second or two as a rule; and how often to look.
_SHUTDOWN_SECONDS = 20.0
_LOOK_SECONDS = 0.02
_CONNECT_SECONDS = 1.0
# Of `ray._private.worker` (2.60): the mode of a driver.
_SCRIPT_MODE = 0
# The address and the arguments for `ray.init` that a session was made with.
_Asked = tuple[str | None, dict[str, Any]]
_OVERRIDE_VARIABLE = "RAY_OVERRIDE_JOB_RUNTIME_ENV"


def is_task_process() -> bool:
    """Say whether this process is one in which Ray runs tasks."""
    import ray

    if not ray.is_initialized():
        return False
    return ray.get_runtime_context().worker.mode not in (None, _SCRIPT_MODE)


@dataclass
class RaySession:
    """A Ray in use, shared by the runners of this process.

    Attributes:
        is_ours: Whether we have connected, and have to disconnect.
        paths: Folders with the flow's code, for the processes of tasks.
        own: The flow's modules that task processes can load, as they find them.
        own_here: The same, as this process finds them.
        asked: The address and the arguments for `ray.init` that it was made with.
        job: What names its connection.
        users: How many runners use it.
    """

    is_ours: bool
    paths: list[str]
    own: OwnModules = OwnModules()  # noqa: RUF009 (it is frozen)
    own_here: OwnModules = OwnModules()  # noqa: RUF009
    asked: _Asked = (None, {})
    job: str | None = None
    users: int = 1

    def leave(self) -> None:
        """Disconnect with the last user, if we have connected; a Ray that we started ends then."""
        if not self.is_ours:
            return
        import ray

        with _Shared.changing:
            self.users -= 1
            if self.users or _Shared.session is not self:
                return
            _Shared.session = None
            if self.job == job_id():  # not if the flow has another Ray by now
                with signal_handlers_kept(), _collector_paused():
                    ray.shutdown()


class _Shared:
    """The session that runners of this process share, if one of them has connected."""

    changing = threading.RLock()
    session: RaySession | None = None


def is_connected() -> bool:
    """Return whether this process is connected to a Ray."""
    import ray

    return ray.is_initialized()


def job_id() -> str | None:
    """Return what names the present connection to Ray; None without one."""
    import ray

    return ray.get_runtime_context().get_job_id() if ray.is_initialized() else None


def await_shutdown() -> None:
    """Wait until another thread's `ray.shutdown()` is over, if there is one.

    While it goes on, whoever drops a reference ends the whole process, with exit code 1 (Ray 2.60,
    `core_worker_process.cc`: "The core worker has already been shutdown").
    """
    import ray
    from ray._private.worker import global_worker  # other ways to it would start another Ray

    deadline = time.monotonic() + _SHUTDOWN_SECONDS
    # It disconnects first, and takes the attribute away when references can go.
    while hasattr(global_worker, "core_worker") and not ray.is_initialized():
        if time.monotonic() >= deadline:
            return
        time.sleep(_LOOK_SECONDS)


def connect(address: str | None, init_kwargs: Mapping[str, Any], *, ship_code: bool) -> RaySession:
    """Use the Ray that another runner of this process uses, or join or start one.

    Args:
        address: Of the cluster, as `ray.init` takes it; None for the cluster of the Ray Job
            around us, or else a Ray of our own.
        init_kwargs: More for `ray.init`.
        ship_code: Whether a cluster that we join shall get the flow's folder.

    Raises:
        NoRayCluster: `auto` was asked for, or an address, and nothing is there.
    """
    asked: _Asked = (address, dict(init_kwargs))
    with _Shared.changing:
        shared = _Shared.session
        if shared is not None and shared.job == job_id():
            shared.users += 1
            _warn_if_ignored(asked, shared.asked, "another flow of this process has joined")
            return shared
        session = _connect(address, init_kwargs, ship_code=ship_code)
        session.asked, session.job = asked, job_id()
        _Shared.session = session if session.is_ours else None
        return session


def _warn_if_ignored(asked: _Asked, given: _Asked, which: str) -> None:
    ignored = {k: v for k, v in asked[1].items() if given[1].get(k) != v and k != "namespace"}
    if asked[0] not in (None, given[0]):
        ignored["address"] = asked[0]
    if ignored:
        _log.warning(
            "RayTaskRunner uses the Ray that %s, so its own %s is ignored. Ask for it there, or "
            "use remote_options for what only some tasks need.",
            which,
            " and ".join(sorted(ignored)),
        )


def _connect(address: str | None, init_kwargs: Mapping[str, Any], *, ship_code: bool) -> RaySession:
    """Join the cluster that we are in, or that is asked for, or start a Ray on this machine."""
    import ray

    if ray.is_initialized():
        _warn_if_ignored((None, dict(init_kwargs)), (None, {}), "the flow has initialized")
        _warn_if_not_shipped(ship_code=ship_code)
        return _session(False, code.paths(), code.unpacked_root())
    in_job = JOB_CONFIG_VARIABLE in os.environ
    joins = in_job or address not in (None, "local") or bool(os.environ.get("RAY_ADDRESS"))
    if address in (None, "auto") and joins:
        address = os.environ.get("RAY_ADDRESS") or "auto"
    kwargs, paths, root = dict(init_kwargs), code.paths(), None
    if joins and ship_code:
        job_env = _job_runtime_env()
        shipped = code.for_cluster(job_env, kwargs.get("runtime_env"), in_job=in_job)
        kwargs["runtime_env"], paths, root = shipped.runtime_env, shipped.paths, shipped.root
    if not kwargs.get("runtime_env"):
        kwargs.pop("runtime_env", None)
    if address is None and _leftover(kwargs.get("_temp_dir")):
        address = "local"
    if str(address).startswith("ray://"):
        _log.warning(
            "Ray Client (%s) loses its driver after 30 s without a connection. Run the flow inside "
            "the cluster instead: give its deployment a work pool of type 'ray'.",
            address,
        )
    with signal_handlers_kept(), _override(in_job and "runtime_env" in kwargs):
        dashboard = _init(address, kwargs)
    if dashboard and not in_job:  # a job's worker has said where its dashboard is
        _log.info("Ray's dashboard is at %s", dashboard)
    _log.info("Using a Ray cluster of %s", nodes_in_words(_nodes()))
    return _session(True, paths, root if joins else _this_machine())


def _warn_if_not_shipped(*, ship_code: bool) -> None:
    """Warn where a Ray that the flow has initialized itself has nodes without the flow's folder."""
    import ray

    nodes = _nodes()
    env: Mapping[str, Any] = ray.get_runtime_context().runtime_env
    if not ship_code or nodes < 2 or env.get("working_dir") or code.is_unpacked():
        return
    _log.warning(
        "Ray was initialized before RayTaskRunner started, so the flow's folder is not shipped to "
        "the %s nodes, and tasks there do not find its modules. Leave ray.init() out "
        "(RayTaskRunner takes its arguments as init_kwargs), or give it "
        "runtime_env={'working_dir': '.'}.",
        nodes,
    )


def _nodes() -> int:
    import ray

    return sum(bool(node.get("Alive", node.get("alive"))) for node in ray.nodes())


def _this_machine() -> Path | None:
    """Return the root of our files if the Ray that we have started, or found, has no other node."""
    return Path(Path.cwd().anchor) if _nodes() == 1 else None


def _session(is_ours: bool, paths: list[str], root: Path | None) -> RaySession:
    if root is None:
        return RaySession(is_ours, paths)
    own = code.own_modules(root, paths)
    return RaySession(is_ours, paths, own, own.below(root))


def _init(address: str | None, kwargs: dict[str, Any]) -> str | None:
    import ray

    try:
        context = ray.init(address, **kwargs) if address else ray.init(**kwargs)
    except ValueError as exc:
        if address or not str(exc).startswith("When connecting to an existing cluster"):
            raise
        raise ValueError(
            "init_kwargs: RayTaskRunner joins the Ray that runs on this machine, and only a new "
            "one takes num_cpus, num_gpus or resources. Leave them out, or have a Ray of the "
            "flow's own with RayTaskRunner(address='local')."
        ) from exc
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
    return getattr(context, "dashboard_url", None)


def _leftover(temp_dir: str | None) -> bool:
    """Return whether `ray.init()` would wait for a Ray of this machine that runs no more.

    `ray start` notes its address and `ray stop` removes it. After a kill or a restart of the
    machine it is still there, and `ray.init()` (2.60) fails after two minutes, or at once if there
    are `num_cpus`.
    """
    from ray._private.utils import read_ray_address

    noted = read_ray_address(temp_dir)
    host, _, port = (noted or "").rpartition(":")
    if not host or not port.isdigit() or not _refuses(host.strip("[]"), int(port)):
        return False
    _log.info("No Ray runs any more at %s, where `ray start` has started one: starting one", noted)
    return True


def _refuses(host: str, port: int) -> bool:
    """Return whether surely nothing listens: the address is of this machine, and refuses us."""
    try:
        with socket.create_server((host, 0)):  # an address of another machine cannot be taken
            pass
        with socket.create_connection((host, port), timeout=_CONNECT_SECONDS):
            return False
    except ConnectionRefusedError:
        return True
    except OSError:
        return False


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


@contextmanager
def _collector_paused() -> Generator[None, None, None]:
    """Let no thread collect garbage that has references, for the reason of `await_shutdown`."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
