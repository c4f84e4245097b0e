"""Calls from a real kernel: the tutorial's notebook, and "interrupt kernel"."""

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_URL

from tests.integration.caller_kit import Laptop, online, set_address
from tests.integration.harness import Pool

pytestmark = [pytest.mark.ray, pytest.mark.extra]

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "examples" / "notebook"
TUTORIAL = ROOT / "docs" / "tutorial" / "from-a-notebook.md"

WAITS = """
import time
from prefect import flow
from prefect_ray_worker import ray_job
@ray_job(work_pool="ray-pool")
@flow(log_prints=True)
def waits():
    print("waiting")
    time.sleep(120)
"""


@pytest.fixture
async def pool(pool: Pool) -> Pool:
    await set_address(pool)
    return pool


@asynccontextmanager
async def kernel(pool: Pool, folder: Path, cells: list[str]) -> AsyncIterator[NotebookClient]:
    """Run a kernel with a Prefect home of its own in a folder."""
    shutil.copytree(NOTEBOOK, folder)
    sources = [cell.replace('"ray-pool"', f'"{pool.name}"') for cell in cells]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in sources])
    env = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "RAY_"))},
        "PREFECT_API_URL": str(PREFECT_API_URL.value()),
        "PREFECT_HOME": str(folder / "home"),
    }
    client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}})
    async with client.async_setup_kernel(env=env):
        yield client


def outputs(client: NotebookClient) -> list[str]:
    return [
        "".join(o.get("text", "") or o.get("data", {}).get("text/plain", "") for o in cell.outputs)
        for cell in client.nb.cells
    ]


def test_tutorial_shows_the_notebook() -> None:
    notebook = nbformat.read(NOTEBOOK / "tour.ipynb", as_version=4)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    shown = re.findall(r"```python\n(.*?)\n```", TUTORIAL.read_text(), re.DOTALL)
    assert shown == cells


async def test_notebook_of_the_tutorial_runs(pool: Pool, tmp_path: Path) -> None:
    """Prefect's own bundles bring no local module from a notebook."""
    notebook = nbformat.read(NOTEBOOK / "tour.ipynb", as_version=4)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    async with online(pool), kernel(pool, tmp_path / "notebook", cells) as client:
        for index, cell in enumerate(client.nb.cells):
            await client.async_execute_cell(cell, index)
        said = outputs(client)
    assert "looking at 1000 numbers" in said[1]
    assert said[1].endswith("332833.5")
    assert said[2].endswith("{'small': 2.5, 'large': 25000.0}")
    assert "not possible: there is no mean of nothing" in said[3]
    assert said[4] == "[28.5, 123.5]"


async def test_interrupting_the_kernel_cancels_the_run(pool: Pool, tmp_path: Path) -> None:
    laptop = Laptop(pool, tmp_path)
    async with online(pool), kernel(pool, tmp_path / "notebook", [WAITS, "waits()"]) as client:
        await client.async_execute_cell(client.nb.cells[0], 0)
        cell = asyncio.create_task(client.async_execute_cell(client.nb.cells[1], 1))
        run = await laptop.run()
        await pool.wait_for_log(run.id, "waiting", seconds=60)
        await client.km.interrupt_kernel()
        with pytest.raises(CellExecutionError, match="KeyboardInterrupt"):
            await cell
    assert (await pool.read(run.id)).state_type == StateType.CANCELLED
