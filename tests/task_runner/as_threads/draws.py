"""Random numbers: what a flow and its tasks draw."""

import random
import time
from random import random as draw
from typing import Any

from prefect import flow, task


class Sampler:
    shared = random.Random()

    def __init__(self) -> None:
        self.label = "as loaded"
        self.numbers = random.Random()


NUMBERS = random.Random()
SEEDED = random.Random(3)
SAMPLER = Sampler()
SET_LATER: Any = None


@task
def draws() -> list[float]:
    return drawn()


def drawn() -> list[float]:
    found = (NUMBERS, SAMPLER.numbers, Sampler.shared)
    return [draw(), random.random(), *(numbers.random() for numbers in found)]


def _flow(runner: Any, body: Any) -> Any:
    return flow(body, name="draws", task_runner=runner)()


def a_task_draws_other_numbers_than_its_flow(runner: Any) -> Any:
    """All task processes went on from the state that the flow's generators had at the submit."""

    def body() -> Any:
        theirs = draws.submit().result()
        return [number in theirs for number in drawn()]

    return _flow(runner, body)


def tasks_draw_different_numbers(runner: Any) -> Any:
    @task
    def slowly(_: int) -> list[float]:
        time.sleep(0.3)  # so that a second process takes some of them
        return drawn()

    def body() -> Any:
        numbers = [n for found in slowly.map(range(8)).result() for n in found]
        return len(set(numbers))

    return _flow(runner, body)


def a_seed_of_the_file(runner: Any) -> Any:
    @task
    def seeded() -> float:
        return SEEDED.random()

    return _flow(runner, lambda: seeded.submit().result())


def a_generator_that_the_flow_sets(runner: Any) -> Any:
    @task
    def from_the_flow() -> Any:
        return SET_LATER.random(), SAMPLER.label

    def body() -> Any:
        global SET_LATER
        SET_LATER, SAMPLER.label = random.Random(7), "by the flow"
        return from_the_flow.submit().result()

    return _flow(runner, body)
