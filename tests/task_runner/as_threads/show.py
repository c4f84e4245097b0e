"""Runs the behaviours of a script under one task runner and prints what comes of each.

    python -m tests.task_runner.as_threads.show <script> <threads | number of CPUs> <behaviour ...>

The script is loaded as Prefect loads the file of a deployment. A behaviour is a function of the
script that takes the name `runner`.
"""

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
RESULT = "BEHAVIOUR "


def main(script: str, cpus: str, names: list[str]) -> None:
    os.environ["PREFECT__FLOW_ENTRYPOINT"] = f"{FOLDER / script}.py:{names[0]}"
    from prefect.task_runners import ThreadPoolTaskRunner
    from prefect.utilities.importtools import load_script_as_module

    module = load_script_as_module(str(FOLDER / f"{script}.py"))
    around: Any = nullcontext()
    runner: Any = ThreadPoolTaskRunner()
    if cpus != "threads":
        from prefect_ray_worker import RayTaskRunner

        options = {"num_cpus": int(cpus), "include_dashboard": False, "log_to_driver": False}
        runner = RayTaskRunner("local", {**options, "object_store_memory": 150_000_000})
        around = runner.duplicate()  # one Ray for all of them
    with around:
        for name in names:
            try:
                result = vars(module)[name](runner.duplicate())
            except Exception as exc:
                result = f"{type(exc).__name__}: {exc}"
            print(RESULT + json.dumps([name, result]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
