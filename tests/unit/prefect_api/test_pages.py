"""All that a filter finds, whatever the length of a page and whatever moves meanwhile."""

from typing import Any

import pytest

from prefect_ray_worker.prefect_api.pages import pages


@pytest.mark.parametrize("length", [1, 3, 200])
async def test_all_records_come_once(length: int) -> None:
    records = [{"id": str(number)} for number in range(7)]

    async def ask(body: dict[str, Any]) -> list[dict[str, Any]]:
        assert body["filter"] == "kept"
        if body["offset"] == 3:
            records.insert(0, {"id": "new"})  # the others move on: one comes twice
        return records[body["offset"] : body["offset"] + length]

    found = [record["id"] async for page in pages(ask, {"filter": "kept"}) for record in page]
    assert sorted(found) == [str(number) for number in range(7)]


async def test_no_page_is_asked_for_once_all_that_there_can_be_has_come() -> None:
    asked: list[int] = []

    async def ask(body: dict[str, Any]) -> list[dict[str, Any]]:
        asked.append(body["offset"])
        return [{"id": str(n)} for n in range(3)][body["offset"] : body["offset"] + 2]

    found = [record async for page in pages(ask, {}, at_most=3) for record in page]
    assert len(found) == 3
    assert asked == [0, 2]
