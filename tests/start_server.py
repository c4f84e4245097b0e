"""`prefect server start` for tests: with the tables of an earlier server, in memory that stays.

Migrations take seconds of CPU. The first server of a version of Prefect on this machine keeps a
copy of its empty database; the others, if theirs is in memory, begin with that.

A database in memory goes with its last connection, and Prefect has one only. SQLAlchemy ends it if
a task is cancelled while it waits for an answer, as those of a worker whose channel closes are
(3.8.8); every request after that finds no tables. So this process holds a connection of its own.
"""

import os
import sqlite3
import sys
import tempfile
from contextlib import closing
from datetime import timedelta
from functools import partial
from pathlib import Path

import prefect
import uvicorn
from prefect.server.api import background_workers
from prefect.server.api.server import create_app
from prefect.server.database.interface import PrefectDBInterface

_migrate = PrefectDBInterface.create_db
_held = sqlite3.connect("file::memory:?cache=shared", uri=True, check_same_thread=False)


def _copy() -> Path:
    name = f"prwt-tables-of-prefect-{prefect.__version__}-{os.geteuid()}.db"
    return Path(tempfile.gettempdir()) / name


async def _create(db: PrefectDBInterface) -> None:
    if not db.database_config.is_inmemory():
        await _migrate(db)
    elif _copy().exists():
        with closing(sqlite3.connect(f"file:{_copy()}?mode=ro", uri=True)) as copy:
            copy.backup(_held)
    else:
        await _migrate(db)
        made = _copy().with_suffix(f".{os.getpid()}")
        _held.execute("VACUUM INTO ?", (str(made),))
        made.replace(_copy())


if __name__ == "__main__":
    # Four times a second by default, for a hundredth of a core.
    background_workers.Worker = partial(
        background_workers.Worker,
        minimum_check_interval=timedelta(seconds=1),
        scheduling_resolution=timedelta(seconds=1),
    )
    PrefectDBInterface.create_db = _create  # type: ignore[method-assign]
    uvicorn.run(
        create_app(final=True), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning"
    )
