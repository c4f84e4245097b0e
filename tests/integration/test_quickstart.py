"""`make quickstart` and `make quickstart-kuberay`, as the README shows them."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "examples" / "quickstart"
MARKER = "QUICKSTART_TEST"

pytestmark = [pytest.mark.ray, pytest.mark.extra, pytest.mark.timeout(600)]


def clean() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "RAY_"))}


def quickstart(state: Path, *arguments: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, FOLDER / "run.py", *arguments],
        env={**clean(), "QUICKSTART_STATE": str(state), **env},
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
        # One line for each task, without its name, says nothing.
        assert output.count("Finished in state") == 1, output
        assert "Worker 'quickstart' submitting flow run" in output
        assert "is Completed" in output


def test_show_all_shows_a_killed_run_and_one_that_waits_and_is_cancelled(tmp_path: Path) -> None:
    output = quickstart(tmp_path, SHOW="all")
    assert output.count("is Completed") == 1, output
    assert re.search(r"is Crashed: KilledBySignal: .*SIGKILL", output), output
    assert output.count("asks for 8 GPU") == 1, output
    assert "The run's state is InfrastructurePending; its log says why." in output, output
    assert "is Cancelled" in output, output


class KubeRayQuickstart:
    """`make quickstart-kuberay` in a process; whatever it starts inherits a marker."""

    def __init__(self, folder: Path) -> None:
        self.marker = uuid4().hex
        folder.mkdir()
        self._output = folder / "output"
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, FOLDER / "kuberay.py"],
                env={**clean(), MARKER: self.marker, "TMPDIR": str(folder)},
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    @property
    def output(self) -> str:
        return self._output.read_text()

    def says(self, text: str) -> None:
        deadline = time.monotonic() + 120
        while text not in self.output:
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.2)

    def left(self) -> list[str]:
        """Return the command of each process that it started and that still runs."""
        found: list[str] = []
        for process in self._processes():
            with suppress(psutil.Error):
                found.append(" ".join(process.cmdline())[:100])
        return found

    def end(self) -> None:
        """End what it started, after a test that has failed."""
        for process in self._processes():
            with suppress(psutil.Error):
                process.kill()
        self.process.wait(10)

    def _processes(self) -> list[psutil.Process]:
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                is_its = process.environ().get(MARKER) == self.marker
                if is_its and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


@pytest.fixture
def start() -> Iterator[Callable[[Path], KubeRayQuickstart]]:
    """Return what starts a quickstart, which ends with the test at the latest."""
    started: list[KubeRayQuickstart] = []

    def start(folder: Path) -> KubeRayQuickstart:
        started.append(KubeRayQuickstart(folder))
        return started[-1]

    yield start
    for one in started:
        one.end()


def test_a_raycluster_comes_and_goes_with_its_run_also_twice_at_once(
    start: Callable[[Path], KubeRayQuickstart], tmp_path: Path
) -> None:
    both = [start(tmp_path / name) for name in ("one", "other")]
    for one in both:
        assert one.process.wait(280) == 0, one.output
        output = one.output
        order = [
            "a simulated Kubernetes",
            "Kubernetes: There is a new RayCluster: ray-",
            "The head pod is ready",
            "digits in 12 tasks",
            "% read correctly",
            "Kubernetes: The RayCluster is being deleted",
            "Kubernetes: The RayCluster is gone",
            "is Completed",
            "RayClusters made: 1, left: 0",
        ]
        places = [output.index(text) for text in order]
        assert places == sorted(places), output
        assert "\033" not in output, "colours belong on terminals"
        assert one.left() == []


def test_ctrl_c_leaves_nothing_of_it(
    start: Callable[[Path], KubeRayQuickstart], tmp_path: Path
) -> None:
    one = start(tmp_path / "state")
    one.says("The head pod is ready")
    assert one.left()
    one.process.send_signal(signal.SIGINT)
    assert one.process.wait(120) == 130, one.output
    assert one.left() == []
    assert re.findall(r"prw-quickstart-\w+", str(list((tmp_path / "state").iterdir()))) == []
