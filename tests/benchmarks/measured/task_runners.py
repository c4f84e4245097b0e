"""Runs flows with one task runner, and prints what they took.

python -m tests.benchmarks.measured.task_runners <runner> <cpus> <tasks> <server's pid> <part> ...

`ray` is no task runner: the same functions, as plain Ray runs them. It has the part `large` only.
"""

import json
import re
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
from prefect import flow, get_client, task, unmapped
from prefect.client.orchestration import SyncPrefectClient
from prefect.futures import wait
from prefect.runtime import flow_run

Found = dict[str, float]
MB = 1_000_000
# Both are 50 MB each: 2 GB in Ray's store, and one value.
LARGE, MANY = 40, 300
# The server has worked off what it has got when it uses less of a core than this share.
_IDLE_SHARE, _IDLE_SECONDS, _MOST_SECONDS = 0.1, 2.0, 120.0
_LOOK_SECONDS = 0.1


@task
def nothing(x: Any) -> Any:
    return x


@task
async def nothing_async(x: int) -> int:
    return x


@task
def short(x: int) -> int:
    time.sleep(0.1)
    return x


@task
def gather(xs: list[int]) -> int:
    return len(xs)


@task
def large(x: int) -> bytes:
    return bytes([x]) * (50 * MB)


@task
def length(x: bytes) -> int:
    return len(x)


@task
def length_of_one(_: int, x: bytes) -> int:
    return len(x)


def make(name: str, cpus: int) -> Any:
    if name == "prefect_ray_worker":
        from prefect_ray_worker import RayTaskRunner

        return RayTaskRunner("local", {"num_cpus": cpus, "include_dashboard": False})
    if name == "prefect_ray":
        from prefect_ray import RayTaskRunner as Theirs

        init = {"address": "local", "num_cpus": cpus, "include_dashboard": False}
        return Theirs(init_kwargs=init)
    if name == "prefect_dask":
        from prefect_dask import DaskTaskRunner

        return DaskTaskRunner(cluster_kwargs={"n_workers": cpus, "threads_per_worker": 1})
    from prefect.task_runners import ThreadPoolTaskRunner

    return ThreadPoolTaskRunner()


def cpu_seconds() -> Found:
    """Return the CPU time so far of the driver, the tasks' processes, Ray or Dask, and Prefect."""
    found = dict.fromkeys(("driver", "task processes", "Ray", "Prefect server"), 0.0)
    me = psutil.Process()
    server = psutil.Process(int(sys.argv[4]))
    for process in (me, server, *server.children(), *me.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            found[_role(process, me, server)] += times.user + times.system
    return found


def _role(process: psutil.Process, me: psutil.Process, server: psutil.Process) -> str:
    if process == me:
        return "driver"
    if process == server or process.ppid() == server.pid:
        return "Prefect server"
    words = " ".join(process.cmdline())
    is_ray = any(word in words for word in ("raylet/raylet", "gcs_server", "_private", "dashboard"))
    return "Ray" if is_ray else "task processes"


def rate(count: int, submit: Callable[[], list[Any]]) -> tuple[float, float]:
    """Return tasks per second, and the driver's milliseconds of CPU for each submit."""
    begun = time.perf_counter()
    cpu = time.thread_time()
    futures = submit()
    submitted = (time.thread_time() - cpu) * 1000 / count
    wait(futures)
    for future in futures:
        future.result()
    return count / (time.perf_counter() - begun), submitted


def chain(length: int) -> list[Any]:
    future = nothing.submit(0)
    for _ in range(length - 1):
        future = nothing.submit(future)
    return [future]


def warm(cpus: int) -> None:
    rate(8 * cpus, lambda: nothing.map(range(8 * cpus)))


def no_op(found: Found, count: int, _: int) -> None:
    settle()
    with get_client(sync_client=True) as client:
        before, shown = cpu_seconds(), shown_completed(client)
        begun = time.perf_counter()
        found["no-op, tasks/s"], found["driver's CPU for a submit, ms"] = rate(
            count, lambda: [nothing.submit(i) for i in range(count)]
        )
        await_shown(client, shown + count)
        found["no-op until the API shows all, tasks/s"] = count / (time.perf_counter() - begun)
    settle()
    for name, seconds in cpu_seconds().items():
        found[f"CPU for a task, ms: {name}"] = (seconds - before[name]) * 1000 / count
    with paused_server():
        found["no-op beside a paused server, tasks/s"], _ = rate(
            count, lambda: [nothing.submit(i) for i in range(count)]
        )
    settle()


def shown_completed(client: SyncPrefectClient) -> int:
    """Return how many tasks of this flow run the API shows as completed."""
    which = {
        "flow_runs": {"id": {"any_": [flow_run.id]}},
        "task_runs": {"state": {"type": {"any_": ["COMPLETED"]}}},
    }
    return client.request("POST", "/task_runs/count", json=which).json()


def await_shown(client: SyncPrefectClient, count: int) -> None:
    """Wait until the API shows so many: it is behind what the flow knows."""
    deadline = time.monotonic() + _MOST_SECONDS
    while (shown := shown_completed(client)) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"The API shows {shown} of {count} tasks")
        time.sleep(_LOOK_SECONDS)


@contextmanager
def paused_server() -> Generator[None]:
    """Stop the server for a while: it takes no CPU, as if it ran on another machine.

    Tasks ask it nothing before they run or after; their events wait for it.
    """
    server = psutil.Process(int(sys.argv[4]))
    server.suspend()
    try:
        yield
    finally:
        server.resume()


def settle() -> None:
    """Wait until the server has worked off what it has got."""
    deadline = time.monotonic() + _MOST_SECONDS
    while time.monotonic() < deadline:
        before = cpu_seconds()["Prefect server"]
        time.sleep(_IDLE_SECONDS)
        if cpu_seconds()["Prefect server"] - before < _IDLE_SHARE * _IDLE_SECONDS:
            return


