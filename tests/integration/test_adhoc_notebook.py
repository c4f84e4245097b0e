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

from prefect_ray_worker.shared.plain_text import plain
from tests.integration.caller_kit import Laptop, online, set_address
from tests.integration.harness import Pool

pytestmark = [pytest.mark.ray, pytest.mark.extra]

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "examples" / "notebook"
SHOWN = "ray-pool"
OF_THE_FLOW = re.compile(r"(looking at|Finished in state).*")

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
async def kernel(
    pool: Pool, folder: Path, notebook: nbformat.NotebookNode
) -> AsyncIterator[NotebookClient]:
    """Run a kernel with a Prefect home of its own in a folder."""
    shutil.copytree(NOTEBOOK, folder)
    for cell in notebook.cells:
        cell.source = cell.source.replace(f'"{SHOWN}"', f'"{pool.name}"')
    env = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "RAY_"))},
        "PREFECT_API_URL": str(PREFECT_API_URL.value()),
        "PREFECT_HOME": str(folder / "home"),
    }
    client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}})
    async with client.async_setup_kernel(env=env):
        yield client


def shown(notebook: nbformat.NotebookNode) -> list[str]:
    """Return what the cells print and return; of the log only what is the same in every run."""
    return [_shown(cell) for cell in notebook.cells if cell.cell_type == "code"]


def _shown(cell: nbformat.NotebookNode) -> str:
    lines: list[str] = []
    for output in cell.outputs:
        text = plain(_text_of(output))
        if _is_log(output):
            lines += [found[0] for line in text.splitlines() if (found := OF_THE_FLOW.search(line))]
        else:
            lines += text.splitlines()
    return "\n".join(lines)


def _text_of(output: nbformat.NotebookNode) -> str:
    return output.get("text", "") or output.get("data", {}).get("text/plain", "")


def _is_log(output: nbformat.NotebookNode) -> bool:
    # Prefect's console shows its lines as HTML where it finds a notebook (rich, 3.8.8).
    return output.output_type == "display_data" or output.get("name") == "stderr"


def readable(text: str) -> str:
    """Return what a kernel has printed as a reader wants to see it."""
    for pattern, shown in (
        (r"http://127\.0\.0\.1:\d+", "http://ray-head:8265"),
        (r'"/[^"]*/site-packages/', '"…/site-packages/'),
        (r'"/tmp/prefect-flow-run-[^/]+/[^/]+/', '"…/'),
        (r'"/tmp/ipykernel_\d+/', '"…/'),
    ):
        text = re.sub(pattern, shown, text)
    return "\n".join(plain(line) for line in text.split("\n"))


def store(notebook: nbformat.NotebookNode, pool_name: str) -> None:
    """Write the outputs into the notebook of the tutorial."""
    for cell in notebook.cells:
        cell.source = cell.source.replace(pool_name, SHOWN)
        cell.metadata = {}
        merged: list[nbformat.NotebookNode] = []
        for output in getattr(cell, "outputs", []):
            text = readable(_text_of(output).replace(pool_name, SHOWN))
            if _is_log(output):
                output = nbformat.v4.new_output("stream", name="stderr", text=text.rstrip() + "\n")
            if merged and merged[-1].get("name", "") == output.get("name"):
                merged[-1].text += output.text
            else:
                merged.append(output)
        if cell.cell_type == "code":
            cell.outputs = merged
    text = nbformat.writes(notebook)
    (NOTEBOOK / "tour.ipynb").write_text(f"{text.rstrip()}\n")


async def test_notebook_of_the_tutorial_runs_and_shows_what_it_does(
    pool: Pool, tmp_path: Path
) -> None:
    """Prefect's own bundles bring no local module from a notebook.

    With STORE_NOTEBOOK=1 the outputs are written into the notebook; `make docs` then shows them.
    """
    notebook = nbformat.read(NOTEBOOK / "tour.ipynb", as_version=4)
    stored = shown(notebook)
    async with online(pool), kernel(pool, tmp_path / "notebook", notebook) as client:
        for index, cell in enumerate(client.nb.cells):
            await client.async_execute_cell(cell, index)
    said = shown(client.nb)
    if os.environ.get("STORE_NOTEBOOK"):
        store(client.nb, pool.name)
        stored = said
    assert said == stored
    assert "looking at 1000 numbers" in said[1]
    assert said[1].endswith("332833.5")
    assert said[2].endswith("{'small': 2.5, 'large': 25000.0}")
    assert "not possible: there is no mean of nothing" in said[3]
    assert said[4] == "[28.5, 123.5]"


async def test_interrupting_the_kernel_cancels_the_run(pool: Pool, tmp_path: Path) -> None:
    laptop = Laptop(pool, tmp_path)
    cells = [nbformat.v4.new_code_cell(source) for source in (WAITS, "waits()")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    async with online(pool), kernel(pool, tmp_path / "notebook", notebook) as client:
        await client.async_execute_cell(client.nb.cells[0], 0)
        cell = asyncio.create_task(client.async_execute_cell(client.nb.cells[1], 1))
        run = await laptop.run()
        await pool.wait_for_log(run.id, "waiting", seconds=60)
        await client.km.interrupt_kernel()
        with pytest.raises(CellExecutionError, match="KeyboardInterrupt"):
            await cell
    assert (await pool.read(run.id)).state_type == StateType.CANCELLED
