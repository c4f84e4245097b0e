"""`prefect server start` for tests: with the tables of an earlier server, in memory that stays.

Migrations take seconds of CPU. The first server of a version of Prefect on this machine keeps a
copy of its empty database; the others, if theirs is in memory, begin with that.

A database in memory goes with its last connection, and Prefect has one only. SQLAlchemy ends it if
a task is cancelled while it waits for an answer, as those of a worker whose channel closes are
(3.8.8); every request after that finds no tables. So this process holds a connection of its own,
and the next one waits until the last has ended: it would find tables locked, which is an error 500.
"""

import json
import os
import sqlite3
import sys
import tempfile
import threading
from contextlib import closing
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import prefect
import uvicorn
from prefect.server.api import background_workers
from prefect.server.api.server import create_app
from prefect.server.database import configurations
from prefect.server.database.interface import PrefectDBInterface
from prefect.utilities.schema_tools import validation

_SECONDS = 3
_Validator: Any = validation._VALIDATOR  # pyright: ignore[reportPrivateUsage]
_check = _Validator.check_schema
_checked: set[str] = set()
_migrate = PrefectDBInterface.create_db
_make_engine = configurations.create_async_engine
_held = sqlite3.connect("file::memory:?cache=shared", uri=True, check_same_thread=False)


class _Alone(sqlite3.Connection):
    """A connection that begins when the last one has ended."""

    _turn = threading.Lock()

    def __init__(self, *args: Any, **options: Any) -> None:
        self._has_turn = self._turn.acquire(timeout=_SECONDS)
        super().__init__(*args, **options)

    def close(self) -> None:
        super().close()
        if self._has_turn:
            self._has_turn = False
            self._turn.release()

    __del__ = close  # for one whose opening was cancelled


def _engine(url: str, **options: Any) -> Any:
    if ":memory:" in url:
        options["connect_args"] = {**options.get("connect_args", {}), "factory": _Alone}
    return _make_engine(url, **options)


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


def _check_once(schema: Any, **options: Any) -> None:
    text = json.dumps(schema, sort_keys=True)
    if text not in _checked:
        _check(schema, **options)
        _checked.add(text)


if __name__ == "__main__":
    # Four times a second by default, for a hundredth of a core.
    background_workers.Worker = partial(
        background_workers.Worker,
        minimum_check_interval=timedelta(seconds=1),
        scheduling_resolution=timedelta(seconds=1),
    )
    # Twice for each run that is created, the pool's variables: 20 ms.
    _Validator.check_schema = _check_once
    configurations.create_async_engine = _engine
    PrefectDBInterface.create_db = _create  # type: ignore[method-assign]
    uvicorn.run(
        create_app(final=True), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning"
    )
