"""One way to be told to end, whatever Ray, Prefect or the user does with SIGTERM."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

PREAMBLE = """
import os, signal, sys, threading, time
from prefect_ray_worker.driver.signals import Termination
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
termination = Termination()
termination.install()

class End(BaseException):
    pass

def deliver_soon():
    time.sleep(0.3)
    termination.deliver(End)
"""


def run(body: str, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(body)],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_a_blocking_call_is_interrupted() -> None:
    result = run("""
        threading.Thread(target=deliver_soon).start()
        began = time.monotonic()
        try:
            time.sleep(20)
        except End:
            print("ended", time.monotonic() - began < 5)
    """)
    assert result.stdout.strip() == "ended True", result.stderr


def test_a_sigterm_from_outside_is_noted_and_does_not_end_anything() -> None:
    result = run("""
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        print(termination.requested.is_set())
    """)
    assert result.stdout.strip() == "True", result.stderr


@pytest.mark.parametrize(
    ("stop", "said"), [("SIGINT", "noted True"), ("SIGTERM", "interrupted False")]
)
def test_a_sigint_is_a_stop_where_ray_stops_jobs_with_it(stop: str, said: str) -> None:
    """It crashed the flow, also where a stopped run is to be rescheduled."""
    result = run(
        """
        try:
            signal.raise_signal(signal.SIGINT)
            print("noted", end=" ")
        except KeyboardInterrupt:
            print("interrupted", end=" ")
        print(termination.requested.is_set(), flush=True)
        if os.fork() == 0:
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            print("child", flush=True)
            os._exit(0)
        os.wait()
        """,
        RAY_JOB_STOP_SIGNAL=stop,
    )
    assert result.stdout.splitlines() == [said, "child"], result.stderr


def test_a_handler_like_rays_changes_nothing() -> None:
    """`ray.init()` installs a handler that exits at once; ours still decides."""
    result = run("""
        def handler(signum, frame):
            sys.exit(signum)
        handler.__module__ = "ray._private.worker"
        signal.signal(signal.SIGTERM, handler)
        assert signal.getsignal(signal.SIGTERM) is handler
        threading.Thread(target=deliver_soon).start()
        try:
            time.sleep(20)
        except End:
            print("ended")
    """)
    assert result.stdout.strip() == "ended", result.stderr


def test_a_handler_of_the_users_is_called_before_the_end() -> None:
    result = run("""
        signal.signal(signal.SIGTERM, lambda *_: print("checkpoint written"))
        threading.Thread(target=deliver_soon).start()
        try:
            time.sleep(20)
        except End:
            print("ended")
    """)
    assert result.stdout.splitlines() == ["checkpoint written", "ended"], result.stderr


@pytest.mark.parametrize("what", ["sys.exit(0)", "print(1 / 0)"])
def test_a_handler_of_the_users_that_raises_does_not_replace_the_end(what: str) -> None:
    """A cancelled flow was Crashed by `sys.exit` in its handler, and Failed by an error."""
    result = run(f"""
        signal.signal(signal.SIGTERM, lambda *_: {what})
        threading.Thread(target=deliver_soon).start()
        try:
            time.sleep(20)
        except End:
            print("ended")
    """)
    assert result.stdout.strip() == "ended", result.stderr
    assert "The flow's handler of SIGTERM raised" in result.stderr


def test_ignoring_sigterm_does_not_help() -> None:
    result = run("""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        threading.Thread(target=deliver_soon).start()
        try:
            time.sleep(20)
        except End:
            print("ended")
    """)
    assert result.stdout.strip() == "ended", result.stderr


def test_child_processes_have_the_usual_sigterm() -> None:
    result = run("""
        import subprocess
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(20)"])
        time.sleep(0.5)
        child.terminate()
        print(child.wait(10))
    """)
    assert result.stdout.strip() == str(-signal.SIGTERM), result.stderr


def test_nothing_is_raised_after_the_flow_has_come_to_its_end() -> None:
    result = run("""
        def deliver_late():
            time.sleep(0.2)
            termination.withdraw()
            termination.deliver(End)
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=deliver_late).start()
        time.sleep(1)
        print("quiet")
    """)
    assert result.stdout.strip() == "quiet", result.stderr


def test_a_call_into_ray_is_interrupted() -> None:
    """`ray.get` lets nothing but KeyboardInterrupt through; what ends the flow follows it."""
    result = run("""
        wait = {"__name__": "ray._private.worker", "time": time}
        exec("def get():\\n    time.sleep(20)", wait)

        def raylike():
            try:
                wait["get"]()
            except KeyboardInterrupt:
                for _ in range(100):
                    time.sleep(0.01)
                return "too late"

        threading.Thread(target=deliver_soon).start()
        try:
            print(raylike())
        except End:
            print("ended")
    """)
    assert result.stdout.strip() == "ended", result.stderr


def test_a_forked_child_has_the_usual_sigterm() -> None:
    """As `multiprocessing` starts and ends its children."""
    result = run("""
        pid = os.fork()
        if pid == 0:
            time.sleep(20)
            os._exit(0)
        time.sleep(0.3)
        os.kill(pid, signal.SIGTERM)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """)
    assert result.stdout.strip() == str(-signal.SIGTERM), result.stderr
