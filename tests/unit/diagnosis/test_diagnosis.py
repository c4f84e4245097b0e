"""The tables of diagnosis, row by row, with messages of a real Ray 2.60.

The texts in `job_messages/` were recorded by provoking each failure; library frames of tracebacks
are cut out and paths shortened. `pip-no-index` is pip's own output under Ray's header.
"""

import time
from pathlib import Path

import pytest

from prefect_ray_worker.diagnosis.job import Ended, of_job
from prefect_ray_worker.shared.category import Category
from prefect_ray_worker.shared.diagnosis import diagnosed
from prefect_ray_worker.shared.exits import DriverExit
from prefect_ray_worker.shared.verdict_line import format_verdict

MESSAGES = Path(__file__).parent / "job_messages"
SETUP = "RUNTIME_ENV_SETUP_FAILURE"
REFUSED = "JOB_SUPERVISOR_ACTOR_START_FAILURE"
COMMAND = "JOB_ENTRYPOINT_COMMAND_ERROR"
ATTEMPT = "0123456789ab"

RECORDED = [
    (
        "py-modules-not-on-node",
        SETUP,
        None,
        "RuntimeEnvCodeMissing",
        "py_modules local:///no/such does not exist on the node",
    ),
    (
        "pip-no-package",
        SETUP,
        None,
        "RuntimeEnvPackageNotFound",
        "'no-such-package-xyz' (there is: none)",
    ),
    ("pip-no-version", SETUP, None, "RuntimeEnvPackageNotFound", "'low==9.9' (there is: 1.0, 2.0)"),
    ("pip-no-path", SETUP, None, "RuntimeEnvPackageNotFound", "'./does-not-exist'"),
    ("pip-other-python", SETUP, None, "RuntimeEnvPackageNotFound", "3.11.7 not in '<3.8'"),
    (
        "pip-conflict",
        SETUP,
        None,
        "RuntimeEnvPackageConflict",
        "aaa 1.0 depends on low==1.0, and bbb 1.0 depends on low==2.0",
    ),
    ("pip-no-index", SETUP, None, "RuntimeEnvIndexUnreachable", "'no-such-package-xyz'"),
    ("uv-no-package", SETUP, None, "RuntimeEnvPackageNotFound", "'no-such-package-xyz'"),
    ("uv-conflict", SETUP, None, "RuntimeEnvPackageConflict", "no set of packages"),
    ("environment-timeout", SETUP, None, "RuntimeEnvTimeout", "within 1 s."),
    (
        "working-dir-not-on-head",
        SETUP,
        None,
        "RuntimeEnvCodeMissing",
        "gcs://_ray_pkg_0000000000000000.zip.",
    ),
    ("working-dir-no-server", SETUP, None, "RuntimeEnvCodeMissing", "Connection refused"),
    ("working-dir-no-file", SETUP, None, "RuntimeEnvCodeMissing", "'/no/such/x.zip'"),
    (
        "working-dir-not-on-node",
        SETUP,
        None,
        "RuntimeEnvCodeMissing",
        "working_dir local:///no/such/dir does not exist",
    ),
    ("working-dir-no-path", REFUSED, None, "RuntimeEnvCodeMissing", "/no/such/dir does not exist"),
    (
        "working-dir-no-smart-open",
        SETUP,
        None,
        "RuntimeEnvToolMissing",
        "`pip install smart_open[s3]`",
    ),
    ("no-conda", SETUP, None, "RuntimeEnvToolMissing", "no conda"),
    ("no-podman", SETUP, None, "RuntimeEnvToolMissing", "no podman"),
    ("pip-and-conda", REFUSED, None, "RuntimeEnvInvalid", "cannot be specified at the same time"),
    ("env-var-no-text", REFUSED, None, "RuntimeEnvInvalid", "the value 1 is of type"),
    (
        "no-such-node",
        "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE",
        None,
        "ResourcesInfeasible",
        "doesn't exist any more or is infeasible",
    ),
    (
        "start-limit-of-the-head",
        "JOB_SUPERVISOR_ACTOR_START_TIMEOUT",
        None,
        "StartTimeout",
        "after 150 s (RAY_JOB_START_TIMEOUT_SECONDS of the Ray head)",
    ),
    (
        "no-command",
        COMMAND,
        127,
        "EntrypointNotFound",
        "'no-such-command', cannot be run where the job runs (not found)",
    ),
    ("no-command-exec", COMMAND, 127, "EntrypointNotFound", "'no-such-command'"),
    (
        "command-not-executable",
        COMMAND,
        126,
        "EntrypointNotFound",
        "'/etc/passwd', cannot be run where the job runs (Permission denied)",
    ),
    ("no-file-to-run", COMMAND, 2, "EntrypointNotFound", "no_such_file.py"),
    ("no-module-to-run", COMMAND, 1, "ModuleNotFoundOnNode", "'no_such_module'"),
    ("no-module-in-driver", COMMAND, 1, "ModuleNotFound", "'no_such_module'"),
    (
        "no-module-in-task",
        COMMAND,
        1,
        "ModuleNotFoundInTask",
        "'f' did not find the module 'no_such_module'",
    ),
    (
        "no-module-to-unpickle",
        COMMAND,
        1,
        "ModuleNotFoundInTask",
        "'ff' did not find the module 'only_here'",
    ),
    ("import-error", COMMAND, 1, "DriverExited", "exit code 1"),
    ("killed", COMMAND, -9, "KilledBySignal", "signal SIGKILL: most often the cause is memory"),
    ("killed-below-a-shell", COMMAND, 137, "KilledBySignal", "signal SIGKILL"),
    (
        "segmentation-fault",
        COMMAND,
        -11,
        "KilledBySignal",
        "signal SIGSEGV: native code has crashed",
    ),
    ("supervisor-killed", "JOB_SUPERVISOR_ACTOR_DIED", None, "SupervisorDied", "SYSTEM_ERROR"),
    (
        "node-died",
        "JOB_SUPERVISOR_ACTOR_DIED",
        None,
        "NodeDied",
        "terminated unexpectedly: health check failed",
    ),
    (
        "memory-monitor",
        "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE",
        None,
        "OutOfMemory",
        "(1.30GB of 23.54GB used)",
    ),
    ("bad-stop-wait", "JOB_ENTRYPOINT_COMMAND_START_ERROR", None, "EntrypointNotStarted", "'2.5'"),
]


