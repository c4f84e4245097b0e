"""The first lines of the driver, which any Python may run."""

import ast
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

import pytest

import prefect_ray_worker
from prefect_ray_worker.doctor import probe
from prefect_ray_worker.driver.supervise import supervisor
from prefect_ray_worker.shared.category import Category
from prefect_ray_worker.shared.exits import DriverExit
from prefect_ray_worker.shared.log_marks import END_OF_OUTPUT
from prefect_ray_worker.shared.verdict_line import find_verdict
from tests.compat.environment import interpreter

ATTEMPT = "0123456789ab"

PACKAGE = Path(prefect_ray_worker.__file__).parent
FIRST = ["__init__.py", "_version.py", "shared/__init__.py", "shared/category.py",
         "driver/__init__.py", "driver/__main__.py", "driver/last_words.py",
         "shared/diagnosis.py", "shared/exits.py",
         "shared/log_marks.py", "shared/verdict_line.py"]  # fmt: skip


def test_an_old_python_is_refused_in_words(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    monkeypatch.setattr(sys, "argv", ["driver", "a", ATTEMPT])
    with pytest.raises(SystemExit) as left:
        runpy.run_module("prefect_ray_worker.driver", run_name="__main__")
    assert left.value.code == DriverExit.OLD_PYTHON
    verdict = find_verdict(capfd.readouterr().err, ATTEMPT)
    assert verdict is not None
    assert verdict.category is Category.PYTHON_VERSION_MISMATCH
    assert verdict.cause.startswith("The Python of the Ray node (")
    assert f"rayproject/ray:{version('ray')}-py311" in verdict.advice


@pytest.mark.parametrize(
    ("ray", "image"), [("2.52.1", "ray:2.52.1-py311"), ("3.0.0.dev0", "ray:VERSION-py311")]
)
def test_a_real_old_python_names_the_image_to_take(ray: str, image: str, tmp_path: Path) -> None:
    """Many of Ray's own images have Python 3.10."""
    old = interpreter("3.10")
    if old is None:
        pytest.skip("there is no Python 3.10 here")
    info = tmp_path / f"ray-{ray}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: ray\nVersion: {ray}\n")
    done = subprocess.run(
        [old, "-m", "prefect_ray_worker.driver", "a", ATTEMPT],
        env={"PYTHONPATH": f"{PACKAGE.parent}:{tmp_path}"}, cwd=tmp_path,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == DriverExit.OLD_PYTHON, done.stderr
    verdict = find_verdict(done.stderr, ATTEMPT)
    assert verdict is not None
    assert "is 3.10." in verdict.cause
    assert image in verdict.advice


@pytest.mark.parametrize("name", FIRST)
def test_what_says_so_can_be_read_by_old_pythons(name: str) -> None:
    tree = ast.parse((PACKAGE / name).read_text(), feature_version=(3, 9))
    # `X | None` in annotations is evaluated before 3.14, and fails before 3.10.
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.BinOp | ast.Match)
                and isinstance(getattr(node, "op", None), ast.BitOr)]  # fmt: skip


@pytest.mark.parametrize(
    "does",
    ["sys.stdout.close()", "sys.stdout = None", "sys.stderr.close()", "sys.stderr = None"],
    ids=["closes stdout", "has no stdout", "closes stderr", "has no stderr"],
)
def test_a_flow_that_gives_up_a_stream_ends_as_it_has_ended(does: str) -> None:
    """The driver of a Completed run ended with a traceback, and its job FAILED."""
    script = (
        "import sys\n"
        "from prefect_ray_worker.driver.engine import leave\n"
        "from prefect_ray_worker.driver.last_words import tell_worker\n"
        "from prefect_ray_worker.shared.category import Category\n"
        "from prefect_ray_worker.shared.diagnosis import diagnosed\n"
        f"{does}\n"
        f"tell_worker(diagnosed(Category.FLOW_NOT_LOADED, 'why.'), {ATTEMPT!r})\n"
        "leave(0, '', None)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    verdict = find_verdict(done.stderr, ATTEMPT)
    assert verdict is not None
    assert verdict.cause == "why."
    assert END_OF_OUTPUT in done.stderr.splitlines()[-1]


def test_nothing_starts_a_server_on_the_node(tmp_path: Path) -> None:
    """The process that reports a death did, where there was no API."""
    dies = "import os, sys\nif 'prefect_ray_worker.driver.engine' in sys.orig_argv: os.abort()\n"
    (tmp_path / "sitecustomize.py").write_text(dies)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    environment |= {"PYTHONPATH": str(tmp_path), "PREFECT_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "prefect_ray_worker.driver", str(uuid4()), ATTEMPT],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode
    assert "No Prefect API URL provided" in done.stderr
    assert "Traceback" not in done.stderr


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


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"metadata": {"prefect.io/flow-name": "train"}}, {"PREFECT__FLOW_NAME": "train"}),
        # What the job variable `env` says comes first.
        (
            {
                "metadata": {"prefect.io/flow-name": "train", "prefect.io/worker-name": "w"},
                "runtime_env": {"env_vars": {"PREFECT__FLOW_NAME": "mine"}},
            },
            {"PREFECT__WORKER_NAME": "w"},
        ),
        ({"metadata": None}, {}),
        ([], {}),
        (None, {}),
    ],
)
def test_a_job_tells_its_driver_of_the_run(
    config: object, told: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    if config is not None:
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(config))
    assert supervisor._variables_of_job("a") == {"PREFECT__FLOW_RUN_ID": "a", **told}


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has no sigtimedwait")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_either_signal_with_which_ray_stops_a_job_reaches_the_engine(name: str) -> None:
    """A warm engine is no descendant of the guard, and was not told of a SIGINT."""
    script = f"""
import os, signal
from prefect_ray_worker.driver.supervise import supervisor
class Engine:
    told = looks = 0
    def ended(self):
        return 7 if self.told else None
    def terminate(self):
        self.told = 1
    def is_orphaned(self):
        self.looks += 1
        return self.looks > 2
signal.pthread_sigmask(signal.SIG_BLOCK, supervisor.HANDLED)
os.kill(os.getpid(), signal.{name})
engine = Engine()
os._exit(supervisor._wait(engine, engine.is_orphaned))
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == 7


def test_a_flow_whose_name_no_variable_can_hold_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard ended with a UnicodeEncodeError, on a node with an ASCII locale for any umlaut."""
    names = ("PREFECT__FLOW_NAME", "PREFECT__WORKER_NAME", "PREFECT__FLOW_ID")
    for name in names:
        monkeypatch.setenv(name, "before")
    supervisor._tell_of_run(dict(zip(names, ("a\0b", "\ud800", "c"), strict=True)))
    assert [os.environ[name] for name in names] == ["before", "before", "c"]


@pytest.mark.parametrize(
    "correct", [supervisor._correct_credentials, probe.correct_credentials], ids=["driver", "probe"]
)
def test_credentials_of_a_node_lose_what_no_header_can_hold(
    correct: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line end of a secret that comes from a file made each request impossible."""
    monkeypatch.setenv("PREFECT_API_KEY", "key\n")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:secret\n")
    monkeypatch.setenv("PREFECT_CLIENT_CUSTOM_HEADERS", "")
    correct()
    assert os.environ["PREFECT_API_KEY"] == "key"
    assert os.environ["PREFECT_API_AUTH_STRING"] == "me:secret\n", "the server's may be the same"
    assert "PREFECT_CLIENT_CUSTOM_HEADERS" not in os.environ
    monkeypatch.setenv("PREFECT_API_KEY", "\n")
    correct()
    assert "PREFECT_API_KEY" not in os.environ
