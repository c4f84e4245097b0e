"""What a bundle holds, and what is refused before a flow run exists."""

import dataclasses
import io
import json
import os
import re
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any
from uuid import uuid4

import cloudpickle
import pytest
from prefect import flow, task
from prefect.blocks.system import Secret
from prefect.settings import PREFECT_API_KEY, temporary_settings

from prefect_ray_worker.bundles import content
from prefect_ray_worker.bundles.packing import pack
from prefect_ray_worker.errors import BundleRefused, Unpicklable
from tests.forks import Forks


@flow
def takes(plain: Any = None) -> None: ...


def main_flow(source: str) -> Any:
    """Return a flow as a script or a notebook defines it."""
    namespace: dict[str, Any] = {"__name__": "__main__", "flow": flow, "task": task}
    exec(source, namespace)
    return namespace["run"]


def test_flow_of_a_script_runs_from_its_bundle(tmp_path: Path) -> None:
    made = main_flow(
        "scale = 3\n"
        "@task\ndef scaled(n): return n * scale\n"
        "@flow(name='my-flow', retries=2, version='7')\n"
        "def run(n): return scaled.fn(n)"
    )
    unpacked = content.unpack(pack(made, {"n": (1,)}).content, tmp_path)
    packed = content.unpickle(unpacked)
    again = content.make_flow(packed)
    assert (again.name, again.retries, again.version) == ("my-flow", 2, "7")
    assert packed.fn(**packed.parameters) == (1, 1, 1)


