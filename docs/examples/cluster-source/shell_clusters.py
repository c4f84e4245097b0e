"""A source of clusters from two shell commands: a Ray head of its own for each run."""

import asyncio
import fcntl
import os
import socket
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import psutil

from prefect_ray_worker.clusters.plugin import ClusterPlugin, MadeCluster, SourceFields
from prefect_ray_worker.ray_api.connection import Connection

START = """cd {folder}; RAY_AUTH_MODE=disabled nohup ray start --head --block --num-cpus={cpus} \
--node-name={name} --port=0 --dashboard-port={ports[0]} --dashboard-agent-listen-port={ports[1]} \
--ray-client-server-port={ports[2]} > log 2>&1 & echo $! > pid"""


class ShellFields(SourceFields):
    folder: Path = Path.home() / ".shell-clusters"
    cpus: int = 1


class ShellClusters(ClusterPlugin[ShellFields]):
    Fields = ShellFields
    only_here = True  # a head listens on the loopback address of the worker's machine

    async def acquire(self, asked, tell):
        there = asked.fields.folder / asked.pool_id / asked.name
        there.mkdir(parents=True, exist_ok=True)
        with (there / "lock").open("w") as lock:  # another worker of this machine waits here
            await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
            if head_in(there) is None:
                taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
                ports = [(one.getsockname()[1], one.close())[0] for one in taken]
                (there / "url").write_text(f"http://127.0.0.1:{ports[0]}")
                values = {"folder": there, "name": there.name, "cpus": asked.fields.cpus}
                await asyncio.to_thread(os.system, START.format(ports=ports, **values))
        return Connection((there / "url").read_text())

    async def look(self, asked):
        there = asked.fields.folder / asked.pool_id / asked.name
        return Connection((there / "url").read_text()) if head_in(there) else None

    async def release(self, asked):
        while head := head_in(asked.fields.folder / asked.pool_id / asked.name):
            await asyncio.to_thread(os.system, f"kill {head.pid}; sleep 0.5")

    async def made(self, fields, pool_id):
        alive = filter(head_in, (fields.folder / pool_id).glob("*"))
        made_at = datetime.fromtimestamp
        return [MadeCluster(path.name, made_at(path.stat().st_mtime, UTC)) for path in alive]


def head_in(there):
    with suppress(OSError, ValueError, psutil.Error):
        head = psutil.Process(int((there / "pid").read_text()))
        return head if any(f"--node-name={there.name}" in part for part in head.cmdline()) else None
