"""Maps the text of an error to its category with regular expressions. The first match wins.

The patterns match the messages of Ray 2.60, pip 24 and 25, uv 0.5 to 0.9, conda, and Python 3.11
to 3.13. If one of them changes a message, the failure gets a more general category.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prefect_ray_worker.shared.category import Category
from prefect_ray_worker.shared.diagnosis import Diagnosis, diagnosed


@dataclass(frozen=True)
class Rule:
    """One row of a table: a pattern and the failure that it stands for.

    Attributes:
        category: The category of the failure.
        pattern: The regular expression to search for in the text.
        cause: The sentence to show, a format string with the named groups of the pattern. Empty:
            the general sentence of the category.
        advice: What to do about it. None: the advice of the category.
        with_lines: Whether to show lines of the text below the cause.
    """

    category: Category
    pattern: "re.Pattern[str]"
    cause: str = ""
    advice: str | None = None
    with_lines: bool = True


def _rule(
    category: Category,
    pattern: str,
    cause: str = "",
    advice: str | None = None,
    *,
    with_lines: bool = True,
) -> Rule:
    return Rule(category, re.compile(pattern, re.MULTILINE), cause, advice, with_lines)


_RUN_AGAIN = (
    "Run the flow again: the worker uploads its package anew. If it happens again, nodes cannot "
    "read from the head."
)

ENVIRONMENT: Sequence[Rule] = (
    _rule(
        Category.RUNTIME_ENV_TIMEOUT,
        r"Failed to install runtime_env within the timeout of (?P<limit>[\d.]+) seconds",
        "The runtime environment was not ready within {limit} s.",
        with_lines=False,
    ),
    _rule(
        Category.RUNTIME_ENV_PACKAGE_NOT_FOUND,
        r"(?:Could not open requirements file: .*?|failed to read from file |File not found: )"
        r"['`](?P<path>[^'`\n]+)['`]",
        "The requirements file {path} is not on the node.",
        "List the requirements in runtime_env itself, or put the file into the image of the nodes "
        "and name it by its absolute path.",
    ),
    # Must come before "not found": pip prints that too when it cannot reach the index.
    _rule(
        Category.RUNTIME_ENV_INDEX_UNREACHABLE,
        r"connection broken by '\w*(?:NewConnection|NameResolution|ConnectTimeout|Proxy|SSL)\w*"
        r"(?:.*\n)*?.*ERROR: Could not find a version that satisfies the requirement "
        r"(?P<package>\S+)",
        "pip could not reach the package index from the node to find {package!r}.",
    ),
    _rule(
        Category.RUNTIME_ENV_INDEX_UNREACHABLE,
        r"(?P<what>[Ff]ailed to fetch: `\S+`|CondaHTTPError: .*)",
        "The package index could not be reached from the node ({what}).",
    ),
    _rule(
        Category.RUNTIME_ENV_PACKAGE_NOT_FOUND,
        r"^[ \t]*ERROR: (?P<what>(?:Package '\S+'|.*) requires a different Python: .*)",
        "pip found no version for the Python of the node: {what}.",
    ),
    _rule(
        Category.RUNTIME_ENV_PACKAGE_CONFLICT,
        r"The conflict is caused by:\n\s*(?P<one>.+)\n\s*(?P<other>.+)",
        "The requirements exclude each other: {one}, and {other}.",
    ),
    _rule(
        Category.RUNTIME_ENV_PACKAGE_CONFLICT,
        r"(?P<what>ResolutionImpossible|Double requirement given: .*"
        r"|(?:LibMamba)?UnsatisfiableError: .*)",
        "The requirements exclude each other ({what}).",
    ),
    _rule(
        Category.RUNTIME_ENV_PACKAGE_NOT_FOUND,
        r"^[ \t]*ERROR: Could not find a version that satisfies the requirement "
        r"(?P<package>[^\n]+?) \(from versions: (?P<versions>[^\n]*)\)",
        "pip found no package that satisfies {package!r} (there is: {versions}).",
    ),
    _rule(
        Category.RUNTIME_ENV_PACKAGE_NOT_FOUND,
        r"^[ \t]*ERROR: No matching distribution found for (?P<package>[^\n(]+)",
        "pip found no package that satisfies {package!r}.",
    ),
    _rule(
        Category.RUNTIME_ENV_PACKAGE_NOT_FOUND,
        r"^[ \t]*ERROR: Invalid requirement: '?(?P<package>[^':\n]+)",
        "pip cannot read the requirement {package!r}, and no such file is on the node.",
    ),
    _rule(
        Category.RUNTIME_ENV_PACKAGE_NOT_FOUND,
        r"^[ \t]*ERROR: (?P<what>.*(?:does not appear to be a Python project"
        r"|No such file or directory).*)",
        "pip finds no package there: {what}.",
    ),
    # uv can wrap its sentences at any space.
    _rule(
        Category.RUNTIME_ENV_PACKAGE_NOT_FOUND,
        r"[Bb]ecause\s+(?P<package>\S+)\s+was\s+not\s+found\s+in",
        "uv found no package {package!r}.",
    ),
    _rule(
        Category.RUNTIME_ENV_PACKAGE_NOT_FOUND,
        r"[Bb]ecause\s+(?:there\s+(?:is|are)\s+no\s+versions?\s+of|only\s+[^,]*?available\s+and"
        r"\s+you\s+require)\s+(?P<package>\S+)",
        "uv found no package that satisfies {package!r}.",
    ),
    _rule(
        Category.RUNTIME_ENV_PACKAGE_CONFLICT,
        r"No\s+solution\s+found\s+when\s+resolving\s+dependencies",
        "uv found no set of packages that satisfies all requirements.",
    ),
    _rule(
        Category.RUNTIME_ENV_PACKAGE_NOT_FOUND,
        r"(?:ResolvePackageNotFound|PackagesNotFoundError)[\s\S]*?- (?P<package>\S+)",
        "conda found no package {package!r}.",
    ),
    _rule(
        Category.RUNTIME_ENV_TOOL_MISSING,
        r"You must `(?P<what>pip install [^`]+)` to fetch URIs",
        "The node lacks what fetches that kind of URI (`{what}`).",
        with_lines=False,
    ),
    _rule(
        Category.RUNTIME_ENV_TOOL_MISSING,
        r"Could not find Conda executable",
        "The node has no conda.",
        with_lines=False,
    ),
    _rule(
        Category.RUNTIME_ENV_TOOL_MISSING,
        r"FileNotFoundError: .*'(?P<what>podman|docker|git|uv)'",
        "The node has no {what}.",
        with_lines=False,
    ),
    _rule(
        Category.RUNTIME_ENV_INVALID,
        r"The given conda environment '(?P<what>[^']+)'.*doesn't exist",
        "The node has no conda environment {what!r}.",
        with_lines=False,
    ),
    _rule(
        Category.RUNTIME_ENV_CODE_TOO_LARGE,
        r"Package size \((?P<size>[^)]+)\) exceeds the maximum size of (?P<limit>[\d.]+ ?\w+)",
        "The package of working_dir or py_modules has {size}, and Ray takes {limit}.",
        with_lines=False,
    ),
    _rule(
        Category.RUNTIME_ENV_CODE_MISSING,
        r"Failed to download runtime_env file package (?P<uri>gcs://_ray_pkg_[0-9a-f]{64}\.zip)",
        "The head does not have the worker's own package any more ({uri}).",
        _RUN_AGAIN,
        with_lines=False,
    ),
    _rule(
        Category.RUNTIME_ENV_CODE_MISSING,
        r"Failed to download runtime_env file package (?P<uri>gcs://_ray_pkg_bundle_[0-9a-f]+\.zip)",
        "The cluster no longer has the code of this call ({uri}); it keeps it for one job.",
        "Call the flow again. Runs can be repeated if the work pool has result storage: `prefect "
        "work-pool storage configure`.",
        with_lines=False,
    ),
    _rule(
        Category.RUNTIME_ENV_CODE_MISSING,
        r"Failed to download runtime_env file package (?P<uri>\S+)",
        "The head does not have {uri}.",
        with_lines=False,
    ),
    _rule(
        Category.RUNTIME_ENV_CODE_MISSING,
        r"(?P<field>working_dir|py_modules)(?: entry)? (?P<uri>local://\S+) points to",
        "{field} {uri} does not exist on the node.",
        with_lines=False,
    ),
    _rule(
        Category.RUNTIME_ENV_CODE_MISSING,
        r"(?<![^\s'\"])(?P<path>/[^\s']+) is not a valid path",
        "{path} does not exist on the head.",
        with_lines=False,
    ),
    _rule(
        Category.RUNTIME_ENV_CODE_MISSING,
        r"download_remote_uri[\s\S]*\n(?P<what>[\w.]*(?:Error|Exception|NotFound|NoSuchKey)\b.*)",
        "The node could not download working_dir or py_modules ({what}).",
        with_lines=False,
    ),
    _rule(
        Category.RUNTIME_ENV_INVALID,
        r"^(?:ValueError|TypeError): (?P<what>.*\bruntime_env\b.*)",
        "Ray does not accept the runtime_env: {what}.",
        with_lines=False,
    ),
)
"""Errors of a runtime environment: Ray rejected it, or its set-up failed."""

SUPERVISOR: Sequence[Rule] = (
    _rule(
        Category.OUT_OF_MEMORY,
        r"killed due to the node running low on memory(?:.*? was (?P<used>[\d.]+ ?\w+) used / "
        r"(?P<limit>[\d.]+ ?\w+) limit)?",
        "Ray's memory monitor killed the supervisor of the job, as its node ran low on memory "
        "({used} of {limit} used).",
    ),
    _rule(
        Category.NODE_DIED,
        r"died because its node has died\.(?:.*\n\s*the actor's node was (?P<how>.+))?",
        "The node of the driver died ({how}).",
    ),
    _rule(
        Category.NODE_DIED,
        r"node it was running on is dead or unavailable",
        "The node of the driver died or cannot be reached.",
    ),
    _rule(
        Category.SUPERVISOR_DIED,
        r"failed to get job supervisor",
        "Ray found no supervisor of the job after its head had been restarted.",
    ),
    _rule(
        Category.SUPERVISOR_DIED,
        r"its worker process has died\. Worker exit type: (?P<kind>\w+)",
        "Ray's supervisor of the job was killed or crashed ({kind}); Ray cannot say by what, and "
        "memory is one possible reason.",
    ),
)
"""Ray's messages about the supervisor of a job."""

