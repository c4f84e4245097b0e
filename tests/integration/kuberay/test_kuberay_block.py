"""A kubeconfig from a block of Prefect's own type, of the pool or of a deployment."""

import copy
import json
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import (
    BlockDocumentCreate,
    BlockSchemaCreate,
    BlockTypeCreate,
    WorkPoolUpdate,
)
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound

from prefect_ray_worker.config.kuberay import CONFIG_BLOCK_SLUG
from tests.integration.harness import default_template
from tests.integration.kuberay.stage import KUBERAY, KubeRayStage


async def saved_block(client: PrefectClient, kubeconfig: dict[str, Any]) -> UUID:
    """Save a block as the UI does, without any package that defines its type.

    Every server registers the type when it starts; those of the tests leave that out.
    """
    # Not above: it brings all of the server, a second in each process that collects tests.
    from prefect.server.models.block_registration import COLLECTIONS_BLOCKS_DATA_PATH

    known = json.loads(Path(COLLECTIONS_BLOCKS_DATA_PATH).read_text())["collections"]
    data = known["prefect-kubernetes"]["block_types"][CONFIG_BLOCK_SLUG]
    try:
        kind = await client.read_block_type_by_slug(CONFIG_BLOCK_SLUG)
    except ObjectNotFound:
        kind = await client.create_block_type(
            BlockTypeCreate(name=data["name"], slug=CONFIG_BLOCK_SLUG)
        )
    schema = await client.create_block_schema(
        BlockSchemaCreate(fields=data["block_schema"]["fields"], block_type_id=kind.id)
    )
    document = BlockDocumentCreate(
        name=f"kind-{uuid4().hex[:6]}",
        block_type_id=kind.id,
        block_schema_id=schema.id,
        data={"config": kubeconfig, "context_name": "fake"},
    )
    return (await client.create_block_document(document)).id


@pytest.mark.parametrize(
    "chosen_in",
    [pytest.param("the pool's form", marks=pytest.mark.extra), "one run's job variables"],
)
async def test_a_run_gets_its_cluster_with_the_kubeconfig_of_a_block(
    stage: KubeRayStage, monkeypatch: pytest.MonkeyPatch, chosen_in: str
) -> None:
    """The server refused each run: below a variable it looks no block up, and misses its fields."""
    monkeypatch.delenv("KUBECONFIG")
    pool = stage.pool
    block_id = await saved_block(pool.client, stage.kubernetes.kubeconfig())
    reference = {"$ref": {"block_document_id": str(block_id)}}
    template = copy.deepcopy(default_template())
    # What makes the form offer the blocks of this type.
    picker = template["variables"]["definitions"]["KubernetesConfig"]
    assert picker["block_type_slug"] == CONFIG_BLOCK_SLUG
    kuberay: dict[str, Any] = {**KUBERAY}
    overrides: dict[str, Any] = {}
    if chosen_in == "the pool's form":
        kuberay["kubeconfig"] = reference
    else:
        overrides = {"kuberay": {"kubeconfig": reference}}
    template["variables"]["properties"]["kuberay"]["default"] = kuberay
    await pool.client.update_work_pool(pool.name, WorkPoolUpdate(base_job_template=template))
    async with pool.working():
        run_id = await pool.start("adds", job_variables=overrides)
        _, job = await stage.job_of(run_id)
        await stage.play(run_id, StateType.RUNNING)
        await stage.completes(run_id, job)
        await stage.ends(run_id, StateType.COMPLETED)
        await stage.is_gone(run_id)
