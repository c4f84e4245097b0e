"""`prefect server start` for tests, in a third of the time: with the tables of an earlier server.

Migrations take seconds of CPU. The first server of a version of Prefect on this machine keeps a
copy of its empty database; the others, if theirs is in memory, begin with that.
"""

import os
import sqlite3
import sys
import tempfile
from pathlib import Path
from typing import Any

import prefect
import uvicorn
from prefect.server.api.server import create_app
from prefect.server.database.interface import PrefectDBInterface

_migrate = PrefectDBInterface.create_db


def _copy() -> Path:
    name = f"prwt-tables-of-prefect-{prefect.__version__}-{os.geteuid()}.db"
    return Path(tempfile.gettempdir()) / name


async def _create(db: PrefectDBInterface) -> None:
    if not db.database_config.is_inmemory():
        await _migrate(db)
        return
    if not _copy().exists():
        await _migrate(db)
        await _on_connection(db, _save)
    else:
        await _on_connection(db, _load)


async def _on_connection(db: PrefectDBInterface, act: Any) -> None:
    engine = await db.engine()
    async with engine.connect() as connection:
        opened: Any = (await connection.get_raw_connection()).driver_connection
        # aiosqlite offers a backup from its connection, and none into it.
        await opened._execute(act, opened._conn)


def _save(connection: sqlite3.Connection) -> None:
    made = _copy().with_suffix(f".{os.getpid()}")
    connection.execute("VACUUM INTO ?", (str(made),))
    made.replace(_copy())


def _load(connection: sqlite3.Connection) -> None:
    with sqlite3.connect(f"file:{_copy()}?mode=ro", uri=True) as copy:
        copy.backup(connection)


if __name__ == "__main__":
    PrefectDBInterface.create_db = _create  # type: ignore[method-assign]
    uvicorn.run(
        create_app(final=True), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning"
    )
