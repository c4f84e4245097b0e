"""`prefect-ray-worker sweep`: deletes clusters that no run needs, once."""

from typing import Annotated

from cyclopts import Parameter

from prefect_ray_worker.commands.terminal import errors, print_line


async def sweep(
    *,
    pool: Annotated[str, Parameter(name=["--pool", "-p"])],
    namespace: list[str] | None = None,
) -> int:
    """Delete the KubeRay clusters of a work pool that no run needs any more.

    A worker of the pool does the same about once a minute. This command does one round and exits.
    Run it from a CronJob, in case no worker comes back.

    Exit code: 0 if the round is complete; 1 if Prefect or Kubernetes could not be reached; 2 for a
    bad call.

    Example: `prefect-ray-worker sweep --pool research`

    Args:
        pool: Name of the work pool.
        namespace: Kubernetes namespace to sweep, in addition to that of the pool's own `kuberay`.
            Can be repeated.
    """
    from prefect_ray_worker.errors import InvalidConfiguration
    from prefect_ray_worker.runs.recovery.sweep import sweep_once

    deleted: list[str] = []

    def tell(line: str) -> None:
        deleted.append(line)
        print_line(line)

    try:
        await sweep_once(pool, namespace or [], tell)
    except InvalidConfiguration:
        raise
    except Exception as exc:  # noqa: BLE001 (of Prefect's client or of Kubernetes: said in words)
        errors().print(f"The sweep did not come to its end: {exc}")
        return 1
    if not deleted:
        print_line("There is nothing to delete.")
    return 0