@pytest.mark.parametrize(
    ("source", "culprit"),
    [
        ("import threading\nlock = threading.Lock()\n@flow\ndef run(): lock", "'lock', a lock"),
        (
            "rows = (n for n in [])\ndef helper(): return rows\n@flow\ndef run(): helper()",
            "'rows', a generator which 'helper' uses",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_pickled_is_named(source: str, culprit: str) -> None:
    with pytest.raises(Unpicklable, match=culprit):
        pack(main_flow(source), {})


def test_globals_may_raise_any_error_for_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    # Raises KeyError, and not AttributeError, for a name that it does not have.
    made = main_flow(
        "class Dots(dict): __getattr__ = dict.__getitem__\n@flow\ndef run(): return config['a']"
    )
    Dots = made.fn.__globals__["Dots"]  # noqa: N806 (a class)
    made.fn.__globals__["config"] = Dots(a=1)
    monkeypatch.setattr(sys.modules["__main__"], "config", Dots(), raising=False)
    assert pack(made, {}).content
    made.fn.__globals__["config"] = Dots(a=threading.Lock())
    with pytest.raises(Unpicklable, match="'config', a Dots"):
        pack(made, {})


def test_parameter_that_cannot_be_pickled_is_named() -> None:
    with pytest.raises(Unpicklable, match="parameter 'plain', a lock"):
        pack(takes, {"plain": threading.Lock()})


def test_unsaved_block_with_a_secret_is_refused() -> None:
    made = main_flow("@flow\ndef run(block): return block")
    with pytest.raises(BundleRefused, match="A Secret block with the secret value") as refused:
        pack(made, {"block": Secret(value="hush")})
    assert "hush" not in str(refused.value)


def test_too_large_a_bundle_names_its_largest_files(tmp_path: Path) -> None:
    (tmp_path / "large.bin").write_bytes(b"".join(bytes([i % 251]) * 3 for i in range(10)))
    import secrets

    (tmp_path / "larger.bin").write_bytes(secrets.token_bytes(5 * 1024 * 1024))
    bundle = pack(takes, {}, include_files=["*.bin"], include_files_base_dir=tmp_path)
    assert not bundle.is_small
    said = str(bundle.too_large("No cluster."))
    assert re.search(r"more than 4 MiB.* No cluster\. .*larger\.bin \(5\.0 MiB\)", said)
    assert "work-pool storage configure" in said


def test_file_that_is_older_than_zips_can_say(tmp_path: Path) -> None:
    """Such a time made `pack` raise a ValueError that named no file."""
    (tmp_path / "old.txt").write_text("old")
    os.utime(tmp_path / "old.txt", (1, 1))
    made = main_flow("@flow\ndef run(): pass")
    bundle = pack(made, {}, include_files=["*"], include_files_base_dir=tmp_path)
    (tmp_path / "node").mkdir()
    unpacked = content.unpack(bundle.content, tmp_path / "node")
    assert (unpacked.folder / "old.txt").read_text() == "old"


PROJECT = {
    "run.py": (
        "import sys, pickle\n"
        "sys.path[:0] = ['src', 'elsewhere']\n"
        "from pkg import flows\n"
        "from prefect_ray_worker.bundles.packing import pack\n"
        "print(pack(flows.train, {}).content.hex())\n"
    ),
    "src/pkg/__init__.py": "",
    "src/pkg/flows.py": (
        "import threading\nfrom prefect import flow\nfrom . import inner\n"
        "LOCK = threading.Lock()\n"
        "@flow\ndef train():\n    import lazily\n    with LOCK: return inner.x + lazily.y\n"
    ),
    "src/pkg/inner.py": "x = 1",
    "src/pkg/never_loaded.py": "",
    "elsewhere/lazily.py": "y = 2",
}


def test_modules_travel_as_files_with_what_they_import_later(tmp_path: Path, forks: Forks) -> None:
    """A global that is a lock, and an import inside the flow, did not survive Prefect's way."""
    write(tmp_path / "project", PROJECT)
    packed = bytes.fromhex(forks.run_script(tmp_path / "project", "run.py").strip())
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        names = archive.namelist()
        manifest = json.loads(archive.read("manifest.json"))
    assert {n for n in names if n.startswith("files/")} == {
        "files/pkg/__init__.py", "files/pkg/flows.py", "files/pkg/inner.py",
        "files/pkg/never_loaded.py", "files/outside-0/lazily.py",
    }  # fmt: skip
    assert manifest["folder"] == "pkg"
    assert run_on_a_node(forks, tmp_path, packed) == "3"


SCRIPT = {
    "script.py": (
        "from prefect import flow, task\nimport beside\n"
        "class Own: pass\n"
        "@task\ndef twice(n): return 2 * n, Own\n"
        "@flow\ndef train(): return beside.x + twice.fn(20)[0], Own.__name__\n"
    ),
    "beside.py": "x = 2",
    "pack.py": (
        "import sys\n"
        "from prefect.flows import load_flow_from_entrypoint\n"
        "from prefect_ray_worker.bundles.packing import pack\n"
        "for _ in range(int(sys.argv[1])):\n"
        "    train = load_flow_from_entrypoint('script.py:train')\n"
        "print(train.fn.__module__, pack(train, {}).content.hex())\n"
    ),
}


@pytest.mark.parametrize(("times", "name"), [("1", "script"), ("2", "__prefect_loader_")])
def test_flow_that_prefect_has_loaded_from_a_script(
    tmp_path: Path, forks: Forks, times: str, name: str
) -> None:
    """So a driver has loaded the flow of a deployment, which may call others."""
    write(tmp_path / "laptop", SCRIPT)
    module, packed = forks.run_script(tmp_path / "laptop", "pack.py", times).split()
    assert module.startswith(name)
    assert run_on_a_node(forks, tmp_path, bytes.fromhex(packed)) == "(42, 'Own')"


PARENT = {
    "script.py": (
        "from pathlib import Path\nfrom prefect import flow\nimport beside\n"
        "from prefect_ray_worker.bundles.packing import pack\n"
        "@flow\ndef child():\n"
        "    import lazily\n    return beside.x + lazily.y + Path('data/x.txt').read_text()\n"
        "@flow\ndef parent(): return pack(child, {}, include_files=['data/x.txt']).content.hex()\n"
        "if __name__ == '__main__':\n"
        "    print(pack(parent, {}, include_files=['data']).content.hex())\n"
    ),
    "beside.py": "x = 'b'",
    "lazily.py": "y = 'l'",
    "data/x.txt": "d",
    "pack.py": (
        "from prefect.flows import load_flow_from_entrypoint\n"
        "from prefect_ray_worker.bundles.packing import pack\n"
        "for _ in range(2):\n    parent = load_flow_from_entrypoint('script.py:parent')\n"
        "print(pack(parent, {}, include_files=['data']).content.hex())\n"
    ),
}


@pytest.mark.parametrize("program", ["script.py", "pack.py"])
def test_flow_of_a_bundle_can_be_packed_again(tmp_path: Path, forks: Forks, program: str) -> None:
    """A flow that called another one of its script sent no module, and found no file."""
    write(tmp_path / "laptop", PARENT)
    packed = forks.run_script(tmp_path / "laptop", program)
    by_parent = run_on_a_node(forks, tmp_path, bytes.fromhex(packed))
    (tmp_path / "other").mkdir()
    assert run_on_a_node(forks, tmp_path / "other", bytes.fromhex(by_parent)) == "bld"


ELSEWHERE = {
    "run.py": (
        "from functools import partial\nfrom models import Model\nfrom flows import train\n"
        "from prefect_ray_worker.bundles.packing import pack\n"
        "print(pack(train, {'model': partial(Model, 3)}).content.hex())\n"
    ),
    "flows.py": "from prefect import flow\n@flow\ndef train(model): return model().size\n",
    "models.py": "class Model:\n    def __init__(self, size): self.size = size\n",
}
RELATIVE = {
    "run.py": "import runpy\nrunpy.run_module('pkg.main', run_name='__main__', alter_sys=True)\n",
    "pkg/main.py": (
        "from prefect import flow\nfrom .steps import SIZES\n"
        "@flow\ndef train():\n    from . import lazily\n    return lazily.size + SIZES[0]\n"
        "if __name__ == '__main__':\n"
        "    from prefect_ray_worker.bundles.packing import pack\n"
        "    print(pack(train, {}).content.hex())\n"
    ),
    "pkg/__init__.py": "",
    "pkg/lazily.py": "size = 2",
    "pkg/steps.py": "SIZES = [1]",
}


@pytest.mark.parametrize("files", [ELSEWHERE, RELATIVE], ids=["of an argument", "relative"])
def test_module_that_the_imports_of_the_flow_do_not_name(
    tmp_path: Path, forks: Forks, files: dict[str, str]
) -> None:
    write(tmp_path / "laptop", files)
    packed = bytes.fromhex(forks.run_script(tmp_path / "laptop", "run.py"))
    assert run_on_a_node(forks, tmp_path, packed) == "3"


def test_modules_behind_links_and_namespaces_of_several_folders(
    tmp_path: Path, forks: Forks
) -> None:
    """They travelled under the name of the link's target, and without the second folder."""
    app, shared = tmp_path / "laptop", tmp_path / "shared"
    write(shared, {"v2/src/inner.py": "x = 1", "common.py": "y = 2"})
    write(tmp_path, {"a/acme/core.py": "z = 3", "b/acme/flows.py": "w = 4"})
    imports = "import helpers, mylib.inner, acme.core, acme.flows"
    run = (
        f"import sys\nsys.path[:0] = ['../a', '../b']\nfrom prefect import flow\n{imports}\n"
        "from prefect_ray_worker.bundles.packing import pack\n"
        f"@flow\ndef train():\n    {imports}\n"
        "    return [mylib.inner.x, helpers.y, acme.core.z, acme.flows.w]\n"
        "if __name__ == '__main__': print(pack(train, {}).content.hex())\n"
    )
    write(app, {"run.py": run})
    (app / "mylib").symlink_to(shared / "v2" / "src")
    (app / "helpers.py").symlink_to(shared / "common.py")
    packed = bytes.fromhex(forks.run_script(app, "run.py"))
    assert run_on_a_node(forks, tmp_path, packed) == "[1, 2, 3, 4]"


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def run_on_a_node(forks: Forks, folder: Path, packed: bytes) -> str:
    """Unpack a bundle in a process of its own, run its flow, and return what that returned."""
    (folder / "node").mkdir()
    (folder / "bundle").write_bytes(packed)
    run = (
        "import os, sys\nfrom pathlib import Path\nfrom prefect_ray_worker.bundles import content\n"
        "b = content.unpack(Path('../bundle').read_bytes(), Path().resolve())\n"
        "os.chdir(b.folder)\nsys.path[:0] = b.paths\n"
        "packed = content.unpickle(b)\nprint(packed.fn(**packed.parameters))"
    )
    return forks.run(run, folder / "node")[0].strip()


def test_nothing_of_the_settings_is_in_a_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    key = f"pnu_{uuid4().hex}"
    monkeypatch.setenv("PREFECT_API_KEY", key)
    with temporary_settings({PREFECT_API_KEY: key}):
        bundle = pack(takes, {"plain": 1})
    with zipfile.ZipFile(io.BytesIO(bundle.content)) as archive:
        assert key.encode() not in b"".join(archive.read(n) for n in archive.namelist())


def test_members_that_lead_out_are_refused(tmp_path: Path) -> None:
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("manifest.json", json.dumps(dataclasses.asdict(content.Manifest())))
            archive.writestr("flow.pickle", cloudpickle.dumps(1))
            archive.writestr("files/../../out", "x")
        packed = file.getvalue()
    with pytest.raises(content.BundleDamaged, match="leads out"):
        content.unpack(packed, tmp_path)