def test_every_record_is_in_the_table() -> None:
    assert {path.stem for path in MESSAGES.iterdir()} == {row[0] for row in RECORDED}


@pytest.mark.parametrize(
    ("record", "error_type", "exit_code", "category", "cause"),
    RECORDED,
    ids=[r[0] for r in RECORDED],
)
def test_recorded_failure_is_known(
    record: str, error_type: str, exit_code: int | None, category: str, cause: str
) -> None:
    message = (MESSAGES / f"{record}.txt").read_text()
    found = of_job(Ended("FAILED", error_type, exit_code, message))
    assert found.category.label == category
    assert cause in found.cause
    assert found.cause.endswith(".")
    assert found.advice.endswith(".")
    assert 'File "/venv' not in "".join(found.lines)
    assert "secret" not in str(found)
    assert str(found).startswith(f"{category}: "), "a state's message begins with its category"


LOGS = [
    (
        "ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.",
        "OutOfMemory",
        "a task or actor",
    ),
    (
        "numpy.core._exceptions._ArrayMemoryError: Unable to allocate 7.28 TiB",
        "OutOfMemory",
        "MemoryError",
    ),
    (
        "RuntimeError: Version mismatch: The cluster was started with:\n    Ray: 2.60.0\n"
        "    Python: 3.11.7\nThis process on node 10.0.0.1 was started with:\n    Ray: 2.59.0",
        "PythonVersionMismatch",
        "another than that of its cluster",
    ),
    (
        "/opt/python/bin/python3: No module named prefect_ray_worker",
        "ModuleNotFoundOnNode",
        "the worker did not bring it",
    ),
    (
        "/usr/bin/python: Error while finding module specification for 'prefect_ray_worker.driver' "
        "(ModuleNotFoundError: No module named 'prefect_ray_worker')",
        "ModuleNotFoundOnNode",
        "the worker did not bring it",
    ),
    (
        "ValueError: Package size (600.00MiB) exceeds the maximum size of 512.00MiB. You "
        "can exclude large files",
        "RuntimeEnvCodeTooLarge",
        "600.00MiB, and Ray takes 512.00MiB",
    ),
    ("/bin/sh: 1: exec: python: not found", "EntrypointNotFound", "no `python` on their PATH"),
    ("sh: line 1: python: command not found", "EntrypointNotFound", "no `python` on their PATH"),
    ("bash: line 1: nonsense: command not found", "EntrypointNotFound", "'nonsense'"),
    ("some line of a library", "DriverExited", "exit code 1"),
]


@pytest.mark.parametrize(("line", "category", "cause"), LOGS)
def test_end_of_a_log_is_read(line: str, category: str, cause: str) -> None:
    message = (
        "Job entrypoint command failed with exit code 1, last available logs (truncated to 20,000 "
        f"chars):\nRunning entrypoint for job x: python x.py\n{line}\n"
    )
    found = of_job(Ended("FAILED", COMMAND, 1, message))
    assert (found.category.label, cause in found.cause) == (category, True), found


def test_a_line_about_a_module_does_not_explain_a_signal() -> None:
    message = "ModuleNotFoundError: No module named 'optional_accelerator'"
    assert of_job(Ended("FAILED", COMMAND, -11, message)).category is Category.KILLED_BY_SIGNAL


@pytest.mark.parametrize("code", [*DriverExit, 1, -9])
def test_what_the_driver_has_said_is_passed_on(code: int) -> None:
    """Ray writes its own line last when the two streams meet."""
    verdict = diagnosed(Category.OUT_OF_MEMORY, "It was memory.")
    line = format_verdict(verdict, ATTEMPT)
    message = f"a print\n{line}\nRunning entrypoint for job x: python\n"
    assert of_job(Ended("FAILED", COMMAND, code, message, ATTEMPT)) == verdict


