"""The systemd units: verified where systemd is, and their commands run as real processes."""

import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import httpx
import pytest
from prefect.client.orchestration import get_client

from tests.integration.harness import Pool
from tests.ports import free_port
from tests.real_ray import real_ray
from tests.templates.folders import TEMPLATES
from tests.templates.processes import node_options, running, until_nodes
from tests.waiting import wait_until

FOLDER = TEMPLATES / "vm"
UNITS = sorted(FOLDER.glob("*.service"))


def command(unit: str, env: dict[str, str]) -> list[str]:
    """Return a unit's command as systemd would run it: `$NAME` is split, `${NAME}` is not."""
    (line,) = re.findall(r"^ExecStart=(.+)$", (FOLDER / unit).read_text(), re.MULTILINE)
    program, *arguments = shlex.split(line)
    words = [Path(program).name]
    for argument in arguments:
        if whole := re.fullmatch(r"\$(\w+)", argument):
            words += shlex.split(env[whole[1]])
        else:
            words.append(re.sub(r"\$\{(\w+)\}", lambda match: env[match[1]], argument))
    return words


def settings(name: str) -> dict[str, str]:
    """Return what an environment file sets."""
    lines = (FOLDER / name).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_unit_is_valid(unit: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    # Only the programs are replaced: it wants them to be there.
    text = re.sub(r"^(ExecStart=)\S+", rf"\1{sys.executable}", unit.read_text(), flags=re.MULTILINE)
    (tmp_path / unit.name).write_text(text)
    found = subprocess.run(
        [analyze, "verify", "--man=no", tmp_path / unit.name], capture_output=True, text=True
    )
    # What it says of other units of this machine is not ours.
    ours = [line for line in found.stderr.splitlines() if unit.name in line]
    assert ours == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_mistake_in_a_unit_is_found(tmp_path: Path) -> None:
    text = f"[Service]\nExecStart={sys.executable}\nRestrat=always\n"
    (tmp_path / "spoilt.service").write_text(text)
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / "spoilt.service"],
        capture_output=True,
        text=True,
    )
    assert "Restrat" in found.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_unit_has_its_account_its_file_and_no_secret(unit: Path) -> None:
    text = unit.read_text()
    assert re.search(r"^User=(ray|prefect)$", text, re.MULTILINE)
    assert "NoNewPrivileges=true" in text
    (file,) = re.findall(r"^EnvironmentFile=/etc/\S+/(\S+)$", text, re.MULTILINE)
    set_there = set(settings(file))
    assert set(re.findall(r"\$\{?([A-Z_]+)", text)) <= set_there
    assert not re.search(r"KEY=|TOKEN=", text)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_token_is_there_before_the_unit_starts(unit: Path) -> None:
    """Ray 2.60 does not start without it, and does not create it."""
    text, readme = unit.read_text(), (FOLDER / "README.md").read_text()
    account = re.findall(r"^User=(\S+)$", text, re.MULTILINE)[0]
    (file,) = re.findall(r"^EnvironmentFile=/etc/\S+/(\S+)$", text, re.MULTILINE)
    token = settings(file)["RAY_AUTH_TOKEN_PATH"]
    source = "/dev/stdin" if unit.stem == "ray-head" else "token"
    created = readme.find(f"install -D --mode=0600 --owner={account} {source} {token}\n")
    assert 0 < created < readme.index(f"systemctl enable --now {unit.stem}\n")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_unit_is_confined(unit: Path) -> None:
    lines = unit.read_text().splitlines()
    assert "SystemCallFilter=@system-service" in lines
    assert "CapabilityBoundingSet=" in lines
    assert [line for line in lines if line.startswith("RestrictAddressFamilies=AF_UNIX ")]
    for part in ("Tunables", "Modules", "Logs"):
        assert f"ProtectKernel{part}=true" in lines


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_home_is_a_folder_that_the_unit_can_read(unit: Path) -> None:
    text = unit.read_text()
    assert "ProtectHome=true" in text  # closes /home, /root and /run/user
    (state,) = re.findall(r"^StateDirectory=(\S+)$", text, re.MULTILINE)
    (home,) = re.findall(r"^Environment=HOME=(\S+)", text, re.MULTILINE)
    assert home == f"/var/lib/{state}"
    account = re.findall(r"^User=(\S+)$", text, re.MULTILINE)[0]
    assert f"useradd --system --home-dir {home} {account} " in (FOLDER / "README.md").read_text()


@pytest.mark.ray
@pytest.mark.extra
async def test_commands_of_the_units_make_a_cluster_that_runs_a_flow(
    prefect_settings: None, tmp_path: Path
) -> None:
    """The head is the suite's own: two heads cannot share the ports of one machine."""
    health = free_port()
    with real_ray(num_cpus=0) as ray:
        node = {"RAY_HEAD": ray.gcs_address, "RAY_START_OPTIONS": node_options() + " --num-cpus=2"}
        worker = {
            "WORK_POOL": "ray",
            "PREFECT_INTEGRATIONS_RAY_WORKER_ADDRESS": ray.address,
            "PREFECT_WORKER_WEBSERVER_HOST": settings("worker.env")[
                "PREFECT_WORKER_WEBSERVER_HOST"
            ],
            "PREFECT_WORKER_WEBSERVER_PORT": str(health),
        }
        places = [tmp_path / "node", tmp_path / "worker"]
        for place in places:
            place.mkdir()
        with (
            running(command("ray-node.service", node), places[0], ray.temp_dir, node),
            running(command("prefect-ray-worker.service", worker), places[1], tmp_path, worker),
        ):
            await until_nodes(ray, 2)
            await wait_until(lambda: _healthy(health), timeout=60, description="health")
            async with get_client() as client:
                pool = Pool(client, "ray", {"entrypoint_num_cpus": 1})
                run = await pool.wait_for(await pool.start("adds"), seconds=90)
                assert run.state is not None
                assert run.state.is_completed(), run.state
                await client.delete_work_pool("ray")


async def _healthy(port: int) -> bool:
    try:
        async with httpx.AsyncClient(trust_env=False) as client:
            return (await client.get(f"http://127.0.0.1:{port}/health")).is_success
    except httpx.TransportError:
        return False


def test_head_starts_with_the_options_that_ray_knows() -> None:
    env = {"RAY_START_OPTIONS": ""}
    words = command("ray-head.service", env)
    assert words[:4] == ["ray", "start", "--head", "--block"]
    # Read, because `ray start --help` takes two seconds.
    source = Path(str(distribution("ray").locate_file("ray/scripts/scripts.py"))).read_text()
    declared = source.partition("\ndef start(")[0].rpartition("@cli.command")[2]
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    assert [option for option in options if f'"{option}"' not in declared] == []
