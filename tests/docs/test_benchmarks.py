"""The page of benchmarks shows what was measured, and says where and how."""

import json
import sys
from pathlib import Path

import pytest

from tests.benchmarks import record as module
from tests.benchmarks.page import PAGE, README_CHART, chart_of_readme, section, written
from tests.benchmarks.record import FOLDER, Chart, record

ROOT = Path(__file__).parents[2]


def test_page_is_up_to_date() -> None:
    """`make docs` writes it: `python -m tests.benchmarks.page`."""
    assert (ROOT / PAGE).read_text() == written()
    assert (ROOT / README_CHART).read_text() == chart_of_readme()


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_each_figure_has_its_machine_date_and_command(path: Path) -> None:
    measured = json.loads(path.read_text())
    assert all(measured[key] for key in ("command", "date", "machine", "charts"))
    assert f"`{measured['command']}`" in (ROOT / PAGE).read_text()


def test_what_a_benchmark_saves_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["driver.py", "3"])
    chart = Chart("A <title>", "s", {"our driver": 1.25, "another": 2.5})
    drawn = section(json.loads(record([chart], rounds=3).read_text()))
    assert "medians of 3 rounds" in drawn
    assert "Ray 2." in drawn
    assert "our driver 1.25 s, another 2.5 s" in drawn, "what a screen reader says"
    assert "A &lt;title&gt;" in drawn
    assert drawn.count("<rect") == 2
