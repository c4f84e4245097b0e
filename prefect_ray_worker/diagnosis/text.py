"""Cleans log lines and Ray's messages, and picks the lines that are worth showing."""

import re

from prefect_ray_worker.shared.masking import masked
from prefect_ray_worker.shared.plain_text import plain
from prefect_ray_worker.shared.verdict_line import without_verdicts

# Lines that Ray 2.60 writes into a job's log or before it, and the headings of tracebacks. The last
# line of a traceback stays, because it names the error.
_BOILERPLATE = re.compile(
    r"""Running\ entrypoint\ for\ job\ .*
    | Job\ entrypoint\ command\ failed\ with\ exit\ code\ .*
    | runtime_env\ setup\ failed:\ Failed\ to\ set\ up\ runtime\ environment\.
    | Could\ not\ create\ the\ actor\ because\ its\ associated\ runtime\ env\ failed\ .*
    | \d{4}-\d\d-\d\d\ [\d:,.]+\s+INFO\ \S+\.py:\d+\ --\ .*
    | (?:\[Node\ \S+\]\ )?Traceback\ \(most\ recent\ call\ last\):
    | .*\bFull\ traceback:
    | During\ handling\ of\ the\ above\ exception,\ another\ exception\ occurred:
    | The\ above\ exception\ was\ the\ direct\ cause\ of\ the\ following\ exception:
    | \ *[~^]+
    | \d\d:\d\d:\d\d\.\d{3}\ \|\ (?:DEBUG|INFO)\ .*
    | \S*SubprocessCalledProcessError:\ Run\ cmd\[\d+\]\ failed\ .*
    | Command\ '\[.*\ returned\ non-zero\ exit\ status\ .*
    | Last\ \d+\ lines\ of\ stdout:
    | \s*\[notice\]\ .*
    """,
    re.VERBOSE,
)
# Matches the frames of libraries in a traceback. Frames of the flow's own code stay.
_LIBRARY_FRAME = re.compile(
    r'\s+File "(?:<|[^"]*/(?:site-packages|lib/python3[.\d]*)/).*", line \d+.*'
)
# Ray writes the pip list of `runtime_env` to this file.
_OUR_REQUIREMENTS = re.compile(r"-r \S*ray_runtime_env_internal_pip_requirements\.txt")
# How many characters of a long message to keep. Its beginning says what failed, its end says why.
_HEAD, _TAIL = 4_000, 16_000
_MOST_LINES = 10
_LONGEST_LINE = 400


def clean(text: str) -> list[str]:
    """Return the lines of a text without colours, overwritten progress bars and blank lines.

    Masks secrets, for example those in the URL of a package index.
    """
    text = masked(_OUR_REQUIREMENTS.sub("your requirements", text))
    # A progress bar returns to the line's beginning: what counts is what it wrote last.
    lines = (plain(line.rstrip("\r").rpartition("\r")[2]) for line in text.split("\n"))
    return [stripped for line in lines if (stripped := line.rstrip())]


def bounded(text: str) -> str:
    """Return a text of at most 20,000 characters unchanged, and a longer one without its middle."""
    if len(text) <= _HEAD + _TAIL:
        return text
    return f"{text[:_HEAD]}\n{text[-_TAIL:]}"


def useful_lines(text: str) -> tuple[str, ...]:
    """Return the last lines that help the author of a flow.

    Leaves out Ray's own lines, the driver's lines, and the frames of libraries in tracebacks.

    Args:
        text: The end of a job's log, or a message from Ray.
    """
    useful: list[str] = []
    in_library = False
    for line in clean(without_verdicts(text)):
        if _LIBRARY_FRAME.fullmatch(line):
            in_library = True
        elif in_library and line.startswith("    "):
            continue  # the source line of that frame
        else:
            in_library = False
            if not _BOILERPLATE.fullmatch(line):
                useful.append(cut(line))
    return tuple(useful[-_MOST_LINES:])


def last_line(text: str) -> str:
    """Return the last useful line, or an empty string."""
    lines = useful_lines(text)
    return lines[-1].strip() if lines else ""


def cut(line: str) -> str:
    """Return a line of at most 400 characters unchanged, and a longer one without its middle."""
    if len(line) <= _LONGEST_LINE:
        return line
    half = _LONGEST_LINE // 2
    return f"{line[:half]} … {line[-half:]}"
