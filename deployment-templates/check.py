"""Finds placeholders that are left in templates: `python check.py <folder or file>...`.

Standard library only, so that you can copy it with a folder. The exit code is 1 if any is left.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

PLACEHOLDER = re.compile(r"CHANGE_ME_[A-Z_]*[A-Z]")


def placeholders(path: Path) -> Iterator[str]:
    """Yield `file:line: placeholder` for a file, or for all files below a folder."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    for file in files:
        # A README explains what to fill in, and is never applied.
        if not file.is_file() or file.name == "README.md":
            continue
        for number, line in enumerate(file.read_text(errors="replace").splitlines(), start=1):
            for found in PLACEHOLDER.findall(line):
                yield f"{file}:{number}: {found}"


def main(arguments: list[str]) -> int:
    paths = [Path(argument) for argument in arguments]
    missing = [str(path) for path in paths if not path.exists()]
    if not paths or missing:
        said = f"There is no {', '.join(missing)}. " if missing else ""
        print(f"{said}Usage: python check.py <folder or file>...", file=sys.stderr)
        return 2
    left = [found for path in paths for found in placeholders(path)]
    for found in left:
        print(found)
    if left:
        print(f"{len(left)} placeholders are left.")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
