"""The first lines of the driver, which any Python may run."""

import ast
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import prefect_ray_worker
from prefect_ray_worker.shared.category import Category
from prefect_ray_worker.shared.exits import DriverExit
from prefect_ray_worker.shared.verdict_line import find_verdict

ATTEMPT = "0123456789ab"

PACKAGE = Path(prefect_ray_worker.__file__).parent
FIRST = ["__init__.py", "shared/__init__.py", "shared/category.py", "driver/__init__.py",
         "driver/__main__.py", "driver/last_words.py", "shared/diagnosis.py", "shared/exits.py",
         "shared/log_marks.py", "shared/verdict_line.py"]  # fmt: skip


def test_an_old_python_is_refused_in_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    monkeypatch.setattr(sys, "argv", ["driver", "a", ATTEMPT])
    with pytest.raises(SystemExit) as left:
        runpy.run_module("prefect_ray_worker.driver", run_name="__main__")
    assert left.value.code == DriverExit.OLD_PYTHON
    verdict = find_verdict(capsys.readouterr().err, ATTEMPT)
    assert verdict is not None
    assert verdict.category is Category.PYTHON_VERSION_MISMATCH
    assert verdict.cause.startswith("The Python of the Ray node (")


@pytest.mark.parametrize("name", FIRST)
def test_what_says_so_can_be_read_by_old_pythons(name: str) -> None:
    tree = ast.parse((PACKAGE / name).read_text(), feature_version=(3, 9))
    # `X | None` in annotations is evaluated before 3.14, and fails before 3.10.
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.BinOp | ast.Match)
                and isinstance(getattr(node, "op", None), ast.BitOr)]  # fmt: skip


def test_the_first_process_imports_the_standard_library_alone() -> None:
    script = (
        "import sys, prefect_ray_worker.driver.supervise.supervisor\n"
        "import prefect_ray_worker.shared.deaths\n"
        "ours = {'prefect_ray_worker'}\n"
        "print([m for m in sys.modules if m.partition('.')[0] not in ours\n"
        "       and m.partition('.')[0] not in sys.stdlib_module_names])"
    )
    out = subprocess.run([sys.executable, "-S", "-c", script], capture_output=True, text=True,
                         check=False, env={"PYTHONPATH": str(PACKAGE.parent)})  # fmt: skip
    assert out.stdout.strip() == "['__main__']" or out.stdout.strip() == "[]", out


def test_prefect_is_imported_without_what_it_does_not_need() -> None:
    """The command line of httpx brings click and pygments along; it can be had all the same."""
    code = (
        "import sys\nfrom prefect_ray_worker.driver.engine import _httpx_without_its_command\n"
        "with _httpx_without_its_command():\n    import httpx\n"
        "assert not {'click', 'pygments'} & set(sys.modules)\n"
        "import httpx._main\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
