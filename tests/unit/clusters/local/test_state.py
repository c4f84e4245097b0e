"""The files by which workers agree, and the identity of processes in them."""

import os
import platform
import subprocess
import sys
import time

import anyio
import psutil
import pytest

from prefect_ray_worker.clusters.local import processes
from prefect_ray_worker.clusters.local.processes import MARKER, ProcessIdentity
from prefect_ray_worker.clusters.local.state import ClusterRecord, StateDirectory, state_directory
from prefect_ray_worker.errors import LocalClusterError

RECORD = ClusterRecord(
    pid=1,
    birth=2.5,
    address="http://127.0.0.1:3",
    agent_port=4,
    token_path="/t",
    temp_dir="/tmp/prw-5",
)


@pytest.fixture
def state(tmp_path):
    state = StateDirectory(tmp_path / "home" / "ray-worker")
    state.prepare()
    return state


@pytest.fixture
def sleeper():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def test_a_record_comes_back_as_it_went(state):
    assert state.read_record() is None
    state.write_record(RECORD)
    assert state.read_record() == RECORD
    state.forget()
    assert state.read_record() is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"pid": 1}', '{"pid": null}', "\xff"])
def test_a_broken_record_is_none(state, text):
    (state.path / "cluster.json").write_bytes(text.encode("latin-1"))
    assert state.read_record() is None


def test_secrets_are_for_this_user_only_and_differ_each_time(state):
    state.write_token()
    first = state.token_path.read_text()
    state.write_token()
    assert state.token_path.stat().st_mode & 0o777 == 0o600
    assert state.path.stat().st_mode & 0o777 == 0o700
    assert len(first) == 64
    assert state.token_path.read_text() != first
    assert not list(state.path.glob(".*"))


def test_machines_that_share_a_home_have_different_directories(tmp_path, monkeypatch):
    directories = set()
    for name in ("one", "two", "../three", ""):
        monkeypatch.setattr(platform, "node", lambda name=name: name)
        directories.add(state_directory(tmp_path))
    assert len(directories) == 4
    assert {directory.parent for directory in directories} == {tmp_path / "ray-worker"}


def test_a_directory_that_cannot_be_written_says_what_to_do(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LocalClusterError, match="Set PREFECT_HOME"):
        StateDirectory(tmp_path / "file" / "state").prepare()


def test_the_cluster_is_in_use_while_a_mark_is_open(state):
    assert not state.is_in_use()
    first, second = state.mark_in_use(), state.mark_in_use()
    os.close(first)
    assert state.is_in_use()
    os.close(second)
    assert not state.is_in_use()


def test_a_process_that_dies_leaves_no_mark(state):
    code = (
        "import pathlib, sys, time; from prefect_ray_worker.clusters.local import state;"
        "state.StateDirectory(pathlib.Path(sys.argv[1])).mark_in_use();"
        "print(1, flush=True); time.sleep(60)"
    )
    arguments = [sys.executable, "-c", code, str(state.path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert state.is_in_use()
        other.kill()
    assert not state.is_in_use()


async def test_the_lock_excludes_other_objects_and_is_bounded(state):
    async with state.locked(1):
        with pytest.raises(LocalClusterError, match="Another worker"):
            async with StateDirectory(state.path).locked(0.3):
                pass
    async with StateDirectory(state.path).locked(1):
        pass


async def test_the_lock_is_free_after_a_cancelled_wait_and_a_dead_holder(state):
    code = (
        "import fcntl, os, sys, time; fd = os.open(sys.argv[1], os.O_RDWR);"
        "fcntl.flock(fd, fcntl.LOCK_EX); print('locked', flush=True); time.sleep(60)"
    )
    arguments = [sys.executable, "-c", code, str(state.path / "lock")]
    async with await anyio.open_process(arguments) as holder:
        try:
            assert holder.stdout
            assert (await holder.stdout.receive()).startswith(b"locked")
            with anyio.move_on_after(0.2) as scope:
                async with state.locked(10):
                    pytest.fail("the lock is held")
            assert scope.cancelled_caught
        finally:
            holder.kill()
    async with state.locked(5):
        pass


def test_the_tail_of_a_long_log_is_its_last_lines(state):
    assert state.log_tail() == ""
    state.log_path.write_bytes(b"first\n" + b"x" * 100_000 + b"\nsecond\n\xff last\n")
    assert state.log_tail(2) == "second\n\ufffd last"


def test_an_identity_is_not_that_of_a_later_process_with_the_same_pid(sleeper):
    identity = ProcessIdentity.of(sleeper.pid)
    assert identity.is_alive()
    assert not ProcessIdentity(identity.pid, identity.birth - 1).is_alive()
    sleeper.kill()
    # Not waited for: a zombie has ended.
    deadline = time.monotonic() + 10
    while identity.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not identity.is_alive()
    sleeper.wait(10)
    with pytest.raises(psutil.NoSuchProcess):
        ProcessIdentity.of(sleeper.pid)


def test_stop_all_ends_the_stubborn_and_the_orphaned_and_nobody_else(tmp_path, sleeper):
    marker = str(tmp_path)
    # A child in a session of its own that ignores SIGTERM, and loses its parent.
    code = (
        "import subprocess, sys, time;"
        "p = subprocess.Popen([sys.executable, '-c', 'import signal, time;"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)'],"
        " start_new_session=True, stdout=subprocess.PIPE); p.stdout.read(1);"
        "print(p.pid, flush=True); time.sleep(60)"
    )
    leader = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, MARKER: marker},
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    processes.adopt(leader)  # type: ignore[arg-type]
    identity = ProcessIdentity.of(leader.pid)
    assert leader.stdout
    orphan = ProcessIdentity.of(int(leader.stdout.readline()))
    leader.stdout.close()

    leader.kill()
    leader.wait(10)
    assert orphan.is_alive()
    processes.stop_all(identity, marker)

    assert not orphan.is_alive()
    assert sleeper.poll() is None
    processes.stop_all(None, marker)
