"""A job variable must not make the worker send its token, or a local file, to any host."""

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from prefect_ray_worker.clusters.choice import ClusterSources
from prefect_ray_worker.clusters.source import ClusterPlan
from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.config.origin import FOLDER_SETTING, ClusterOrigin
from prefect_ray_worker.errors import InvalidConfiguration
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.worker import RayWorker
from tests.unit.config import CLIENT

OURS = "http://ours:8265"
ATTACKER = "http://attacker:8265"
REFERENCE = {"$ref": {"block_document_id": str(uuid4())}}
TOKEN = "worker-token"


@pytest.fixture(autouse=True)
def token_of_the_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)


def template(**defaults: object) -> dict[str, Any]:
    """A pool's template with default values."""
    made = RayWorker.get_default_base_job_template()
    for name, value in defaults.items():
        made["variables"]["properties"][name]["default"] = value
    return made


async def connection_of(
    values: dict[str, Any], setting: str | None = None, **pool: object
) -> Connection:
    """How the worker would reach a run's cluster."""
    configuration = await RayJobConfiguration.from_template_and_values(
        template(**pool), values, client=CLIENT
    )
    cluster = await ClusterSources.of_worker(Path("/nowhere"), setting).find(configuration)
    assert cluster is not None
    return cluster.connection


async def token_for(
    values: dict[str, Any], setting: str | None = None, **pool: object
) -> str | None:
    """The token that a run's cluster would get."""
    return (await connection_of(values, setting, **pool)).token.read()


@pytest.mark.parametrize(
    "values",
    [
        {"address": ATTACKER},
        {"cluster": {"address": ATTACKER}},
        {"cluster.address": ATTACKER},
        {"address": ATTACKER, "cluster": {"address": OURS}},
        {"address": OURS.replace("http", "https")},
        {"address": f"{OURS}/prefix"},
    ],
)
@pytest.mark.parametrize("pool", [{}, {"address": OURS}, {"cluster": {"address": OURS}}])
async def test_the_worker_s_token_follows_no_job_variable(
    values: dict[str, Any], pool: dict[str, Any]
) -> None:
    connection = await connection_of(values, OURS, **pool)
    assert connection.address == OURS or connection.token.read() is None


