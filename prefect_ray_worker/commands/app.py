"""`prefect-ray-worker`: parses the command line and runs a command."""

import asyncio
import signal
import sys
from collections.abc import Sequence
from typing import Any

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.text import Text

from prefect_ray_worker.commands.doctor import doctor
from prefect_ray_worker.commands.logs import logs
from prefect_ray_worker.commands.status import status
from prefect_ray_worker.commands.sweep import sweep
from prefect_ray_worker.commands.terminal import (
    BAD_CALL,
    errors,
    print_any_character,
    print_text,
)
from prefect_ray_worker.errors import InvalidConfiguration, without_groups
from prefect_ray_worker.shared.plain_text import plain

_INTERRUPTED = 130
# Written as `prefect deployment run` takes it; Cyclopts would read it as two options, -j and -v.
_JOB_VARIABLE = ("-jv", "--job-variable")


def app() -> App:
    """Return the commands; the reference page is generated from them."""
    from prefect_ray_worker import __version__

    commands = App(
        name="prefect-ray-worker",
        help="Look at, and look after, Prefect flow runs in Ray clusters. To start a worker, call "
        "`prefect worker start --pool <pool> --type ray`.",
        version=__version__,
        help_format="markdown",
        default_parameter=Parameter(negative=()),
        error_console=Console(stderr=True),
        result_action="return_value",
    )
    for command in (doctor, status, logs, sweep):
        commands.command(command)
    commands.register_install_completion_command()
    return commands


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        arguments: Those of the command line; by default this process's own.
    """
    given = sys.argv[1:] if arguments is None else arguments
    # CI and pods stop us with SIGTERM: clean up as after Ctrl-C. A shell that starts us in the
    # background ignores SIGINT, so both handlers are set.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _interrupt)
    print_any_character()
    try:
        return _run(parse(app(), given))
    except CycloptsError:
        return BAD_CALL  # said
    except InvalidConfiguration as exc:
        print_text(errors(), Text(plain(str(exc))))
        return BAD_CALL
    except (KeyboardInterrupt, asyncio.CancelledError):
        return _INTERRUPTED


def parse(commands: App, arguments: Sequence[str]) -> tuple[Any, Any]:
    """Return the function of a command line, and its arguments.

    Raises:
        CycloptsError: The call is bad; what is wrong has been printed.
    """
    short, long = _JOB_VARIABLE
    tokens = [long if token == short else token for token in arguments]
    function, bound, _ = commands.parse_args(tokens, exit_on_error=False, print_error=True)
    return function, bound


def _run(parsed: tuple[Any, Any]) -> int:
    function, bound = parsed
    returned = function(*bound.args, **bound.kwargs)
    if asyncio.iscoroutine(returned):
        with without_groups():  # around an error that has a message
            returned = asyncio.run(returned)
    return returned if isinstance(returned, int) else 0


def _interrupt(*_: object) -> None:
    signal.raise_signal(signal.SIGINT)
