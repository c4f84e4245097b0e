"""The flow's own code, on a node that has none of its files."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prefect_ray_worker.task_runner import code
from tests.prefect_server import PrefectServer
from tests.real_ray import RealRay
from tests.task_runner.nodes import environment, node_without

PROJECT = Path(__file__).parent / "project"

EXPECTED = {
    "trivial": "ok",
    "uses_local": "7",
    "uses_sibling": "sibling",
    "uses_package": "package",
    "imports_late": "sibling",
    "reads_data": "data",
    "submits": "7",
    "uses_local_class": "(True, 2)",
}

# As Prefect's engine loads a deployment's flow, under a name that no import finds.
LOADED = """
import json, os, sys
sys.path.insert(0, os.getcwd())
if {taken}:
    import types
    sys.modules["entry"] = types.ModuleType("entry")
os.environ["PREFECT__FLOW_ENTRYPOINT"] = "flows/entry.py:everything"
from prefect.flows import load_flow_from_entrypoint
flow = load_flow_from_entrypoint("flows/entry.py:everything", use_placeholder_flow=False)
print("FOUND", json.dumps(flow("far")), flow.fn.__module__)
"""
AS_SCRIPT = """
import sys
sys.path[:0] = ["flows", "."]
exec(compile(open("flows/entry.py").read(), "flows/entry.py", "exec"))
import json
print("FOUND", json.dumps(everything("far")), __name__)
"""


@pytest.mark.ray
@pytest.mark.parametrize("way", ["as a script", "by its stem", "by the loader's name"])
def test_the_code_reaches_a_node_without_the_files(
    way: str, cluster: RealRay, prefect_api: PrefectServer, tmp_path: Path
) -> None:
    folder = tmp_path / "project"
    shutil.copytree(PROJECT, folder, ignore=shutil.ignore_patterns("__pycache__"))
    script = AS_SCRIPT if way == "as a script" else LOADED.format(taken=way != "by its stem")
    with node_without(folder, cluster, "far"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=folder,
            env=environment(prefect_api.api_url, tmp_path / "home", cluster),
            capture_output=True,
            text=True,
            timeout=150,
        )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND")]
    assert lines, done.stdout[-1500:] + done.stderr[-3000:]
    found, module = json.JSONDecoder().raw_decode(lines[0].removeprefix("FOUND "))
    assert {k: v for k, v in found.items() if k != "lock"} == EXPECTED, done.stderr[-3000:]
    name = lines[0].removeprefix("FOUND ")[module:].strip()
    expected = {"as a script": "__main__", "by its stem": "entry"}
    assert name == expected.get(way, name)
    assert way != "by the loader's name" or name.startswith("__prefect_loader_")


@pytest.mark.parametrize("folder", [Path("/"), Path.home(), Path("/tmp")])
def test_some_folders_are_never_shipped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TMPDIR", raising=False)
    assert code.why_not(folder) is not None


def test_installed_packages_are_not_shipped() -> None:
    import prefect

    assert "installed packages" in (code.why_not(Path(prefect.__file__).parent) or "")


def test_ignored_files_are_not_shipped_and_big_ones_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".gitignore").write_text("ignored/\n")
    (tmp_path / ".rayignore").write_text("*.bin\n")
    (tmp_path / "ignored").mkdir()
    for name in ("ignored/a.py", "b.bin", "c.py", "d.dat"):
        (tmp_path / name).write_bytes(b"x" * 2_000_000)
    files = code.files_to_ship(tmp_path)
    assert {f for f in files if not f.startswith(".")} == {"c.py", "d.dat"}
    assert code.why_not(tmp_path) is None
    monkeypatch.setattr(code, "_MOST_BYTES", 3_000_000)
    refusal = code.why_not(tmp_path) or ""
    assert "c.py (1.9 MiB)" in refusal
    assert "ship_code=False" in refusal


def test_environments_are_merged() -> None:
    job = {"pip": ["a"], "env_vars": {"A": "1", "B": "1"}, "py_modules": ["gcs://x.zip"]}
    own = {"env_vars": {"B": "2"}, "py_modules": ["y"]}
    assert code.merged(job, own, {"working_dir": "/w"}) == {
        "pip": ["a"],
        "env_vars": {"A": "1", "B": "2"},
        "py_modules": ["gcs://x.zip", "y"],
        "working_dir": "/w",
    }


def test_a_job_with_a_working_dir_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = code.for_cluster({"working_dir": "gcs://job.zip"}, None, in_job=True)
    assert shipped.runtime_env == {}


def test_a_job_without_one_gets_the_flows_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "flow.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT__FLOW_ENTRYPOINT", "flows/flow.py:main")
    shipped = code.for_cluster({"pip": ["a"]}, {"env_vars": {"A": "1"}}, in_job=True)
    assert shipped.runtime_env == {
        "pip": ["a"],
        "env_vars": {"A": "1"},
        "working_dir": str(tmp_path),
    }
    assert shipped.paths[:2] == [".", "flows"]
