"""What a user runs on a laptop: flows without a deployment, called by the first argument."""

import asyncio
import atexit
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from parts import maths
from prefect import flow, get_client, tags, task

from prefect_ray_worker import RayTaskRunner, ray_job, remote_options
from prefect_ray_worker.errors import AnswerMissing

POOL = os.environ["POOL"]


class Model:
    def __init__(self, weight: int) -> None:
        self.weight = weight
        self.made_at = time.time()


@task
def scaled(number: int, by: int) -> int:
    return number * by


def says_goodbye(*_: Any) -> None:
    print("line of the hook")


@ray_job(work_pool=POOL, include_files=["config.yaml"], labels={"team": "research"})
@flow(log_prints=True, on_completion=[says_goodbye])
def train(rows: int, model: Model | None = None) -> Model:
    print(f"training in {Path.cwd()} with {Path('config.yaml').read_text().strip()}")
    weight = model.weight if model else 1
    result = scaled(maths.twice(rows), weight)
    atexit.register(sys.stdout.write, "line at the exit\n")
    for number in range(50):
        print("line", number, "of a print")
        sys.stdout.write(f"line {number} of a write\n")
    subprocess.run(["echo", "line of a child"], check=True)
    return Model(result)


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


@task
def elsewhere(number: int) -> tuple[int, bool]:
    found = Path("config.yaml").read_text() == "rate: 7\n" and Path("parts/maths.py").exists()
    return maths.twice(number), found


@ray_job(work_pool=POOL, include_files=["config.yaml"])
@flow(task_runner=RayTaskRunner())
def spreads(count: int) -> list[tuple[int, bool]]:
    with remote_options(resources={"elsewhere": 0.1}):
        futures = [elsewhere.submit(n) for n in range(count)]
    return [future.result() for future in futures]


@ray_job(work_pool=POOL, runtime_env={"uv": ["prefect==3.8.2"]})
@flow(log_prints=True)
def with_older_prefect() -> str:
    import prefect

    print("here is", prefect.__version__)
    return prefect.__version__


@flow
def imports(name: str) -> str:
    import importlib

    return importlib.import_module(name).__version__


@ray_job(work_pool=POOL)
@flow
def large(mib: int) -> bytes:
    return os.urandom(mib * 1024 * 1024)


@ray_job(work_pool=POOL)
@flow
def sends(content: bytes) -> int:
    return len(content)


@ray_job(work_pool=POOL, stop_grace_seconds=5)
@flow(log_prints=True)
def stubborn() -> None:
    deadline = time.monotonic() + 120
    print("going on")
    while time.monotonic() < deadline:
        try:
            time.sleep(1)
        except BaseException:
            print("going on all the same")


@ray_job(work_pool=POOL)
@flow
def dies_there() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@flow
def parent() -> int:
    return asynchronous_twice(4)


@ray_job(work_pool=POOL)
@flow
def naps() -> None:
    time.sleep(8)


@flow
def calls_one_after_the_other() -> None:
    naps()
    naps()


@ray_job(work_pool=POOL)
@flow
def asynchronous_twice(number: int) -> int:
    return maths.twice(number)


def states() -> None:
    state = asynchronous_twice(3, return_state=True)
    print(state.name, state.result())
    state = asynchronous_twice(-3, return_state=True)
    print(state.name, type(state.result(raise_on_failure=False)).__name__)
    try:
        dies_there()
    except Exception as exc:
        print("crashed", type(exc).__name__, exc)


def large_value(mib: str) -> None:
    try:
        print("value", len(large(int(mib))))
    except AnswerMissing as exc:
        print("AnswerMissing", exc)


def fail() -> None:
    try:
        train(-1)
    except maths.TooFew as exc:
        print("raised", exc, len(exc.__notes__))


def called() -> None:
    with tags("from-a-laptop"):
        model = train(4, Model(5))
    print("value", type(model) is Model, model.weight)
    print("waited", time.time() - model.made_at)


def submitted() -> None:
    future = asynchronous.submit(3)
    print("value", future.result(), future.state.name)
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(future.flow_run_id)
    again = asyncio.run(asynchronous.retry(run))
    print("again", again)


def dies(step: str) -> None:
    """End as a laptop does that is closed, at a step of the call."""
    from prefect_ray_worker.adhoc import calling
    from prefect_ray_worker.bundles import carriers

    steps = ["created", "parts", "header", "unscheduled", "scheduled"]
    keys = {"parts": f"{carriers.HEADER_KEY}-part-1", "header": carriers.HEADER_KEY}
    send, write, make_due = calling.send_bundle, carriers.write_input, calling._make_due

    def die_at(name: str, act: Callable[..., Any], *arguments: Any) -> Any:
        if name == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return act(*arguments)

    def write_or_die(*arguments: Any) -> None:
        die_at(step if arguments[2] == keys.get(step) else "", write, *arguments)

    calling.send_bundle = partial(die_at, "created", send)
    carriers.write_input = write_or_die
    calling._make_due = partial(die_at, "unscheduled", make_due)
    train.submit(steps.index(step), Model(os.urandom(1024 * 1024)))
    die_at("scheduled", print)


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
            large_value(mib)
        case ["sends", mib]:
            print("value", sends(os.urandom(int(mib) * 1024 * 1024)))
        case ["sends_twice", mib]:
            content = os.urandom(int(mib) * 1024 * 1024)
            futures = [sends.submit(content), sends.submit(content)]
            print("values", [future.result() for future in futures])
        case ["stubborn"]:
            stubborn()
        case ["parent"]:
            print("value", parent())
        case ["states"]:
            states()
        case ["spreads"]:
            print("value", spreads(2))
        case ["older"]:
            print("value", with_older_prefect())
        case ["imports", name, dependencies]:
            print("value", ray_job(work_pool=POOL, dependencies=dependencies)(imports)(name))
        case ["dies", step]:
            dies(step)
        case other:
            sys.exit(f"no such call: {other}")
