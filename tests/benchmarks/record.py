"""Saves what a benchmark has measured in `measured/<benchmark>.json`, for the docs."""

import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

FOLDER = Path(__file__).parent / "measured"
_PACKAGES = ("prefect", "ray")
_PROCESSORS = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Chart:
    """One chart of the page.

    Attributes:
        title: What was measured.
        unit: Of all its figures.
        figures: A figure for each way, with the way's name.
        better: Which figures are better: `lower` or `higher`.
    """

    title: str
    unit: str
    figures: Mapping[str, float]
    better: str = "lower"


def record(
    charts: Iterable[Chart],
    *,
    rounds: int | None = None,
    arguments: Sequence[str] | None = None,
) -> Path:
    """Save charts together with machine, date and command, and return the file's path.

    Call it from a benchmark's `main`: the file is named after the module that Python runs.

    Args:
        charts: What was measured.
        rounds: How often, if the figures are medians.
        arguments: Those of the command that change what is measured; by default all of them.
    """
    module = sys.modules["__main__"].__spec__
    name = module.name if module else Path(sys.argv[0]).stem
    said = sys.argv[1:] if arguments is None else arguments
    content = {
        "benchmark": name,
        "command": " ".join(["python", "-m", name, *said]),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": machine(),
        "rounds": rounds,
        "charts": [
            {**asdict(chart), "figures": {k: round(v, 3) for k, v in chart.figures.items()}}
            for chart in charts
        ],
    }
    path = FOLDER / f"{name.rpartition('.')[2]}.json"
    path.write_text(json.dumps(content, indent=2) + "\n")
    print(f"Saved to {path}. `make docs` draws it.")
    return path


def machine() -> str:
    """Return a line about this machine and what is installed on it."""
    processors = _PROCESSORS.read_text() if _PROCESSORS.exists() else ""
    names = (line.partition(":")[2] for line in processors.splitlines() if "model name" in line)
    parts = [
        f"{os.cpu_count()} x {next(names, platform.processor() or platform.machine()).strip()}",
        f"{platform.system()} {platform.release()}",
        f"Python {platform.python_version()}",
        *(f"{package.title()} {version(package)}" for package in _PACKAGES),
    ]
    return ", ".join(parts)
