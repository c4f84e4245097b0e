"""`make quickstart`, as the README shows it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parents[2] / "docs" / "examples" / "quickstart" / "run.py"

pytestmark = [pytest.mark.ray, pytest.mark.extra, pytest.mark.timeout(600)]


def quickstart(state: Path, *arguments: str, **env: str) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "RAY_"))}
    done = subprocess.run(
        [sys.executable, RUN, *arguments],
        env={**clean, "QUICKSTART_STATE": str(state), **env},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_log_is_shown_once_to_its_end_and_a_kept_stack_stays_up(tmp_path: Path) -> None:
    try:
        first = quickstart(tmp_path, KEEP="1")
        again = quickstart(tmp_path)
        assert (tmp_path / "stack.json").exists()
    finally:
        stopped = quickstart(tmp_path, "--stop")
    assert "The quickstart is stopped." in stopped
    assert "that are still up" in again
    for output in (first, again):
        for line in ("digits in 12 tasks", "12 of 12 tasks are done", "% read correctly"):
            assert output.count(line) == 1, output
        assert output.count("is SUCCEEDED") == 1, output
        assert "is Completed" in output