@pytest.mark.parametrize(
    "own",
    [
        {"headers": {"Host": "attacker"}},
        {"cookies": {"route": "attacker"}},
        {"verify": False},
        {"ca_file": "{folder}/ca.pem"},
    ],
    ids=lambda own: next(iter(own)),
)
@pytest.mark.parametrize("pool", [{}, {"address": OURS}, {"cluster": {"address": OURS}}])
async def test_the_worker_s_token_goes_to_its_address_in_no_way_of_a_run_s_own(
    own: dict[str, Any], pool: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `Host` of a run's own leads to another site behind the same ingress."""
    monkeypatch.setenv(FOLDER_SETTING, str(tmp_path))
    own = {k: v.format(folder=tmp_path) if isinstance(v, str) else v for k, v in own.items()}
    assert await token_for({"cluster": {"address": OURS, **own}}, OURS, **pool) is None
    # The pool can be trusted with it.
    assert await token_for({}, OURS, cluster={"address": OURS, **own}) == TOKEN


@pytest.mark.parametrize(
    ("values", "setting", "pool"),
    [
        ({}, OURS, {}),
        ({}, None, {"address": OURS}),
        ({}, None, {"cluster": {"address": OURS}}),
        ({"address": OURS}, OURS, {}),
        ({"address": OURS}, None, {"address": OURS}),
        ({"cluster": {"address": f"{OURS}/"}}, OURS, {}),
        ({"name": "x"}, None, {"address": OURS}),
    ],
)
async def test_the_configured_address_gets_the_worker_s_token(
    values: dict[str, Any], setting: str | None, pool: dict[str, Any]
) -> None:
    assert await token_for(values, setting, **pool) == TOKEN


async def test_a_token_of_its_own_comes_first() -> None:
    assert await token_for({"cluster": {"address": OURS, "token": "own"}}, OURS) == "own"


@pytest.mark.parametrize("name", ["token_path", "ca_file"])
@pytest.mark.parametrize("dotted", [False, True])
async def test_a_job_variable_names_no_file_of_the_worker_s_machine(
    name: str, dotted: bool, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of-the-machine")
    values: dict[str, Any] = {"cluster": {"address": ATTACKER, name: str(secret)}}
    if dotted:
        values = {"cluster.address": ATTACKER, f"cluster.{name}": str(secret)}
    with pytest.raises(InvalidConfiguration) as caught:
        await token_for(values)
    assert f"cluster.{name}" in str(caught.value)
    assert FOLDER_SETTING in str(caught.value)


async def test_files_below_the_folder_of_the_setting_may_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "credentials"
    folder.mkdir()
    (folder / "token").write_text("of-the-folder")
    (tmp_path / "secret").write_text("of-the-machine")
    (folder / "link").symlink_to(tmp_path / "secret")
    monkeypatch.setenv(FOLDER_SETTING, str(folder))

    def cluster(path: Path) -> dict[str, Any]:
        return {"cluster": {"address": OURS, "token_path": str(path)}}

    assert await token_for(cluster(folder / "token")) == "of-the-folder"
    for outside in (folder / "link", folder / ".." / "secret", tmp_path / "credentials2"):
        with pytest.raises(InvalidConfiguration, match="token_path"):
            await token_for(cluster(outside))


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (REFERENCE, True),
        ("{{ prefect.blocks.ray-cluster.research }}", True),
        ("{{ prefect.blocks.json.mine }}", False),
        ("{{ prefect.blocks.ray-cluster.research.address }}", False),
        ("{{ prefect.variables.cluster }}", False),
        ({"address": OURS}, False),
        ({"$ref": "x"}, False),
    ],
)
def test_a_stored_block_is_told_from_a_value(value: object, stored: bool) -> None:
    assert ClusterOrigin.of(template(), {"cluster": value}).cluster_is_stored is stored
    of_pool = ClusterOrigin.of(template(cluster=value), {})
    assert of_pool.cluster_is_stored is stored
    assert of_pool.pool_names_cluster


def test_a_variable_of_the_pool_s_own_that_makes_the_address_counts_as_the_run_s() -> None:
    made = template()
    made["variables"]["properties"]["host"] = {"type": "string", "default": "ours"}
    made["job_configuration"]["address"] = "http://{{ host }}:8265"
    assert ClusterOrigin.of(made, {}).pool_names_address
    assert not ClusterOrigin.of(made, {"host": "attacker"}).pool_names_address


LOCAL = {"address": None, "cluster": None, "kuberay": None, "cluster_source": None}


@pytest.mark.parametrize(
    "pool",
    [
        {"address": OURS},
        {"cluster": {"address": OURS}},
        {"kuberay": {"image": "rayproject/ray:2.60.0"}},
        {"cluster_source": {"type": "shell"}},
    ],
    ids=lambda pool: next(iter(pool)),
)
async def test_no_run_takes_the_worker_s_machine_instead_of_the_pool_s_cluster(
    pool: dict[str, Any], tmp_path: Path
) -> None:
    """`address: null` ran the flow under the worker's account, with its environment."""

    async def plan(setting: str | None, **pool: object) -> ClusterPlan:
        configuration = await RayJobConfiguration.from_template_and_values(
            template(**pool), LOCAL, client=CLIENT
        )
        return await ClusterSources.of_worker(tmp_path, setting).plan(configuration, None)

    with pytest.raises(InvalidConfiguration, match="Set job variable 'address'"):
        await plan(None, **pool)
    # The setting is the worker's own word, and a pool that names no cluster means its machine.
    assert (await plan(OURS, **pool)).cluster is not None
    assert (await plan(None)).cluster is None
