"""A script's flow is in the cluster what it is here: its classes, its annotations, its names."""

import dataclasses
import pickle
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from prefect_ray_worker.bundles.identity import dump_value
from prefect_ray_worker.bundles.pickling import dump
from tests.forks import Forks
from tests.unit.bundles.test_packing import main_flow, write

SCRIPT = """
from __future__ import annotations
import pickle, typing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Optional
from prefect import flow

@dataclass
class Size:
    path: Path
    unit: Literal["b", "Other"] = "b"
    more: list[int] = field(default_factory=list)

class Other: ...

@dataclass
class Model:
    best: "Optional[Other]" = None

def square(n): return n * n

@flow
def train(size: Size, folder: Path, other: Optional[Other] = None):
    assert isinstance(size.path, Path) and isinstance(folder, Path)
    assert type(pickle.loads(pickle.dumps(Model()))) is Model
    assert typing.get_type_hints(Model)["best"].__args__[0].__name__ == "Other"
    with ProcessPoolExecutor(1) as pool:
        return list(pool.map(square, [3]))

if __name__ == "__main__":
    from prefect_ray_worker.bundles.packing import pack
    given = {"size": Size(Path("a")), "folder": Path("b")}
    print(pack(train, given).content.hex())
"""
# As a driver does it.
NODE = """
from pathlib import Path
from prefect_ray_worker.bundles import content
packed = content.unpickle(content.unpack(Path("bundle").read_bytes(), Path().resolve()))
content.be_main(packed)
flow = content.make_flow(packed)
"""
GIVEN = 'flow.validate_parameters({"size": {"path": "a"}, "folder": "b"})'


@pytest.mark.parametrize("future", [True, False], ids=["annotations are texts", "and are not"])
def test_script_is_found_where_others_look_for_it(
    tmp_path: Path, forks: Forks, future: bool
) -> None:
    """Parameters were refused, and `pickle.dumps` failed in the middle of a run."""
    script = SCRIPT if future else SCRIPT.replace("from __future__ import annotations\n", "")
    write(tmp_path, {"script.py": script})
    (tmp_path / "bundle").write_bytes(bytes.fromhex(forks.run_script(tmp_path, "script.py")))
    assert forks.run(f"{NODE}print(flow.fn(**{GIVEN}))", tmp_path)[0].strip() == "[9]"


def test_what_only_an_annotation_names_must_not_keep_a_flow_from_being_sent() -> None:
    made = main_flow(
        "import threading\nclass Busy: lock = threading.Lock()\n"
        "@flow(validate_parameters=False)\ndef run(b: 'Busy'): ..."
    )
    assert dump(made.fn).content


def test_what_only_annotations_name_need_not_be_on_the_node(tmp_path: Path, forks: Forks) -> None:
    script = (
        "from __future__ import annotations\nimport sys\nsys.path.append('site-packages')\n"
        "import laptop\nfrom laptop import Plot\nAny = Plot | None\nfrom prefect import flow\n"
        "def helper(plot: laptop.Plot | None = None): return 1\n"
        "@flow(validate_parameters=False)\ndef train(plot: Plot = None) -> Any: return helper()\n"
        "from prefect_ray_worker.bundles.packing import pack\n"
        "print(pack(train, {}).content.hex())\n"
    )
    write(tmp_path, {"script.py": script, "site-packages/laptop.py": "class Plot: ..."})
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "bundle").write_bytes(
        bytes.fromhex(forks.run_script(tmp_path, "script.py"))
    )
    assert forks.run(f"{NODE}print(flow.fn())", tmp_path / "node")[0].strip() == "1"


class Calls:
    """Calls a function when it is pickled."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function

    def __reduce__(self) -> tuple[type[int], tuple[()]]:
        self._function()
        return int, ()


def test_script_goes_by_value_from_two_threads_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """cloudpickle's list of what goes by value is one for all threads."""
    script = types.ModuleType("__prefect_loader_x")
    exec("class Model: ...", vars(script))
    first, second, ended = threading.Event(), threading.Event(), threading.Event()

    def dump_first() -> None:
        dump(Calls(lambda: first.set() or second.wait(0.2)))
        ended.set()

    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, script.__name__, script)
        thread = threading.Thread(target=dump_first)
        thread.start()
        first.wait(5)
        dumped = dump([Calls(lambda: second.set() or ended.wait(5)), script.Model])
        thread.join()
    assert pickle.loads(dumped.content)[1].__name__ == "Model"


def test_dataclass_of_a_script_is_one_where_its_value_returns() -> None:
    """pydantic took each of its fields for one with a default and a factory."""
    made = main_flow(
        "from dataclasses import dataclass\n@dataclass\nclass Size: n: int\n"
        "@flow\ndef run(): return Size(3)"
    )
    again = pickle.loads(dump_value(made.fn()))
    assert dataclasses.fields(again)[0].default is dataclasses.MISSING
