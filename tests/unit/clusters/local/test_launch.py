"""How the embedded Ray is started: ports, directory, environment, CPUs."""

import os
import socket
import sys
from pathlib import Path

import pytest

from prefect_ray_worker.clusters.local import launch
from prefect_ray_worker.clusters.local.launch import Launch, Ports, TempDirectory
from prefect_ray_worker.clusters.local.processes import MARKER
from prefect_ray_worker.errors import LocalClusterError


@pytest.fixture
def temp(tmp_path):
    temp = TempDirectory.for_state(tmp_path)
    yield temp
    if temp.path.is_symlink():
        temp.path.unlink()
    if temp.path.exists():
        os.chown(temp.path, os.geteuid(), -1)
    temp.remove()


def environment(inherited, temp):
    return launch.environment(inherited, Path("/state/auth_token"), temp)


@pytest.mark.parametrize(
    "name",
    [
        "RAY_ADDRESS",
        "RAY_API_SERVER_ADDRESS",
        "RAY_REDIS_ADDRESS",
        "RAY_AUTH_TOKEN",
        "RAY_TMPDIR",
        "RAY_START_HOOK",
        "RAY_USE_TLS",
        "RAY_JOB_CONFIG_JSON_ENV_VAR",
        "RAY_gcs_storage",
    ],
)
def test_the_users_ray_variables_do_not_reach_it(temp, name):
    assert name not in environment({name: "elsewhere", "PATH": "/bin"}, temp)


def test_its_own_ray_variables_win_over_the_users(temp):
    users = {"RAY_AUTH_MODE": "k8s", "RAY_AUTH_TOKEN_PATH": "/else", "RAY_USAGE_STATS_ENABLED": "1"}
    env = environment(users, temp)
    assert env["RAY_AUTH_MODE"] == "token"
    assert env["RAY_AUTH_TOKEN_PATH"] == "/state/auth_token"
    assert env["RAY_USAGE_STATS_ENABLED"] == "0"


def test_everything_else_reaches_it(temp):
    users = {"PREFECT_API_URL": "http://prefect", "HOME": "/me", "RAY_memory_usage_threshold": "1"}
    env = environment(users, temp)
    assert users.items() <= env.items()
    assert env[MARKER] == str(temp.path)


def test_a_tmpdir_that_is_too_long_for_sockets_is_replaced(temp):
    """`ray start` hung for a minute: its dashboard could not make a socket below it."""
    long = f"/scratch/{'x' * 80}"
    replaced = environment({"TMPDIR": long}, temp)["TMPDIR"]
    with socket.socket(socket.AF_UNIX) as listener:
        temp.create()
        folder = Path(replaced) / "pymp-12345678"
        folder.mkdir()
        listener.bind(str(folder / "listener-12345678"))
    assert environment({"TMPDIR": "/scratch/short"}, temp)["TMPDIR"] == "/scratch/short"


@pytest.mark.parametrize("inherited", [{"PATH": "/usr/bin:/bin"}, {}])
def test_the_interpreters_directory_is_first_on_the_path(temp, inherited):
    path = environment(inherited, temp)["PATH"].split(":")
    assert path[0] == str(Path(sys.executable).parent)
    assert path[1:] == ([] if not inherited else ["/usr/bin", "/bin"])


def test_ports_are_different_free_and_not_for_outgoing_connections():
    ports = Ports.find()
    numbers = {ports.dashboard, ports.agent, ports.client}
    assert len(numbers) == 3
    assert max(numbers) < 32768
    assert ports.are_free()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_that_somebody_listens_on_is_not_free(host):
    ports = Ports.find()
    with socket.create_server((host, ports.agent)):
        assert not ports.are_free()
    assert ports.are_free()


def test_no_free_port_says_what_to_do(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(launch, "_PORTS", range(port, port + 1))
        monkeypatch.setattr(launch, "_PORT_TRIES", 1)
        with pytest.raises(LocalClusterError, match=r"No free port .* set the address"):
            Ports.find()


def test_the_temp_directory_is_short_private_and_one_per_state_directory(tmp_path, temp):
    temp.create()
    # Ray adds session_<26 characters>_<pid>/sockets/plasma_store; macOS allows 103.
    assert len(str(temp.ray)) + 70 < 103
    assert temp.path.stat().st_mode & 0o777 == 0o700
    assert TempDirectory.for_state(tmp_path).path == temp.path
    assert TempDirectory.for_state(tmp_path / "other").path != temp.path


def test_a_temp_directory_open_to_others_is_closed(temp):
    temp.path.mkdir(mode=0o777)
    temp.path.chmod(0o777)
    temp.create()
    assert temp.path.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_temp_directory_of_another_user_is_refused_and_kept(temp):
    temp.path.mkdir()
    os.chown(temp.path, 65534, -1)
    with pytest.raises(LocalClusterError, match="belongs to another user"):
        temp.create()
    temp.remove()
    assert temp.path.exists()


def test_a_link_in_place_of_the_temp_directory_is_refused(temp, tmp_path):
    temp.path.symlink_to(tmp_path)
    with pytest.raises(LocalClusterError, match="belongs to another user"):
        temp.create()


def test_only_a_directory_of_its_own_is_removed(tmp_path):
    (tmp_path / "precious").touch()
    TempDirectory(tmp_path).remove()
    assert (tmp_path / "precious").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="affinity and control groups are Linux's")
@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, None),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "100000 100000"}, 1),
        ({"cpu.max": "99900000 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_cpus_follow_the_quota_and_are_never_none(tmp_path, files, cpus):
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n")
    assert launch.usable_cpus(tmp_path) == (cpus or len(os.sched_getaffinity(0)))


def test_a_launch_that_was_called_off_starts_nothing(tmp_path):
    proof = tmp_path / "started"
    starting = Launch(["touch", str(proof)], {}, cwd=tmp_path, log_path=tmp_path / "log")
    starting.call_off()
    with pytest.raises(LocalClusterError, match="called off"):
        starting.start()
    assert not proof.exists()


def test_a_command_that_cannot_run_is_an_error_of_ours(tmp_path):
    starting = Launch(["/no/such/python"], {}, cwd=tmp_path, log_path=tmp_path / "log")
    with pytest.raises(LocalClusterError, match="cannot be executed"):
        starting.start()
