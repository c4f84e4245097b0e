"""A virtual environment for a cell, with the wheel, and the core tests in it."""

import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

from tests.compat.cells import NEWEST_RAY, Cell, Result

ROOT = Path(__file__).parents[2]
# A deployment runs, fails, is retried, is cancelled; the driver ships itself; tasks fan out.
CORE = (
    "tests/integration/test_main_job.py",
    "tests/integration/test_shipping_to_a_cluster.py",
    "tests/integration/test_driver_cancelling.py",
    "tests/integration/test_task_runner_in_a_job.py",
    # Its cluster has this environment's packages but ours, which is not to be had apart here.
    "--deselect=tests/integration/test_shipping_to_a_cluster.py"
    "::test_cluster_with_prefect_alone_runs_a_deployment",
)
# Ray's Jobs API answers as it is believed to. The fake is held to the newest.
CONTRACT = "tests/contract"
# What the tests need beside the package, and what Prefect 3.8 cannot do without (see pyproject).
_TOOLS = (
    "pytest", "pytest-asyncio", "pytest-timeout", "pytest-rerunfailures", "pytest-xdist", "respx",
    "trustme", "pyyaml", "fastapi<0.151", "hypothesis",
)  # fmt: skip
_INSTALL_SECONDS = 900
_TEST_SECONDS = 1800


def interpreter(minor: str) -> str | None:
    """Return a Python of a minor version: this one, one on the path, or one of pyenv's."""
    if f"{sys.version_info.major}.{sys.version_info.minor}" == minor:
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    kept = sorted(pyenv.glob(f"{minor}.*/bin/python"))
    return str(kept[-1]) if kept else shutil.which(f"python{minor}")


def build_wheel(folder: Path) -> Path:
    """Build the wheel of this checkout."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT],
        check=True,
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


def run_cell(cell: Cell, wheel: Path, folder: Path) -> Result:
    """Make the environment and run the core tests in it, against the wheel and not the checkout."""
    python = interpreter(cell.python)
    if python is None:
        return Result(trouble=f"there is no Python {cell.python} here")
    environment = folder / "venv"
    subprocess.run([python, "-m", "venv", environment], check=True)
    installed = subprocess.run(
        [environment / "bin" / "pip", "install", "--quiet", f"{wheel}", f"ray[default]=={cell.ray}",
         f"prefect=={cell.prefect}", *_TOOLS],
        capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False,
    )  # fmt: skip
    if installed.returncode:
        return Result(trouble=_last_error(installed.stderr))
    for name in ("tests", "docs", "pyproject.toml"):
        source, target = ROOT / name, folder / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, target)
    report = folder / "report.xml"
    subprocess.run(
        [environment / "bin" / "python", "-m", "pytest", "-q", "--reruns=2", "-p", "no:warnings",
         # What old and new versions warn of is not what is asked here.
         "--override-ini=filterwarnings=default", f"--junitxml={report}", *CORE,
         *([CONTRACT] if cell.ray == NEWEST_RAY else [])],
        cwd=folder, timeout=_TEST_SECONDS, check=False,
    )  # fmt: skip
    return _read(report)


def _read(report: Path) -> Result:
    if not report.exists():
        return Result(trouble="the tests could not be collected")
    # A test that is tried again has a case for each try, the first of which look like successes.
    last = {
        f"{case.get('classname')} {case.get('name')}": case
        for case in ET.parse(report).iter("testcase")
    }
    ran = {name: case for name, case in last.items() if case.find("skipped") is None}
    failed = [
        case.get("name", "")
        for case in ran.values()
        if case.find("failure") is not None or case.find("error") is not None
    ]
    return Result(len(ran) - len(failed), tuple(sorted(failed)))


def _last_error(text: str) -> str:
    errors = [line for line in text.splitlines() if line.startswith("ERROR")]
    return re.sub(r"\s+", " ", errors[-1].removeprefix("ERROR: "))[:200] if errors else "pip failed"
