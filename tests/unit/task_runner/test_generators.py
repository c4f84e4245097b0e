"""Random generators in pickles: those of numpy, which the project itself does not install."""

import random
import sys
from types import ModuleType
from typing import Any

import pytest

from prefect_ray_worker.task_runner.generators import PackedGlobal
from prefect_ray_worker.task_runner.pickling import pack, pack_whole, unpack


class Generator:
    """Has a state that changes with each draw."""

    def __init__(self) -> None:
        self.state = 0

    def random_sample(self) -> int:
        self.state += 1
        return self.state


class RandomState(Generator): ...


class BitGenerator: ...


@pytest.fixture(autouse=True)
def numpys(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A stand-in for the module, if there is none."""
    module = ModuleType("numpy.random")
    made: dict[str, Any] = {kind.__name__: kind for kind in (Generator, RandomState, BitGenerator)}
    vars(module).update(made, random_sample=RandomState().random_sample)
    monkeypatch.setitem(sys.modules, "numpy.random", module)
    return module


def test_a_draw_of_numpys_generator_does_not_change_a_global() -> None:
    numbers = Generator()
    value = {"numbers": numbers, "label": "a"}
    before = PackedGlobal.of(value, pack_whole)
    numbers.random_sample()
    after = PackedGlobal.of(value, pack_whole)
    assert after.is_as(before)
    assert unpack(after.packed)["numbers"].state == 1
    assert not PackedGlobal.of({**value, "label": "b"}, pack_whole).is_as(before)
    assert not PackedGlobal.of({**value, "numbers": RandomState()}, pack_whole).is_as(before)


def test_numpys_own_generator_is_that_of_each_process(numpys: ModuleType) -> None:
    draw = numpys.random_sample
    assert unpack(pack(draw)).__self__ is draw.__self__


def test_a_generator_as_a_parameter_has_its_state() -> None:
    numbers = random.Random(1)
    numbers.random()
    assert unpack(pack(numbers)).getstate() == numbers.getstate()
