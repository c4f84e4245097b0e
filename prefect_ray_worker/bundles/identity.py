"""Pickles so that what is compared by identity is the same one in another process.

Drivers use it too, so it imports little.
"""

import io
import pickle
from typing import Any

from prefect_ray_worker.bundles import content
from prefect_ray_worker.shared.references import SENTINELS


def dump_value(value: Any) -> bytes:
    """Pickle what a flow returns, for its caller."""
    with io.BytesIO() as file:
        pickler()(file, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
        return file.getvalue()


def pickler() -> Any:
    """Return cloudpickle's class of picklers, but for such objects: it makes others of them."""
    import cloudpickle

    class _SentinelPickler(cloudpickle.Pickler):  # pyright: ignore[reportUntypedBaseClass]
        def reducer_override(self, obj: Any) -> Any:
            if id(obj) in SENTINELS:
                return content.attribute_of, SENTINELS[id(obj)]
            return super().reducer_override(obj)

    return _SentinelPickler
