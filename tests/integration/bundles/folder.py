"""Bundle storage in a local folder, run as Prefect runs those of prefect-aws and its like."""

import argparse
import shutil
from pathlib import Path


def upload() -> None:
    options = _options(with_file=True)
    shutil.copy(options.file, Path(options.folder) / options.key)


def execute() -> None:
    from prefect.bundles.execute import execute_bundle_from_file

    options = _options(with_file=False)
    execute_bundle_from_file(str(Path(options.folder) / options.key))


def _options(*, with_file: bool) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder")
    parser.add_argument("--key")
    if with_file:
        parser.add_argument("file")
    return parser.parse_args()
