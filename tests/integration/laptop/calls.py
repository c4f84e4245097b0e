"""What a user runs on a laptop: flows without a deployment, called by the first argument."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

from parts import maths
from prefect import flow, tags, task

from prefect_ray_worker import RayTaskRunner, ray_job

POOL = os.environ["POOL"]


class Model:
    def __init__(self, weight: int) -> None:
        self.weight = weight


@task
def scaled(number: int, by: int) -> int:
    return number * by


@ray_job(work_pool=POOL, include_files=["config.yaml"], labels={"team": "research"})
@flow(log_prints=True)
def train(rows: int, model: Model | None = None) -> Model:
    print(f"training in {Path.cwd()} with {Path('config.yaml').read_text().strip()}")
    weight = model.weight if model else 1
    return Model(scaled(maths.twice(rows), weight))


@ray_job(work_pool=POOL)
@flow(log_prints=True, on_cancellation=[lambda *_: print("the hook of the flow")])
def waits() -> None:
    print("waiting")
    time.sleep(120)


@ray_job(work_pool=POOL)
@flow
async def asynchronous(number: int) -> int:
    from parts.maths import twice

    return twice(number)


@ray_job(work_pool=POOL)
@flow(task_runner=RayTaskRunner())
def fans_out(count: int) -> int:
    return sum(where.submit(n).result() for n in range(count))


@task
def where(number: int) -> int:
    return maths.twice(number) + len(Path("parts/maths.py").read_text()) * 0


@ray_job(work_pool=POOL)
@flow
def large(mib: int) -> bytes:
    return os.urandom(mib * 1024 * 1024)


def fail() -> None:
    try:
        train(-1)
    except maths.TooFew as exc:
        print("raised", exc, len(exc.__notes__))


def called() -> None:
    with tags("from-a-laptop"):
        model = train(4, Model(5))
    print("value", type(model) is Model, model.weight)


def submitted() -> None:
    future = asynchronous.submit(3)
    print("value", future.result(), future.state.name)
    again = asyncio.run(asynchronous.retry(future))
    print("again", again)


def dies(step: str) -> None:
    """End as a laptop does that is closed, at a step of the call."""
    from prefect_ray_worker.adhoc import calling
    from prefect_ray_worker.bundles import carriers

    if step == "header":
        write = carriers.write_input
        carriers.write_input = lambda *a: (
            os.kill(os.getpid(), signal.SIGKILL) if a[2] == carriers.HEADER_KEY else write(*a)
        )
    else:
        calling.send_bundle = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    train(1)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["called"]:
            called()
        case ["failed"]:
            fail()
        case ["waits"]:
            waits()
        case ["async"]:
            print("value", asyncio.run(asynchronous(21)))
        case ["submitted"]:
            submitted()
        case ["fans_out"]:
            print("value", fans_out(4))
        case ["large", mib]:
            print("value", len(large(int(mib))))
        case ["dies", step]:
            dies(step)
        case other:
            sys.exit(f"no such call: {other}")