LOG: Sequence[Rule] = (
    _rule(
        Category.PYTHON_VERSION_MISMATCH,
        r"Version mismatch: The cluster was started with:",
        "The job's Ray or Python is another than that of its cluster.",
        "Leave ray out of runtime_env, and use the Python of the nodes.",
    ),
    _rule(
        Category.MODULE_NOT_FOUND_ON_NODE,
        r"^\S{0,400}python[^\s:]{0,9}: .*\bNo module named '?(?P<module>prefect_ray_worker[\w.]*)",
        "The Python of the node has no module {module!r}: the worker did not bring it.",
    ),
    _rule(
        Category.MODULE_NOT_FOUND_ON_NODE,
        r"^\S{0,400}python[^\s:]{0,9}: .*\bNo module named '?(?P<module>[\w.]+)",
        "The Python of the node has no module {module!r}, which the command runs.",
    ),
    _rule(
        Category.MODULE_NOT_FOUND_IN_TASK,
        r"ray::(?P<task>[^\n\x1b(]+)\([\s\S]*ModuleNotFoundError: No module named "
        r"'(?P<module>[^']+)'",
        "The Ray task or actor {task!r} did not find the module {module!r}.",
    ),
    _rule(
        Category.OUT_OF_MEMORY,
        r"OutOfMemoryError: .*killed due to the node running low on memory",
        "Ray's memory monitor killed a task or actor, as its node ran low on memory.",
        "Give the task more memory (`memory=`), run fewer at once, or choose larger nodes.",
    ),
    _rule(
        Category.OUT_OF_MEMORY,
        r"^(?:numpy\.\S+)?(?:MemoryError|_ArrayMemoryError)\b.*",
        "The driver could not get more memory (MemoryError).",
    ),
    _rule(
        Category.RUNTIME_ENV_CODE_TOO_LARGE,
        r"Package size \((?P<size>[^)]+)\) exceeds the maximum size of (?P<limit>\S+)",
        "A package of working_dir or py_modules has {size}, and Ray takes {limit}.",
    ),
    _rule(
        Category.MODULE_NOT_FOUND,
        r"^ModuleNotFoundError: No module named '(?P<module>[^']+)'",
        "The driver did not find the module {module!r}.",
    ),
    _rule(
        Category.ENTRYPOINT_NOT_FOUND,
        r"^(?:/bin/)?(?:ba)?sh: (?:line )?\d+: (?:exec: )?python: (?:command )?not found$",
        "Ray's processes on the node have no `python` on their PATH, and the driver needs one.",
        "Put the folder of the Python that runs Ray on the PATH with the job variable env, for "
        'example {"PATH": "/opt/ray/bin:${PATH}"}, or start Ray with it.',
    ),
    _rule(
        Category.ENTRYPOINT_NOT_FOUND,
        r"^/bin/sh: \d+: (?:exec: )?(?P<command>.+): (?P<why>not found|Permission denied)$",
        "The command of the job, {command!r}, cannot be run where the job runs ({why}).",
    ),
    _rule(
        Category.ENTRYPOINT_NOT_FOUND,
        r"^(?:/bin/)?(?:ba)?sh: (?:line \d+: )?(?P<command>.+): (?P<why>command not found"
        r"|No such file or directory|Permission denied)$",
        "The command of the job, {command!r}, cannot be run where the job runs ({why}).",
    ),
    _rule(
        Category.ENTRYPOINT_NOT_FOUND,
        r"can't open file '(?P<file>[^']+)': \[Errno 2\]",
        "The command of the job names {file!r}, which does not exist where the job runs.",
    ),
)
"""Errors at the end of a job's log."""


def match(rules: Iterable[Rule], text: str, lines: Sequence[str] = ()) -> Diagnosis | None:
    """Return the diagnosis of the first rule that matches, or None.

    Args:
        rules: The table to search, in order.
        text: The text to match, without colour codes.
        lines: The useful lines of the text, for rules that show them.
    """
    for rule in rules:
        found = rule.pattern.search(text)
        if found is not None:
            said = {name: (value or "").strip() for name, value in found.groupdict().items()}
            cause = _ended_once(rule.cause.format_map(said))
            shown = lines if rule.with_lines else ()
            return diagnosed(rule.category, cause, advice=rule.advice, lines=shown)
    return None


def _ended_once(sentence: str) -> str:
    return f"{sentence.rstrip('.')}." if sentence else ""
