"""`ray start` for a further node of a cluster on 127.0.0.1, which Ray has no option for.

One constant (Ray 2.60) says both whether nodes may join and whether loopback addresses are
replaced with the machine's; here it says yes to the first and no to the second.
"""

from typing import Any

from ray.scripts import scripts

_CONSTANTS = scripts.ray_constants


class _NodesMayJoin:
    ENABLE_RAY_CLUSTER = True

    def __getattr__(self, name: str) -> Any:
        return getattr(_CONSTANTS, name)


if __name__ == "__main__":
    scripts.ray_constants = _NodesMayJoin()
    scripts.main()
