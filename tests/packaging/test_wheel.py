"""The built wheel: complete, well described, and of use in an environment without this checkout."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from prefect_ray_worker import __version__

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # Without isolation: nothing is fetched.
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT],
        check=True, capture_output=True,
    )  # fmt: skip
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_has_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "prefect_ray_worker/py.typed" in names
    assert "prefect_ray_worker/doctor/probe.py" in names
    assert {name.partition("/")[0] for name in names} == {
        "prefect_ray_worker",
        f"prefect_ray_worker-{__version__}.dist-info",
    }


def test_metadata_is_complete(wheel: Path) -> None:
    info = f"prefect_ray_worker-{__version__}.dist-info"
    metadata = Parser().parsestr(zipfile.ZipFile(wheel).read(f"{info}/METADATA").decode())
    classifiers = metadata.get_all("Classifier", [])
    for minor in ("3.11", "3.12", "3.13"):
        assert f"Programming Language :: Python :: {minor}" in classifiers
    assert "Typing :: Typed" in classifiers
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"


def test_twine_accepts_what_is_built(wheel: Path) -> None:
    built = sorted(wheel.parent.iterdir())
    assert sorted(path.suffix for path in built) == [".gz", ".whl"]
    checked = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *built],
        capture_output=True, text=True,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout


def test_wheel_works_in_an_environment_of_its_own(wheel: Path, tmp_path: Path) -> None:
    """The dependencies are borrowed from here; `make compat` installs them anew."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    site = next((venv / "lib").glob("python3.*/site-packages"))
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"])
    subprocess.run(
        [venv / "bin" / "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], check=True
    )
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [venv / "bin" / "prefect-ray-worker", "--version"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/", env=clean)
    assert shown.stdout.strip() == __version__
    script = (
        "import prefect_ray_worker; from prefect.workers.base import BaseWorker; "
        "print(prefect_ray_worker.__file__); print(BaseWorker.get_worker_class_from_type('ray'))"
    )
    found = subprocess.run(
        [venv / "bin" / "python", "-c", script],
        capture_output=True, text=True, check=True, cwd="/", env=clean,
    )  # fmt: skip
    assert str(venv) in found.stdout
    assert "RayWorker" in found.stdout
