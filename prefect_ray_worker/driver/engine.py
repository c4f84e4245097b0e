"""The second process of a Ray Job: prepares the flow and runs it, in one interpreter."""

import atexit
import gc
import importlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from prefect_ray_worker.driver.last_words import explained, print_last
from prefect_ray_worker.driver.signals import Termination
from prefect_ray_worker.driver.supervise.processes import have_orphans_adopted, hold_lifeline
from prefect_ray_worker.shared.category import Category
from prefect_ray_worker.shared.diagnosis import diagnosed
from prefect_ray_worker.shared.environment import PREFECT_VERSION, WARM_SECONDS, ZYGOTE
from prefect_ray_worker.shared.exits import DriverExit
from prefect_ray_worker.shared.log_marks import end_of_output, mark, seal_of

_IMPORTED_LATER = (
    "anyio._backends._asyncio",
    "encodings.idna",
    "packaging.requirements",
    "prefect.deployments.steps.core",
    "prefect.deployments.steps.pull",
    "prefect.runner._workspace_resolver",
    "pydantic.v1",
)
_COMMAND_LINE = "httpx._main"
_STOPS = {signal.SIGTERM, signal.SIGINT}
# Enough for an API that asks for a minute's pause. The run holds its place on the cluster so long.
_SEND_SECONDS = 120.0


def main(arguments: list[str]) -> int:
    """Run one attempt at a flow run.

    Args:
        arguments: The flow run's id and the attempt's.
    """
    zygote = os.environ.pop(ZYGOTE, "")
    # Kept until they can be handled: a zygote must not inherit the handlers.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    _introduce(*arguments)
    # All of a hundred thousand objects stay: looking for garbage among them takes an eighth of the
    # time of the imports (Prefect 3.8.8, Python 3.11).
    gc.disable()
    try:
        run = _imported()
    except ImportError as exc:
        if (exc.name or "").partition(".")[0] != "prefect":
            raise
        return _without_prefect(exc, arguments[1])
    except ValueError as exc:  # pydantic's ValidationError is one
        return _with_bad_setting(exc, arguments[1])
    gc.freeze()
    forked = _stay_behind(zygote)
    if forked is not None:
        arguments = list(forked)
        _introduce(*arguments)
    gc.enable()
    return run(*arguments)


def _imported() -> Callable[[str, str], int]:
    """Import all that the driver needs; return what runs an attempt."""
    with _httpx_without_its_command():
        # First, because without it everything that it brings along is missing too.
        import prefect  # noqa: F401  # pyright: ignore[reportUnusedImport]

        from prefect_ray_worker.driver.flow_process import run_attempt
        from prefect_ray_worker.prefect_api import marking
        from prefect_ray_worker.prefect_api.compat.clients import (
            serve_client_metrics_if_possible,
            share_tls_context,
        )

    share_tls_context()

    def run(flow_run_id: str, attempt: str) -> int:
        hold_lifeline()
        termination = Termination()
        termination.install()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
        marking.install(seal_of(attempt))
        serve_client_metrics_if_possible()
        code = run_attempt(flow_run_id, attempt, termination=termination)
        return leave(code, seal_of(attempt), None if termination.delivered else termination)

    return run


def _stay_behind(zygote: str) -> Sequence[str] | None:
    """Leave a zygote behind; return in an engine that it has forked, with the arguments of that."""
    if not zygote:
        return None
    from prefect_ray_worker.driver.supervise.zygote import stay_behind

    fingerprint, _, raylet = zygote.partition(" ")
    try:
        idle_seconds = float(os.environ[WARM_SECONDS])
        forked = stay_behind(fingerprint, int(raylet), idle_seconds, prepare=_import_more)
    except OSError:
        forked = None  # no process can be made now
    if forked is None:
        have_orphans_adopted()
    return forked


def _import_more() -> None:
    """Import what Prefect imports on the way to the first line of most flows (3.8.8)."""
    for name in _IMPORTED_LATER:
        with suppress(ImportError):
            importlib.import_module(name)
    # Prefect leaves it to the first use of a class to build its validators: an eighth of a second.
    from pydantic import BaseModel

    classes = BaseModel.__subclasses__()
    while classes:
        model = classes.pop()
        classes += model.__subclasses__()
        with suppress(Exception):
            model.model_rebuild()


