"""The package that is shipped: equal for equal content, complete, and light to start."""

import io
import subprocess
import sys
import zipfile
from pathlib import Path

from prefect_ray_worker.runs import submit

# pyright: reportPrivateUsage=false


async def test_the_name_is_a_function_of_the_content() -> None:
    name, content = submit._archive()
    submit._archive.cache_clear()
    again, same = submit._archive()
    assert (name, content) == (again, same)
    assert await submit.archive_uri() == f"gcs://{name}"
    assert name.startswith("_ray_pkg_")
    assert name.endswith(".zip"), "Ray unpacks by the ending"


def test_the_driver_starts_from_the_archive_with_the_standard_library_only(tmp_path: Path) -> None:
    """The supervisor is started in every run: nothing heavy may be imported on its way."""
    zipfile.ZipFile(io.BytesIO(submit._archive()[1])).extractall(tmp_path)
    script = (
        "import sys, prefect_ray_worker.driver.supervise.supervisor\n"
        "import prefect_ray_worker.driver.engine\n"
        "print(prefect_ray_worker.__file__)\n"
        "print(sorted(m for m in sys.modules if 'site-packages' in "
        "str(getattr(sys.modules[m], '__file__', ''))))"
    )
    result = subprocess.run(
        [sys.executable, "-S", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    where, imported = result.stdout.splitlines()
    assert where.startswith(str(tmp_path))
    assert imported == "[]"
