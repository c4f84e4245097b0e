"""`prefect-ray-worker`: the commands of this package beside Prefect's own."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

_DOCTOR = """\
Check that a Ray cluster can run a work pool's flows: reach it, upload the driver, run a small job
and check from there Python, Ray, Prefect, its API, other nodes and the clocks. It prints one line
for each check and leaves nothing behind. Run it on the worker's machine, with the worker's
environment."""

_SWEEP = """\
Delete the KubeRay clusters that were made for runs of a work pool and that no run needs any more,
as a worker of the pool does about once a minute. It does one round and exits. Run it from a CronJob
for the case that no worker comes back."""

_INTERRUPTED = 130

_EPILOG = """\
exit code: 0 if no check failed (warnings do not count), 1 if one did, 2 for a bad call.
example: prefect-ray-worker doctor http://ray-head:8265"""

_SWEEP_EPILOG = """\
exit code: 0 if all was swept, 1 if Prefect or Kubernetes could not be asked, 2 for a bad call.
example: prefect-ray-worker sweep --pool research"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        arguments: Those of the command line; by default this process's own.
    """
    parsed = parser().parse_args(arguments)
    return _run(_examine if parsed.command == "doctor" else _sweep_once, parsed)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; the reference page is generated from it."""
    from prefect_ray_worker import __version__

    top = argparse.ArgumentParser(
        prog="prefect-ray-worker",
        description="Commands of prefect-ray-worker. To start a worker, call "
        "`prefect worker start --pool <pool> --type ray`.",
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    doctor = commands.add_parser(
        "doctor",
        help="check that a Ray cluster can run a work pool's flows",
        description=_DOCTOR,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    doctor.add_argument(
        "target",
        nargs="?",
        metavar="ADDRESS|POOL",
        help="address of a Ray dashboard, such as http://ray-head:8265, or the name of a work "
        "pool; by default the cluster of PREFECT_INTEGRATIONS_RAY_WORKER_ADDRESS, or the Ray that "
        "a worker started on this machine",
    )
    doctor.add_argument(
        "-jv",
        "--job-variable",
        action="append",
        default=[],
        type=_job_variable,
        metavar="NAME=VALUE",
        help="override a job variable of the pool, as for `prefect deployment run`; the value is "
        "JSON, or else text; can be repeated",
    )
    doctor.add_argument(
        "--wait",
        type=_seconds,
        default=60.0,
        metavar="SECONDS",
        help="the longest time for the probe job, its runtime environment included (default: "
        "%(default)g)",
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON document at the end")
    _add_sweep(commands)
    return top


def _add_sweep(commands: Any) -> None:
    sweep = commands.add_parser(
        "sweep",
        help="delete the clusters of a work pool that no run needs any more",
        description=_SWEEP,
        epilog=_SWEEP_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sweep.add_argument(
        "--pool",
        required=True,
        metavar="POOL",
        help="name of the work pool whose runs are looked at",
    )
    sweep.add_argument(
        "--namespace",
        action="append",
        default=[],
        metavar="NAMESPACE",
        help="Kubernetes namespace to sweep besides that of the pool's own kuberay; can be "
        "repeated",
    )


def _job_variable(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def _run(
    command: Callable[[argparse.Namespace], Awaitable[int]], parsed: argparse.Namespace
) -> int:
    # Imported late: `--help` and `--version` must not wait for Prefect.
    import anyio

    # CI and pods stop us with SIGTERM: clean up as after Ctrl-C. A shell that starts us in the
    # background ignores SIGINT, so both handlers are set.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return anyio.run(partial(command, parsed))
    except KeyboardInterrupt:
        return _INTERRUPTED


def _interrupt(*_: object) -> None:
    signal.raise_signal(signal.SIGINT)


async def _sweep_once(parsed: argparse.Namespace) -> int:
    from prefect_ray_worker.errors import InvalidConfiguration
    from prefect_ray_worker.runs.recovery.sweep import sweep_once

    deleted: list[str] = []

    def tell(line: str) -> None:
        deleted.append(line)
        print(line, flush=True)

    try:
        await sweep_once(parsed.pool, parsed.namespace, tell)
    except InvalidConfiguration as exc:
        print(exc, file=sys.stderr)
        return 2
    except Exception as exc:  # noqa: BLE001 (of Prefect's client or of Kubernetes: said in words)
        print(f"The sweep did not come to its end: {exc}", file=sys.stderr)
        return 1
    if not deleted:
        print("There is nothing to delete.")
    return 0


async def _examine(parsed: argparse.Namespace) -> int:
    from prefect_ray_worker.doctor import report
    from prefect_ray_worker.doctor.examine import examine
    from prefect_ray_worker.doctor.report import Check

    colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    checks: list[Check] = []
    examination = examine(parsed.target, dict(parsed.job_variable), wait=parsed.wait)
    async with aclosing(examination):
        async for check in examination:
            checks.append(check)
            if not parsed.json:
                print(report.line_of(check, colours=colours), flush=True)
    print(report.json_of(checks) if parsed.json else report.summary_of(checks))
    return 0 if report.is_well(checks) else 1