@pytest.mark.parametrize("code", [1, -9, *DriverExit])
@pytest.mark.parametrize(
    "line",
    [
        "OutOfMemory: pool 3 is at 80 %",
        "KilledBySignal: printed by the flow",
        '{"category": "OutOfMemory", "cause": "printed", "advice": "by the flow"}',
        format_verdict(diagnosed(Category.OUT_OF_MEMORY), "ba9876543210"),
    ],
)
def test_what_a_flow_prints_is_not_taken_for_the_drivers_word(code: int, line: str) -> None:
    """Reproduced: a print of "OutOfMemory: pool 3 is at 80 %" and exit code 1 gave OutOfMemory."""
    found = of_job(Ended("FAILED", COMMAND, code, f"{line}\n", ATTEMPT))
    expected = {1: Category.DRIVER_EXITED, -9: Category.KILLED_BY_SIGNAL}
    assert found.category is expected.get(code, Category.JOB_FAILED)


@pytest.mark.parametrize(
    ("code", "category"),
    [
        (DriverExit.NO_PREFECT, Category.PREFECT_MISSING),
        (DriverExit.NO_PREFECT, Category.PREFECT_VERSION_MISMATCH),
        (DriverExit.API_UNREACHABLE, Category.PREFECT_API_UNREACHABLE),
    ],
)
def test_a_driver_of_an_older_release_is_understood_if_its_exit_code_agrees(
    code: int, category: Category
) -> None:
    message = f"a print\n{category}: It is so. Do that.\nRunning entrypoint for job x: python\n"
    found = of_job(Ended("FAILED", COMMAND, code, message, ATTEMPT))
    assert str(found) == f"{category}: It is so. Do that."
    assert of_job(Ended("FAILED", COMMAND, 1, message, ATTEMPT)).category is Category.DRIVER_EXITED


def test_a_driver_without_a_word_is_no_error_of_ours() -> None:
    assert "gave no reason" in str(of_job(Ended("FAILED", COMMAND, DriverExit.BAD_CALL, "")))


@pytest.mark.parametrize("error_type", [SETUP, REFUSED, COMMAND, "JOB_SUPERVISOR_ACTOR_DIED"])
@pytest.mark.parametrize(
    "piece",
    ["/a", "ERROR: ", "python", "ray::f(", "download_remote_uri\n", "Because ", "://a@", " "],
)
def test_a_long_message_does_not_hold_up_the_worker(error_type: str, piece: str) -> None:
    began = time.process_time()
    of_job(Ended("FAILED", error_type, 1, piece * 500_000))
    assert time.process_time() - began < 3


@pytest.mark.parametrize(
    ("ended", "category"),
    [
        (Ended("SUCCEEDED", exit_code=0), Category.NO_FINAL_STATE),
        (Ended("STOPPED"), Category.STOPPED_OUTSIDE),
        (Ended("FAILED"), Category.JOB_FAILED),
        (Ended("FAILED", "SOMETHING_NEW", None, "words"), Category.JOB_FAILED),
        (Ended("FAILED", SETUP, None, "words"), Category.RUNTIME_ENV_FAILED),
        (Ended("FAILED", REFUSED, None, "words"), Category.SUPERVISOR_DIED),
        (Ended("FAILED", "JOB_SUPERVISOR_ACTOR_START_TIMEOUT"), Category.START_TIMEOUT),
        # Before Ray had error types, the text was all.
        (Ended("FAILED", None, None, "ERROR: No matching distribution found for x"),
         Category.RUNTIME_ENV_PACKAGE_NOT_FOUND),
    ],
)  # fmt: skip
def test_other_ends(ended: Ended, category: Category) -> None:
    assert of_job(ended).category is category


def test_names_are_unique_and_can_be_matched_by_prefix() -> None:
    labels = [category.label for category in Category]
    assert len(set(labels)) == len(labels)
    assert all(label.isalpha() and label[0].isupper() for label in labels)


@pytest.mark.parametrize("category", Category)
def test_category_says_what_it_means_and_what_to_do(category: Category) -> None:
    assert category.meaning.endswith(".")
    assert category.advice.endswith(".")
    assert str(diagnosed(category)).startswith(f"{category.label}: ")


@pytest.mark.parametrize(
    "said",
    [
        "    ERROR: Could not open requirements file: [Errno 2] No such file or directory: "
        "'/app/requirements.txt'",
        "    error: Error parsing included file in `r.txt` at position 0\n      cause: "
        "failed to read from file `/app/requirements.txt`: No such file or directory (os error 2)",
    ],
)
def test_a_missing_requirements_file_is_no_package_to_be_corrected(said: str) -> None:
    found = of_job(Ended("FAILED", SETUP, None, f"runtime_env setup failed: {said}", ATTEMPT))
    assert found.category is Category.RUNTIME_ENV_PACKAGE_NOT_FOUND
    assert found.cause == "The requirements file /app/requirements.txt is not on the node."
    assert "image of the nodes" in found.advice
