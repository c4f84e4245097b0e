"""Takes the picture of the terminal that the README shows: `python -m tests.ui.terminal`."""

import io
import os
import pty
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from tests.ui.test_ui import PICTURES

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "docs" / "examples" / "quickstart" / "run.py"
COLUMNS = 108
# What every run says, and what is the same line again and again: the picture is to be read.
_LEFT_OUT = re.compile(
    r"\b([2-9]|1[01]) of 12 tasks are done|Finished in state|[Dd]eployment (pull )?step"
    r"|submitted to infrastructure|submitting flow run|prefect\.task_runner\.ray -"
    r"|worker's log is in"
)
_TO_TRY = "What to try next"
_IDS = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(-[0-9a-f]{12})?")
_TOKEN = re.compile(r" \(its token is in \S+\)")
_SECONDS = 300


def output_of_the_quickstart() -> str:
    """Run the quickstart on a terminal of its own and return what it shows, colours included."""
    ours, theirs = pty.openpty()
    with tempfile.TemporaryDirectory(prefix="prw-picture-") as state:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "RAY_"))}
        process = subprocess.Popen(
            [sys.executable, QUICKSTART],
            env={**env, "QUICKSTART_STATE": state, "SHOW": "all", "COLUMNS": "999"},
            stdout=theirs,
            stderr=subprocess.STDOUT,
        )
        os.close(theirs)
        shown = bytearray()
        try:
            while chunk := _read(ours):
                shown += chunk
        finally:
            os.close(ours)
            if process.wait(_SECONDS):
                raise SystemExit(shown.decode())
    return shown.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux's way to say that the other side is closed
        return b""


def picture_of(shown: str) -> str:
    """Return a terminal with a text as SVG, without fonts from elsewhere."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text("$ make quickstart SHOW=all"))
    for line in shown.partition(_TO_TRY)[0].rstrip().splitlines():
        if _LEFT_OUT.search(line):
            continue
        text = Text.from_ansi(_TOKEN.sub("", _IDS.sub(lambda found: f"{found[0][:8]}…", line)))
        indent = _indent_of(text.plain)
        for number, part in enumerate(text.wrap(console, COLUMNS - indent)):
            console.print(Text(" " * indent) + part if number else part)
    own_fonts = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    return console.export_svg(
        title="prefect-ray-worker, shortened",
        theme=MONOKAI,
        code_format=own_fonts,
        unique_id="quickstart",
    )


def _indent_of(line: str) -> int:
    """Return where the text of a line begins: after the mark of a step, or the time of a log."""
    found = re.match(r"==> |    \d\d:\d\d:\d\d \| |    ", line)
    return found.end() if found else 0


if __name__ == "__main__":
    (PICTURES / "quickstart.svg").write_text(picture_of(output_of_the_quickstart()))