@contextmanager
def _httpx_without_its_command() -> Generator[None]:
    """Import httpx without its command line, for which it would import click and pygments.

    That takes a tenth of the time in which Prefect is imported. httpx has a stand-in for it
    (`httpx/__init__.py`, 0.28), and `import httpx._main` works later.
    """
    sys.modules[_COMMAND_LINE] = None  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        sys.modules.pop(_COMMAND_LINE, None)


def _introduce(flow_run_id: str, attempt: str) -> None:
    """Print the first sealed line: from here on, the worker trusts no mark without the seal."""
    text = f"Driver of flow run {flow_run_id}, attempt {attempt}, Python {sys.version.split()[0]}."
    seal, now = seal_of(attempt), time.time()
    sys.stderr.write(f"{mark(text, seal=seal, is_sent=True, level=logging.DEBUG, when=now)}\n")
    sys.stderr.flush()


def _without_prefect(exc: ImportError, attempt: str) -> int:
    wanted = os.environ.get(PREFECT_VERSION, "")
    requirement = f"prefect=={wanted}" if wanted else "prefect"
    category, missing = Category.PREFECT_MISSING, "has no Prefect"
    if "prefect" in sys.modules:
        found = getattr(sys.modules["prefect"], "__version__", "of an unknown version")
        category = Category.PREFECT_VERSION_MISMATCH
        missing = f"has Prefect {found}, which lacks what this worker needs ({exc})"
    version = ".".join(map(str, sys.version_info[:3]))
    cause = f"The Python {version} of the Ray cluster ({sys.executable}) {missing}."
    advice = f'Add "{requirement}" to runtime_env.pip, or install it in the image of the Ray nodes.'
    return explained(DriverExit.NO_PREFECT, diagnosed(category, cause, advice=advice), attempt)


def _with_bad_setting(exc: ValueError, attempt: str) -> int:
    """Explain that a value among Prefect's settings cannot be used: Prefect reads all at import."""
    mistakes: list[dict[str, Any]] = getattr(exc, "errors", list)()
    if not mistakes:
        raise exc
    # The rest are defaults that could not be worked out because of the others.
    mistakes = [m for m in mistakes if m["type"] != "default_factory_not_called"]
    from prefect_ray_worker.prefect_api.compat.settings import setting_of_variable

    ends = tuple({f"_{mistake['loc'][0]}".upper() for mistake in mistakes if mistake["loc"]})
    named = [
        name
        for name in sorted(os.environ)
        if name.startswith("PREFECT_") and setting_of_variable(name).endswith(ends)
    ]
    wrong = "; ".join(dict.fromkeys(str(mistake["msg"]) for mistake in mistakes))
    cause = f"{' or '.join(named) or 'A setting'} has a value that Prefect cannot use ({wrong})."
    why = diagnosed(Category.PREFECT_SETTING_INVALID, cause)
    return explained(DriverExit.BAD_SETTING, why, attempt)


def leave(code: int, seal: str, waiting: Termination | None) -> NoReturn:
    """Exit after all exit functions have run, but without finalizing the interpreter.

    With all that Prefect imports, that takes a third of a second, for which the run would hold its
    slot on the cluster.

    Args:
        code: The exit code.
        seal: The attempt's.
        waiting: Wait for threads that are no daemons, as Python does, and until Prefect has all
            logs and events, unless a SIGTERM is requested here. None after an interrupted flow,
            whose threads could go on for ever: then logs get five seconds.
    """
    waited_for = [t for t in threading.enumerate() if not t.daemon] if waiting else []
    if waited_for in ([], [threading.main_thread()]):
        if waiting:
            _await_sent(waiting.requested)
        # That of `logging` waits for the logs of an interrupted flow.
        atexit._run_exitfuncs()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        print_last(end_of_output(seal, time.time()))
        os._exit(code)
    sys.exit(code)


def _await_sent(stopped: threading.Event) -> None:
    # The worker does not forward a line that is marked as sent.
    from prefect_ray_worker.prefect_api.compat.services import send_all_that_waits

    is_sent = False
    with suppress(Exception):  # of a service that has failed; the run's exit code counts more
        is_sent = send_all_that_waits(_SEND_SECONDS, stopped)
    if not is_sent:
        print_last("The last logs and events could not be sent to the Prefect API.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
