"""What the kernel's counters say about a death."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from prefect_ray_worker.driver.supervise import memory
from prefect_ray_worker.driver.supervise.memory import MemoryWatch
from prefect_ray_worker.shared.category import Category
from prefect_ray_worker.shared.deaths import of_exit
from prefect_ray_worker.shared.memory_kills import MemoryKills

V1 = Path("/sys/fs/cgroup/memory")


class Machine:
    """A machine's counters, in files as the kernel has them.

    Args:
        root: Its root.
        group: The line of `/proc/self/cgroup`.
        counter: The file with the group's counter.
    """

    def __init__(self, root: Path, group: str | None, counter: str | None) -> None:
        self.vmstat = root / "proc/vmstat"
        self.counter = root / counter if counter else None
        (root / "proc/self").mkdir(parents=True)
        if group is not None:
            (root / "proc/self/cgroup").write_text(f"3:cpu:/elsewhere\n{group}\n")
        if self.counter is not None:
            self.counter.parent.mkdir(parents=True)
        self.count(machine=7, group=3)

    def count(self, *, machine: int, group: int) -> None:
        self.vmstat.write_text(f"pgfault 12\noom_kill {machine}\n")
        if self.counter is not None:
            self.counter.write_text(f"low 0\noom 9\noom_kill {group}\noom_group_kill 0\n")


GROUPS = {
    "version 2": ("0::/pods/a", "sys/fs/cgroup/pods/a/memory.events"),
    "version 2, in a container": ("0::/../a", "sys/fs/cgroup/memory.events"),
    "both versions": ("0::/a", "sys/fs/cgroup/unified/a/memory.events"),
    "version 1": ("4:memory:/docker/a", "sys/fs/cgroup/memory/docker/a/memory.oom_control"),
    "version 1, in a container": ("4:memory:/docker/a", "sys/fs/cgroup/memory/memory.oom_control"),
}


@pytest.mark.parametrize("where", GROUPS)
def test_counter_of_the_group_is_found(where: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path, *GROUPS[where])
    watch = MemoryWatch(tmp_path)
    assert watch.kills() is MemoryKills.NONE
    machine.count(machine=8, group=4)
    assert watch.kills() is MemoryKills.IN_CONTAINER


def test_counter_of_the_machine_is_second_best(tmp_path: Path) -> None:
    machine = Machine(tmp_path, *GROUPS["version 2"])
    watch = MemoryWatch(tmp_path)
    machine.count(machine=8, group=3)
    assert watch.kills() is MemoryKills.ON_MACHINE


def test_kills_of_long_ago_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path, *GROUPS["version 2"])
    watch = MemoryWatch(tmp_path)
    machine.count(machine=8, group=4)
    now = memory.time.monotonic()
    for later in range(30):
        monkeypatch.setattr(memory.time, "monotonic", lambda later=later: now + later)
        watch.look()
    assert watch.kills() is MemoryKills.NONE


def test_looks_in_quick_succession_do_not_shorten_the_memory(tmp_path: Path) -> None:
    machine = Machine(tmp_path, *GROUPS["version 2"])
    watch = MemoryWatch(tmp_path)
    machine.count(machine=8, group=4)
    for _ in range(1000):
        watch.look()
    assert watch.kills() is MemoryKills.IN_CONTAINER


def test_what_cannot_be_read_is_not_known(tmp_path: Path) -> None:
    assert MemoryWatch(tmp_path).kills() is MemoryKills.UNKNOWN
    machine = Machine(tmp_path / "b", *GROUPS["version 2"])
    machine.vmstat.unlink()
    # The group stands still also when the kernel kills for a machine that is full.
    assert MemoryWatch(tmp_path / "b").kills() is MemoryKills.UNKNOWN


@pytest.mark.parametrize(
    ("kills", "category", "says"),
    [
        (MemoryKills.IN_CONTAINER, Category.OUT_OF_MEMORY, "killed a process of its container"),
        (MemoryKills.ON_MACHINE, Category.OUT_OF_MEMORY, "almost certainly this one"),
        (MemoryKills.NONE, Category.KILLED_BY_SIGNAL, "counted no out-of-memory kill"),
        (
            MemoryKills.UNKNOWN,
            Category.KILLED_BY_SIGNAL,
            "nothing that is readable on the node proves it",
        ),
    ],
)
def test_sigkill_is_explained_as_far_as_it_can_be(
    kills: MemoryKills, category: Category, says: str
) -> None:
    found = of_exit(-9, kills, peak=3 * 1024**3)
    assert found.category is category
    assert says in found.cause
    assert "had used 3.0 GiB" in found.cause


def test_other_signals_are_never_memory() -> None:
    assert of_exit(-11, MemoryKills.IN_CONTAINER).category is Category.KILLED_BY_SIGNAL
    assert of_exit(143, MemoryKills.IN_CONTAINER).category is Category.KILLED_BY_SIGNAL


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A real control group with 64 MB, where the test may make one."""
    group = V1 / f"prwt-{uuid4().hex[:8]}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("needs root and control groups of version 1")
    try:
        (group / "memory.limit_in_bytes").write_text(str(64 * 1024**2))
        yield group
    finally:
        group.rmdir()


def test_a_real_kill_is_seen(small_group: Path) -> None:
    script = (
        "import os, subprocess, sys\n"
        "from prefect_ray_worker.driver.supervise.memory import MemoryWatch, peak_of_children\n"
        "watch = MemoryWatch()\n"
        "code = subprocess.call([sys.executable, '-c', 'x = bytearray(10**9)'])\n"
        "print(code, watch.kills().value, peak_of_children() > 10**7)"
    )

    def join() -> None:
        (small_group / "cgroup.procs").write_text(str(os.getpid()))

    out = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, preexec_fn=join, check=True
    )
    assert out.stdout.split() == ["-9", "in-container", "True"], out
