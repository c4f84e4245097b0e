"""`prefect-ray-worker sweep`: deletes clusters that no run needs, once."""

from typing import Annotated

from cyclopts import Parameter

from prefect_ray_worker.commands.terminal import BAD_CALL, errors, print_line
from prefect_ray_worker.shared.plain_text import plain


async def sweep(
    *,
    pool: Annotated[str, Parameter(name=["--pool", "-p"])],
    namespace: list[str] | None = None,
) -> int:
    """Delete the KubeRay clusters of a work pool that no run needs any more.

    A worker of the pool does the same about once a minute. This command does one round and exits.
    Run it from a CronJob, in case no worker comes back.

    Exit code: 0 if the round is complete; 1 if a namespace could not be swept, after all others
    were; 2 for a bad call, or if Prefect cannot be reached.

    Example: `prefect-ray-worker sweep --pool research`

    Args:
        pool: Name of the work pool.
        namespace: Kubernetes namespace to sweep, in addition to that of the pool's own `kuberay`.
            Can be repeated.
    """
    from prefect_ray_worker.doctor.work_pool import open_prefect, read_ray_pool
    from prefect_ray_worker.errors import InvalidConfiguration
    from prefect_ray_worker.runs.recovery.sweep import sweep_once

    deleted: list[str] = []

    def tell(line: str) -> None:
        deleted.append(line)
        print_line(line)

    async with open_prefect(f"work pool {pool!r}") as client:
        found = await read_ray_pool(pool, client)
        troubles = await sweep_once(client, found, namespace or [], tell)
    for trouble in troubles:
        errors().print(plain(f"The sweep did not come to its end: {trouble}"))
    if troubles:
        return BAD_CALL if all(isinstance(t, InvalidConfiguration) for t in troubles) else 1
    if not deleted:
        print_line("There is nothing to delete.")
    return 0
