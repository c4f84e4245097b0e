"""Placeholders and references that Prefect cannot fill are refused by name, without the value."""

from types import SimpleNamespace
from typing import Any

import pytest

from prefect_ray_worker.errors import InvalidConfiguration
from tests.unit.config import CLIENT
from tests.unit.config.test_configuration import SECRET, configure


@pytest.mark.parametrize(
    ("in_the_text", "block"),
    [
        ("prefect.blocks.secret", {}),
        ("prefect.blocks.secret.db.gone", {"value": "x"}),
        ("prefect.blocks.json.db.value", {"value": {}}),
    ],
)
async def test_placeholder_that_prefect_cannot_fill_is_named(
    in_the_text: str, block: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was a bare ValueError with the whole text; `sweep` ended with its traceback."""

    async def found(**_: str) -> Any:
        return SimpleNamespace(data=block)

    monkeypatch.setattr(CLIENT, "read_block_document_by_name", found)
    env = {"DB": f"pg://me:{SECRET}@{{{{ {in_the_text} }}}}"}
    with pytest.raises(InvalidConfiguration, match=r"'env\.DB' has the placeholder") as refused:
        await configure(env=env)
    assert f"'{in_the_text}'" in str(refused.value)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"cluster": {"$ref": "an id"}}, "'cluster'"),
        ({"runtime_env": {"env_vars": {"$ref": ["a"]}}}, "'runtime_env.env_vars'"),
    ],
)
async def test_block_reference_that_is_no_mapping_is_named(
    values: dict[str, Any], place: str
) -> None:
    with pytest.raises(InvalidConfiguration, match=f"{place} .*Write .*block_document_id"):
        await configure(**values)
