"""`check_plugin`: checks that a source of clusters keeps its promises; for its author's tests.

It creates one cluster, and deletes it.
"""

from uuid import uuid4

import anyio
from pydantic import BaseModel

from prefect_ray_worker.clusters.answering import silence_of
from prefect_ray_worker.clusters.plugin import AskedCluster, ClusterPlugin
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.shared.ids import own_cluster_name, submission_id

_POLL_SECONDS = 0.5
_Plugin = ClusterPlugin[BaseModel]


async def check_plugin(
    plugin: ClusterPlugin[BaseModel], fields: BaseModel, *, start_seconds: float = 300.0
) -> None:
    """Check a plugin's promises with a real cluster.

    Args:
        plugin: The plugin.
        fields: Its fields, for a small cluster.
        start_seconds: How long the cluster may take until it accepts jobs.

    Raises:
        AssertionError: A promise is broken; the message says which.
    """
    pool_id = str(uuid4())
    first, second = _asked(fields, pool_id), _asked(fields, pool_id)
    try:
        await _check_before(plugin, first)
        connection = await _check_making(plugin, first)
        await _wait_until_it_takes_jobs(connection, start_seconds)
        await _check_listing(plugin, first)
        _expect(await plugin.look(second) is None, "look must tell clusters apart by their name")
        _expect(await plugin.why_gone(first) is None, "why_gone must not say so of one that lives")
    finally:
        for asked in (first, second):
            await plugin.release(asked)
    await plugin.release(first)  # again: it may be gone
    _expect(await plugin.look(first) is None, "look must return None after release")
    names = [made.name for made in await plugin.made(fields, pool_id)]
    _expect(first.name not in names, "made must not list a cluster after release")
    await plugin.close()


async def _check_before(plugin: _Plugin, asked: AskedCluster[BaseModel]) -> None:
    _expect(await plugin.look(asked) is None, "look must return None before acquire")
    _expect(await plugin.look(asked) is None, "look must not make a cluster")
    await plugin.release(asked)  # of one that was never made: it must not raise


async def _check_making(plugin: _Plugin, asked: AskedCluster[BaseModel]) -> Connection:
    made: list[Connection] = []

    async def make() -> None:
        made.append(await plugin.acquire(asked, lambda _: None))

    async with anyio.create_task_group() as tasks:
        for _ in range(2):  # as two workers do
            tasks.start_soon(make)
    await make()
    addresses = {connection.address for connection in made}
    _expect(len(addresses) == 1, "acquire must not make a second cluster of one name")
    found = await plugin.look(asked)
    _expect(
        found is not None and found.address in addresses,
        "look must return the way to the cluster that acquire has made",
    )
    return made[0]


async def _check_listing(plugin: _Plugin, asked: AskedCluster[BaseModel]) -> None:
    if type(plugin).made is ClusterPlugin.made:
        return  # clusters of dead workers are deleted by nobody, as the page says
    listed = {made.name: made for made in await plugin.made(asked.fields, asked.pool_id)}
    _expect(asked.name in listed, "made must list a cluster that exists")
    has_zone = listed[asked.name].created_at.tzinfo is not None
    _expect(has_zone, "created_at must have a time zone")
    of_others = [made.name for made in await plugin.made(asked.fields, str(uuid4()))]
    _expect(asked.name not in of_others, "made must list the clusters of one pool only")


async def _wait_until_it_takes_jobs(connection: Connection, seconds: float) -> None:
    silence = "it was not asked"
    with anyio.move_on_after(seconds):
        while silence := await silence_of(connection):  # noqa: ASYNC110 (nothing tells)
            await anyio.sleep(_POLL_SECONDS)
    _expect(not silence, f"the cluster must take jobs within {seconds:g} s: {silence}")


def _asked(fields: BaseModel, pool_id: str) -> AskedCluster[BaseModel]:
    run_id = uuid4()
    return AskedCluster(own_cluster_name(submission_id(run_id, uuid4())), fields, run_id, pool_id)


def _expect(kept: bool, promise: str) -> None:
    if not kept:
        raise AssertionError(f"A source of clusters promises: {promise}.")
