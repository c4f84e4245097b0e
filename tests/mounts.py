"""Whether a test can hide files from the processes that it starts."""

import functools
import subprocess
import tempfile

NO_MOUNTS = "no process may mount here: `unshare -m` or `mount -t tmpfs` fails"


@functools.cache
def can_hide_files() -> bool:
    """Return whether a process may have mounts of its own. Sandboxes forbid it, even to root."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                ["unshare", "-m", "mount", "-t", "tmpfs", "none", folder],
                capture_output=True,
                timeout=20,
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
    return done.returncode == 0
