"""What ends the processes of a run, in a small tree of real ones."""

import subprocess
import sys

import pytest

# Prints how the other process was when the heir was killed, and how both are at the end.
_ROOT = """
import os, subprocess, sys
from prefect_ray_worker.driver.supervise import processes

child = "import subprocess, time; p = subprocess.Popen(['sleep', '60'], start_new_session=True); "
child += "print(p.pid, flush=True); time.sleep(60)"
processes.adopt_orphans()
heir = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE)
other = int(heir.stdout.readline())
kill, killed = os.kill, []

def has_ended(pid):
    try:
        return processes.stat_of(pid)[0] in "ZX"
    except OSError:
        return True

def noted(pid, number):
    if pid == heir.pid:
        killed.append(has_ended(other))
    kill(pid, number)

os.kill = noted
processes.kill_descendants(heir=heir.pid)
print(killed[0], has_ended(heir.pid), has_ended(other))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_supervisor_is_killed_when_nothing_else_is_left() -> None:
    """Ray may kill the guard at any moment of it, and then the supervisor ends the rest."""
    done = subprocess.run(
        [sys.executable, "-c", _ROOT], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.split() == ["True", "True", "True"]
