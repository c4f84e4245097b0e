"""`Forks`: runs code as `python -c` does, without the second that the import of Prefect takes."""

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

_SERVER = """
import json, os, sys, tempfile, traceback
import cloudpickle, prefect, prefect.workers.base
from prefect import flow, task

def run(code, folder):
    os.chdir(folder)
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})

for line in sys.stdin:
    order = json.loads(line)
    files = [tempfile.TemporaryFile("w+") for _ in range(2)]
    child = os.fork()
    if not child:
        for number, file in enumerate(files, start=1):
            os.dup2(file.fileno(), number)
        code = 1
        try:
            run(order["code"], order["folder"])
            code = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    _, status = os.waitpid(child, 0)
    for file in files:
        file.seek(0)
    print(json.dumps([status, *(file.read() for file in files)]), flush=True)
"""


class Forks:
    """A process that has Prefect imported and nothing of ours, and runs code in forks of itself."""

    def __enter__(self) -> Self:
        self._server = subprocess.Popen(
            [sys.executable, "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.communicate()

    def run(self, code: str, folder: Path = Path()) -> tuple[str, str]:
        """Run code in a folder to its end; return what it printed to stdout and stderr."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        order = {"code": code, "folder": str(folder.absolute())}
        print(json.dumps(order), file=self._server.stdin, flush=True)
        status, out, err = json.loads(self._server.stdout.readline())
        assert status == 0, err
        return out, err

    def run_script(self, folder: Path, name: str, *arguments: str) -> str:
        """Run a script as `python <name>` does; return what it printed to stdout."""
        code = (
            "import os, runpy, sys\n"
            f"sys.argv, sys.path[0] = {[name, *arguments]!r}, os.getcwd()\n"
            f"runpy.run_path({name!r}, run_name='__main__')"
        )
        return self.run(code, folder)[0]
