"""`prefect-ray-worker doctor`: examines a Ray cluster."""

import json as json_module
from contextlib import aclosing, nullcontext
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.text import Text

from prefect_ray_worker.commands.terminal import console, print_line, print_text

_STYLES = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "bright_black"}


def _are_assignments(_: object, values: list[str] | None) -> None:
    for value in values or []:
        name, equals, _ = value.partition("=")
        if not name or not equals:
            raise ValueError(f"{value!r} is not NAME=VALUE.")


async def doctor(
    target: Annotated[str | None, Parameter(name="ADDRESS|POOL")] = None,
    /,
    *,
    job_variable: Annotated[
        list[str] | None, Parameter(name="--job-variable", validator=_are_assignments)
    ] = None,
    wait: Annotated[float, Parameter(validator=Number(gt=0, lt=float("inf")))] = 60.0,
    json: bool = False,
) -> int:
    """Check that a Ray cluster can run a work pool's flows.

    It connects to the cluster, uploads the driver and runs a small job. From inside the job it
    checks Python, Ray, Prefect, its API, other nodes and the clocks. It prints one line for each
    check, and removes its job. Run it on the worker's machine, with the worker's environment.

    Exit code: 0 if no check failed (warnings do not count); 1 if one did; 2 for a bad call.

    Example: `prefect-ray-worker doctor http://ray-head:8265`

    Args:
        target: Address of a Ray dashboard, such as http://ray-head:8265, or the name of a work
            pool; by default the cluster of PREFECT_INTEGRATIONS_RAY_WORKER_ADDRESS, or the Ray that
            a worker started on this machine.
        job_variable: Override a job variable of the pool with NAME=VALUE, like `-jv` of
            `prefect deployment run`. The value is JSON, or else text. Can be repeated.
        wait: Limit in seconds for the start of the probe job, including its runtime environment,
            and again for its end.
        json: Print one JSON document at the end.
    """
    from prefect_ray_worker.doctor import report
    from prefect_ray_worker.doctor.examine import examine
    from prefect_ray_worker.doctor.report import Check

    variables = dict(_assignment(text) for text in job_variable or [])
    checks: list[Check] = []
    shows_progress = console().is_terminal and not json
    spinner = console().status("Examining …") if shows_progress else nullcontext()
    with spinner:
        async with aclosing(examine(target, variables, wait=wait)) as examination:
            async for check in examination:
                checks.append(check)
                if not json:
                    line = Text(report.line_of(check))
                    line.stylize(_STYLES[check.grade.label], 0, len(check.grade.label))
                    print_text(console(), line)
    print_line(report.json_of(checks) if json else report.summary_of(checks))
    return 0 if report.is_well(checks) else 1


def _assignment(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json_module.loads(value)
    except ValueError:
        return name, value
