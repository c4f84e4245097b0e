"""Runs behaviours under one task runner and prints the result of each.

    python -m tests.task_runner.as_threads.show <where> <file>:<behaviour> ...

Where: `threads`, a number of CPUs of a Ray of its own, or `far` for the cluster at RAY_ADDRESS. The
first file is loaded as Prefect loads that of a deployment; the others are modules beside it. A
behaviour is a function that takes `runner`.
"""

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
RESULT = "BEHAVIOUR "


def main(where: str, behaviours: list[str]) -> None:
    os.environ["PREFECT__FLOW_ENTRYPOINT"] = behaviours[0]
    from prefect.task_runners import ThreadPoolTaskRunner
    from prefect.utilities.importtools import load_script_as_module

    files = dict.fromkeys(behaviour.partition(":")[0] for behaviour in behaviours)
    modules = {file: load_script_as_module(file) for file in files}
    around: Any = nullcontext()
    runner: Any = ThreadPoolTaskRunner()
    if where != "threads":
        from prefect_ray_worker import RayTaskRunner

        options: dict[str, Any] = {"log_to_driver": False}
        if where != "far":
            options |= {"num_cpus": int(where), "include_dashboard": False}
            options["object_store_memory"] = 150_000_000
        runner = RayTaskRunner("auto" if where == "far" else "local", options)
        around = runner.duplicate()  # one Ray for all of them
    with around:
        for behaviour in behaviours:
            file, _, name = behaviour.partition(":")
            try:
                result = vars(modules[file])[name](runner.duplicate())
            except Exception as exc:
                result = f"{type(exc).__name__}: {exc}"
            print(RESULT + json.dumps([behaviour, result]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
