"""The page of benchmarks shows what was measured, and says where and how."""

import json
import re
import sys
from pathlib import Path

import pytest

from tests.benchmarks import record as module
from tests.benchmarks.page import PAGE, README_CHART, chart_of_readme, section, written
from tests.benchmarks.record import FOLDER, Chart, record

ROOT = Path(__file__).parents[2]
DRIVER = "docs/explanation/driver.md"
TASKS = "docs/how-to/migrate-from-prefect-ray.md"
MEASURED_FOR = {DRIVER: "driver.json", TASKS: "task_runner.json"}


def test_page_is_up_to_date() -> None:
    """`make docs` writes it: `python -m tests.benchmarks.page`."""
    assert (ROOT / PAGE).read_text() == written()
    assert (ROOT / README_CHART).read_text() == chart_of_readme()


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_each_figure_has_its_machine_date_and_command(path: Path) -> None:
    measured = json.loads(path.read_text())
    assert all(measured[key] for key in ("command", "date", "machine", "charts"))
    assert f"`{measured['command']}`" in (ROOT / PAGE).read_text()
    assert "/" not in measured["command"], "a path of the machine where it was measured"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_make_benchmark_measures_each_figure_again(path: Path) -> None:
    """Or the page would show ours among those of the reader's machine."""
    target = (ROOT / "Makefile").read_text().partition("\nbenchmark:")[2].partition("\n\n")[0]
    name = re.escape(json.loads(path.read_text())["benchmark"])
    assert re.search(rf"-m {name}( |$)", target, re.MULTILINE)


def _cells(page: str, row: str) -> list[str]:
    """Return the cells of a table's row, without the one that names it."""
    (line,) = (one for one in (ROOT / page).read_text().splitlines() if one.startswith(f"| {row}"))
    return line.strip(" |").split(" | ")[1:]


@pytest.mark.parametrize(
    ("page", "row", "title"),
    [
        (DRIVER, "start: ", "From the job's submission to the first line of user code"),
        (
            DRIVER,
            "of that, ",
            "From the start of the job's entrypoint to the first line of user code",
        ),
        (DRIVER, "end: ", "From the last line of user code to the end of the job"),
        (DRIVER, "cancel: ", "From the request to Cancelled, for a flow that loops in Python"),
        (DRIVER, "memory of the job", "Memory of the job's processes (PSS)"),
        (DRIVER, "memory that each", "Memory that each of 4 runs at once adds (PSS)"),
        (TASKS, "tasks that do nothing,", "no-op"),
        (TASKS, "the same beside a paused", "no-op beside a paused server"),
        (TASKS, "async tasks", "async no-op"),
        (TASKS, "a chain of tasks", "a chain"),
        (TASKS, "tasks whose results", "fan-in of all"),
        (TASKS, "tasks in a flow with", "1 MB flow parameter"),
        (TASKS, "tasks that sleep", "100 ms of sleep"),
        (TASKS, "CPU of the driver", "driver's CPU for a submit"),
        (TASKS, "CPU of the Prefect server", "CPU for a task: Prefect server"),
    ],
)
def test_figures_of_a_table_written_by_hand_are_those_measured(
    page: str, row: str, title: str
) -> None:
    charts = json.loads((FOLDER / MEASURED_FOR[page]).read_text())["charts"]
    (figures,) = (chart["figures"].values() for chart in charts if chart["title"] == title)
    shown = [re.split(r"[ ,]", cell)[0] for cell in _cells(page, row)]
    assert shown == [
        f"{figure:.{len(text.partition('.')[2])}f}"
        for figure, text in zip(figures, shown, strict=True)
    ]


def test_what_a_benchmark_saves_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["driver.py", "3"])
    chart = Chart("A <title>", "s", {"our driver": 1.25, "another": 2.5})
    drawn = section(json.loads(record([chart], rounds=3).read_text()))
    assert " 3`: medians" in drawn
    without = json.loads(record([chart], arguments=["--tasks", "4"]).read_text())
    assert without["command"].endswith(" --tasks 4")
    assert "medians of 3 rounds" in drawn
    assert "Ray 2." in drawn
    assert "our driver 1.25 s, another 2.5 s" in drawn, "what a screen reader says"
    assert "A &lt;title&gt;" in drawn
    assert drawn.count("<rect") == 2