def async_no_op(found: Found, count: int, _: int) -> None:
    found["async no-op, tasks/s"], _ = rate(count, lambda: list(nothing_async.map(range(count))))


def waits(found: Found, count: int, cpus: int) -> None:
    few = max(10 * cpus, count // 10)
    found["100 ms of sleep, tasks/s"], _ = rate(few, lambda: list(short.map(range(few))))


def chains(found: Found, count: int, _: int) -> None:
    few = max(count // 5, 10)
    found["a chain, tasks/s"], _ = rate(few, lambda: chain(few))


def fan_in(found: Found, count: int, _: int) -> None:
    found["fan-in of all, tasks/s"], _ = rate(
        count + 1, lambda: [gather.submit(nothing.map(range(count)))]
    )


def ten_thousand(found: Found, _: int, __: int) -> None:
    before = psutil.Process().memory_info().rss
    futures = nothing.map(range(10_000))
    begun = time.perf_counter()
    wait(futures)
    found["map of 10,000: wait after submit, s"] = time.perf_counter() - begun
    after = psutil.Process().memory_info().rss
    found["map of 10,000: driver memory per task, kB"] = (after - before) / 10_000 / 1000


def large_results(found: Found, _: int, __: int) -> None:
    def passed_on() -> int:
        futures = [large.submit(i) for i in range(LARGE)]
        return sum(length.map(futures).result())

    passing(found, passed_on)


def large_results_of_ray(cpus: int) -> Found:
    """Do the same as `large_results` without a task runner."""
    import ray

    ray.init("local", num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    make, measure = ray.remote(large.fn), ray.remote(length.fn)
    ray.get([measure.remote(b"") for _ in range(8 * cpus)])
    found: Found = {}

    def passed_on() -> int:
        # Held, as the futures of a flow are: otherwise Ray reuses the memory of what was read.
        refs = [make.remote(i) for i in range(LARGE)]
        return sum(ray.get([measure.remote(ref) for ref in refs]))

    passing(found, passed_on)
    return found


def passing(found: Found, passed_on: Callable[[], int]) -> None:
    settle()  # What the parts before have left to the server is not for these tasks to wait for.
    measure_passing(found, f"{LARGE} x 50 MB passed on", passed_on)
    settle()
    with paused_server():
        measure_passing(found, f"{LARGE} x 50 MB passed on beside a paused server", passed_on)


def measure_passing(found: Found, title: str, passed_on: Callable[[], int]) -> None:
    rss, cpu = psutil.Process().memory_info().rss, cpu_seconds()
    begun = time.perf_counter()
    assert passed_on() == LARGE * 50 * MB
    found[f"{title}, s"] = time.perf_counter() - begun
    used = {name: seconds - cpu[name] for name, seconds in cpu_seconds().items()}
    found[f"{title}: CPU of the server for each, ms"] = used.pop("Prefect server") * 1000 / LARGE
    found[f"{title}: CPU of the rest for each, ms"] = sum(used.values()) * 1000 / LARGE
    found[f"{title}: driver grew, MB"] = (psutil.Process().memory_info().rss - rss) / MB


def one_for_many(found: Found, _: int, __: int) -> None:
    value = b"x" * (50 * MB)
    length_of_one.submit(0, value).result()
    for name, submit in (
        ("map", lambda: length_of_one.map(range(MANY), unmapped(value))),
        ("submit", lambda: [length_of_one.submit(i, value) for i in range(MANY)]),
    ):
        title = f"50 MB to each of {MANY} by `{name}`"
        begun, cpu = time.perf_counter(), time.thread_time()
        futures = list(submit())
        found[f"{title}: driver's CPU, s"] = time.thread_time() - cpu
        wait(futures)
        found[f"{title}, s"] = time.perf_counter() - begun
        found[f"{title}: in Ray's store, MB"] = stored()


def stored() -> float:
    """Return how many MB Ray's store holds."""
    import ray
    from ray._private.internal_api import memory_summary

    if not ray.is_initialized():
        return float("nan")
    said = memory_summary(ray.get_runtime_context().gcs_address, stats_only=True)
    found = re.search(r"Plasma memory usage (\d+) MiB", said)
    return float(found.group(1)) * 1024**2 / MB if found else float("nan")


PARTS = {
    "no-op": no_op,
    "async": async_no_op,
    "waits": waits,
    "chain": chains,
    "fan-in": fan_in,
    "map": ten_thousand,
    "large": large_results,
    "one for many": one_for_many,
}


def measure(name: str, cpus: int, count: int, parts: list[str]) -> Found:
    found: Found = {}

    @flow(task_runner=make(name, cpus))
    def measured() -> None:
        begun = time.perf_counter()
        nothing.submit(0).result()
        found["first task, s"] = time.perf_counter() - begun
        warm(cpus)
        for part in parts:
            if part in PARTS:
                PARTS[part](found, count, cpus)

    @flow(task_runner=make(name, cpus))
    def with_large_parameter(text: str) -> None:
        warm(cpus)
        few = max(count // 5, 10)
        found["1 MB flow parameter, tasks/s"], _ = rate(few, lambda: list(nothing.map(range(few))))

    measured()
    if "parameter" in parts:
        with_large_parameter("x" * MB)
    return found


if __name__ == "__main__":
    runner, cpus, tasks, _, *asked = sys.argv[1:]
    is_ray = runner == "ray"
    print(
        json.dumps(
            large_results_of_ray(int(cpus))
            if is_ray
            else measure(runner, int(cpus), int(tasks), asked)
        )
    )
