"""`AttendedRuns`: one question for all runs, and never an answer about an earlier attempt."""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import anyio

from prefect_ray_worker.runs.attended import AttendedRuns
from tests.waiting import wait_until

RUN = uuid4()
INTERVAL = 0.05


class Prefect:
    """Answers which runs are being cancelled, as soon as it is let."""

    def __init__(self) -> None:
        self.cancelling = {RUN}
        self.questions = 0
        self.answers = 0
        self.fails = False
        self.open = anyio.Event()
        self.open.set()

    async def ask(self, _: Collection[UUID]) -> set[UUID]:
        self.questions += 1
        found = set(self.cancelling)
        await self.open.wait()
        self.answers += 1
        if self.fails:
            raise RuntimeError("the API is away")
        return found


@asynccontextmanager
async def asking(prefect: Prefect) -> AsyncIterator[AttendedRuns]:
    runs = AttendedRuns(prefect.ask, interval=INTERVAL, what="which runs are being cancelled")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(runs.run)
        yield runs
        tasks.cancel_scope.cancel()


async def test_a_run_is_known_while_it_is_attended() -> None:
    prefect = Prefect()
    async with asking(prefect) as runs:
        with runs.attended(RUN), runs.attended(uuid4()):
            await wait_until(lambda: RUN in runs, description="the cancelling is known")
        asked = prefect.questions
        await anyio.sleep(INTERVAL * 4)
        assert prefect.questions <= asked + 1, "nobody asks for nobody"


async def test_an_answer_about_an_earlier_attempt_is_forgotten() -> None:
    """A cancelled run that is run again must not be stopped for its first attempt's cancelling."""
    prefect = Prefect()
    async with asking(prefect) as runs:
        with runs.attended(RUN):
            await wait_until(lambda: RUN in runs, description="the cancelling is known")
        prefect.cancelling = set()
        with runs.attended(RUN):
            assert RUN not in runs


async def test_a_late_answer_about_an_earlier_attempt_is_not_believed() -> None:
    """The question was on its way when the first attempt ended and the second began."""
    prefect = Prefect()
    async with asking(prefect) as runs:
        prefect.open = anyio.Event()
        with runs.attended(RUN):
            await wait_until(lambda: prefect.questions, description="a question")
        prefect.cancelling = set()
        with runs.attended(RUN):
            prefect.open.set()
            await wait_until(lambda: prefect.answers, description="the late answer")
            assert RUN not in runs
            prefect.cancelling = {RUN}
            await wait_until(lambda: RUN in runs, description="the second cancelling is known")


async def test_the_end_of_one_attempt_does_not_end_the_attention_to_the_next() -> None:
    prefect = Prefect()
    prefect.cancelling = set()
    async with asking(prefect) as runs:
        first = runs.attended(RUN)
        first.__enter__()
        with runs.attended(RUN):
            first.__exit__(None, None, None)
            prefect.cancelling = {RUN}
            await wait_until(lambda: RUN in runs, description="the cancelling is known")


async def test_an_api_that_is_away_is_asked_again() -> None:
    prefect = Prefect()
    prefect.fails = True
    async with asking(prefect) as runs:
        with runs.attended(RUN):
            await wait_until(lambda: prefect.answers >= 2, description="a second question")
            prefect.fails = False
            await wait_until(lambda: RUN in runs, description="the cancelling is known")
