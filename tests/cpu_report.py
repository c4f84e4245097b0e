"""Reports which test files and fixtures cost most CPU: `make test ARGS="-p tests.cpu_report"`.

Counts all processes that tests start, also those that lost their parent: each pytest process is in
a control group of its own. Needs root and control groups with CPU accounting (Linux).
"""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

_VERSION_1 = Path("/sys/fs/cgroup/cpuacct")
_VERSION_2 = Path("/sys/fs/cgroup")
_SHOWN = 25
_OUTPUT = "cpu_report"


class _Group:
    """A control group that this process and everything it starts belong to."""

    def __init__(self) -> None:
        self._version_1 = (_VERSION_1 / "cpuacct.usage").exists()
        self._parent = _VERSION_1 if self._version_1 else _VERSION_2
        self._folder = self._parent / f"prwt-cpu-{os.getpid()}"
        self._folder.mkdir()
        (self._folder / "cgroup.procs").write_text(str(os.getpid()))

    def seconds(self) -> float:
        """Return the CPU seconds that its processes have used so far."""
        if self._version_1:
            return int((self._folder / "cpuacct.usage").read_text()) / 1e9
        stat = (self._folder / "cpu.stat").read_text().split()
        return int(stat[stat.index("usage_usec") + 1]) / 1e6

    def remove(self) -> None:
        """Move what still runs to the parent group."""
        for pid in (self._folder / "cgroup.procs").read_text().split():
            (self._parent / "cgroup.procs").write_text(pid)
        self._folder.rmdir()


class _Measure:
    """Measures in a process that runs tests."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._group = _Group()
        self.files: Counter[str] = Counter()
        self.tests: Counter[str] = Counter()
        self.fixtures: Counter[str] = Counter()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        before = self._group.seconds()
        try:
            return (yield)  # type: ignore[return-value]
        finally:
            cost = self._group.seconds() - before
            self.tests[item.nodeid] += cost
            self.files[item.nodeid.partition("::")[0]] += cost

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[object]) -> Iterator[None]:
        before = self._group.seconds()
        try:
            return (yield)  # type: ignore[return-value]
        finally:
            name = f"{fixturedef.baseid}::{fixturedef.argname} ({fixturedef.scope})"
            self.fixtures[name] += self._group.seconds() - before

    def pytest_sessionfinish(self) -> None:
        self.files["(start and collection)"] += self._group.seconds() - self.files.total()
        self._group.remove()
        if hasattr(self._config, "workeroutput"):
            self._config.workeroutput[_OUTPUT] = [self.files, self.tests, self.fixtures]  # type: ignore[attr-defined]


class _Report:
    """Adds up what the processes measured, and prints it."""

    def __init__(self, own: _Measure | None) -> None:
        self._found = [own.files, own.tests, own.fixtures] if own else [Counter() for _ in "123"]

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object) -> None:
        measured = getattr(node, "workeroutput", {}).get(_OUTPUT, [])
        for ours, theirs in zip(self._found, measured, strict=False):
            ours.update(theirs)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for what, found in zip(("files", "tests", "fixtures"), self._found, strict=True):
            terminalreporter.section(f"CPU seconds of {what}: {found.total():.0f}")
            for name, seconds in found.most_common(_SHOWN):
                terminalreporter.write_line(f"{seconds:8.1f}  {name}")


def pytest_configure(config: pytest.Config) -> None:
    """Measure where tests run; report in the process that the user sees."""
    distributes = bool(config.getoption("numprocesses", 0))
    measure = None if distributes else _Measure(config)
    if measure:
        config.pluginmanager.register(measure, "cpu-measure")
    if not hasattr(config, "workeroutput"):
        config.pluginmanager.register(_Report(measure), "cpu-report")
