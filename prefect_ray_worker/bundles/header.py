"""`BundleHeader`: what a driver has to know about a bundle before it touches its content."""

import hashlib
import json
import sys
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from prefect_ray_worker.errors import BundleDamaged, BundlePythonMismatch

FORMAT = 1
"""Of the header and the content. A driver refuses any other."""

Carrier = Literal["header", "inputs", "storage", "cluster"]
"""Where the content of a bundle is: in its header, in inputs of the run, or elsewhere."""


@dataclass(frozen=True)
class BundleHeader:
    """Describes a bundle. It is written last, so a bundle with a header is complete.

    Attributes:
        sha256: Of the content.
        size: Of the content, in bytes.
        parts: How many inputs of the run hold it; 0 if it is elsewhere.
        python: Version of the Python that packed it, `X.Y`.
        prefect: Version of its Prefect.
        cloudpickle: Version of its cloudpickle.
        carrier: Where the content is.
        block: Id of the storage block.
        path: Path in that storage, or name of the file that Ray has brought to the node.
        content: The content itself, in base 64, if it is small.
        format: Of header and content.
    """

    sha256: str
    size: int
    parts: int
    python: str
    prefect: str
    cloudpickle: str
    carrier: Carrier = "inputs"
    block: str | None = None
    path: str | None = None
    content: str | None = field(default=None, repr=False)
    format: int = FORMAT

    @classmethod
    def of(cls, packed: bytes, *, parts: int = 0, **place: Any) -> "BundleHeader":
        """Describe content that this process has packed."""
        import cloudpickle
        import prefect

        return cls(
            sha256=hashlib.sha256(packed).hexdigest(),
            size=len(packed),
            parts=parts,
            python=present_python(),
            prefect=prefect.__version__,
            cloudpickle=str(cloudpickle.__version__),
            **place,
        )

    def to_json(self) -> str:
        """Return the header as text."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> "BundleHeader":
        """Read back what `to_json` wrote.

        Raises:
            BundleDamaged: It is no header, or one of another release's format.
        """
        try:
            told: dict[str, Any] = json.loads(text)
            written = told["format"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise BundleDamaged("The header of the bundle cannot be read.") from None
        if written != FORMAT:
            raise BundleDamaged(
                f"The bundle has the format {written!r}, and this driver reads {FORMAT}: the "
                "caller and the worker have different releases of prefect-ray-worker."
            )
        try:
            header = cls(**{name: told[name] for name in cls.__dataclass_fields__})
        except (TypeError, KeyError):
            raise BundleDamaged("The header of the bundle is not complete.") from None
        return header

    def check_python(self) -> None:
        """Refuse a bundle of another Python: unpickling its code would end this process.

        Python 3.11, 3.12 and 3.13 crash with a segmentation fault on each other's functions.

        Raises:
            BundlePythonMismatch: This Python has another minor version.
        """
        if self.python != present_python():
            raise BundlePythonMismatch(
                f"The flow was called from Python {self.python}, and the job runs Python "
                f"{present_python()} ({sys.executable})."
            )

    def describes(self, content: bytes) -> bool:
        """Return whether content is what was packed."""
        return hashlib.sha256(content).hexdigest() == self.sha256

    def check_content(self, content: bytes) -> None:
        """Compare content with what was packed.

        Raises:
            BundleDamaged: It is something else.
        """
        if not self.describes(content):
            raise BundleDamaged(
                f"The content of the bundle has {len(content)} bytes and another SHA-256 than "
                f"its header says ({self.size} bytes)."
            )


def present_python() -> str:
    """Return the version of this Python, `X.Y`."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"
