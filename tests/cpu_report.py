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
_TEST, _FIXTURE = "cpu-test", "cpu-fixture"


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
    """Adds to each report what was used since the one before."""

    def __init__(self) -> None:
        self._group = _Group()
        self._last = self._group.seconds()
        self._fixtures: list[tuple[str, float]] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[object]) -> Iterator[None]:
        before = self._group.seconds()
        try:
            return (yield)  # type: ignore[return-value]
        finally:
            name = f"{fixturedef.baseid}::{fixturedef.argname} ({fixturedef.scope})"
            self._fixtures.append((name, self._group.seconds() - before))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Iterator[None]:
        report: pytest.TestReport = yield  # type: ignore[assignment]
        now = self._group.seconds()
        report.user_properties = [(_TEST, now - self._last), (_FIXTURE, self._fixtures)]
        self._last, self._fixtures = now, []
        return report  # type: ignore[return-value]

    def pytest_sessionfinish(self) -> None:
        self._group.remove()


class _Report:
    """Adds up what the processes measured, and prints it."""

    def __init__(self) -> None:
        self._files: Counter[str] = Counter()
        self._tests: Counter[str] = Counter()
        self._fixtures: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        found = dict(report.user_properties)
        self._tests[report.nodeid] += found.get(_TEST, 0)
        self._files[report.nodeid.partition("::")[0]] += found.get(_TEST, 0)
        for name, seconds in found.get(_FIXTURE, []):
            self._fixtures[name] += seconds

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for what, found in (
            ("files", self._files), ("tests", self._tests), ("fixtures", self._fixtures)
        ):  # fmt: skip
            terminalreporter.section(f"CPU seconds of {what}: {found.total():.0f}")
            for name, seconds in found.most_common(_SHOWN):
                terminalreporter.write_line(f"{seconds:8.1f}  {name}")


def pytest_configure(config: pytest.Config) -> None:
    """Measure where tests run; report in the process that the user sees."""
    if not config.getoption("numprocesses", 0) or hasattr(config, "workerinput"):
        config.pluginmanager.register(_Measure(), "cpu-measure")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Report(), "cpu-report")
