"""A real Ray of two nodes on this machine, one of which can be lost.

`ray.cluster_utils`, which Ray's own tests use, starts both; in a process of its own, as this one
never imports ray.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests import real_ray
from tests.ports import free_ports

_SCRIPT = """
import sys
from ray._private.utils import write_ray_address
from ray.cluster_utils import Cluster

dashboard, head_agent, agent, temp_dir = sys.argv[1:]
size = {"num_cpus": 1, "object_store_memory": 100_000_000}
cluster = Cluster(initialize_head=True, head_node_args={
    **size, "include_dashboard": True, "dashboard_host": "127.0.0.1", "temp_dir": temp_dir,
    "dashboard_port": int(dashboard), "dashboard_agent_listen_port": int(head_agent),
})
# It writes that to /tmp/ray only. Ray looks for the address that it gives a job in the temporary
# directory, and takes any Ray of this machine if there is none.
write_ray_address(cluster.gcs_address, temp_dir)
node = cluster.add_node(resources={"far": 1}, dashboard_agent_listen_port=int(agent), **size)
print("ready", flush=True)
sys.stdin.readline()
cluster.remove_node(node, allow_graceful=False)
print("lost", flush=True)
sys.stdin.readline()
"""


@dataclass
class TwoNodes:
    """A head and a node with the resource `far`.

    Attributes:
        address: Of the dashboard.
    """

    address: str
    _process: "subprocess.Popen[str]"

    def lose_the_far_node(self) -> None:
        """Kill all processes of the node."""
        _tell(self._process.stdin)
        _expect("lost", self._process.stdout)


@contextmanager
def two_nodes() -> Iterator[TwoNodes]:
    """Run two nodes for the length of a `with` block."""
    temp_dir = Path(tempfile.mkdtemp(prefix="prwt-", dir="/tmp"))
    dashboard, *agents = free_ports(3)
    ports = [str(port) for port in (dashboard, *agents)]
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, *ports, str(temp_dir)],
        env=real_ray.environment_of(temp_dir, {}),
        cwd=temp_dir,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _expect("ready", process.stdout)
        yield TwoNodes(f"http://127.0.0.1:{dashboard}", process)
    finally:
        real_ray.end(process, marker=str(temp_dir))
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        shutil.rmtree(temp_dir, ignore_errors=True)


def _tell(stream: IO[str] | None) -> None:
    assert stream is not None
    stream.write("\n")
    stream.flush()


def _expect(word: str, stream: IO[str] | None) -> None:
    assert stream is not None
    # Ends with the process at the latest; the suite's time limit bounds that.
    assert any(line.strip() == word for line in stream), f"the process ended without {word!r}"
