"""`make compat`: try the combinations of versions, and keep what comes of them."""

import sys
import tempfile
from pathlib import Path

from tests.compat.cells import CELLS, record
from tests.compat.environment import build_wheel, run_cell


def main(wanted: str) -> int:
    # "oldest" is a name, and part of others.
    cells = [cell for cell in CELLS if wanted == cell.name] or [
        cell for cell in CELLS if wanted in cell.name
    ]
    if not cells:
        names = ", ".join(cell.name for cell in CELLS)
        print(f"No combination has {wanted!r} in its name. There are: {names}.", file=sys.stderr)
        return 2
    bad = 0
    with tempfile.TemporaryDirectory(prefix="prw-compat-") as folder:
        wheel = build_wheel(Path(folder))
        for cell in cells:
            print(f"==> {cell.name}: Python {cell.python}, Ray {cell.ray}, Prefect {cell.prefect}")
            with tempfile.TemporaryDirectory(prefix="prw-cell-") as place:
                result = run_cell(cell, wheel, Path(place))
            record(cell, result)
            print(f"    {result.verdict}", flush=True)
            bad += bool(result.failed or result.trouble)
    print("Written to tests/compat/measured.json; `make docs` puts it into the docs.")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else ""))
