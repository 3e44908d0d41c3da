"""The command that all others belong to, and how any of them ends."""

import contextlib
import difflib
import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import click

from scalebrain.cli.logfile import redact
from scalebrain.cli.versions import print_versions
from scalebrain.cli.watch import watched
from scalebrain.errors import ScalebrainError
from scalebrain.io.failures import NO_SPACE, explain

__all__ = ["cli", "main", "run_command", "version_option"]

#: Seconds in which a second signal is no new wish to end.
_TWINS_SECONDS = 2.0
_ENDING = b"ending, after the tasks that run; the same signal again ends at once\n"
#: What click raises for a group alone, as 'scalebrain store'; before 8.2 it prints the help itself.
_HELP_ALONE: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())


class _Group(click.Group):
    """Group that says which command was meant."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command, or name the one that is nearest."""
        known = self.list_commands(ctx)
        if args and not args[0].startswith("-") and args[0] not in known:
            near = difflib.get_close_matches(args[0], known, n=1)
            hint = f"Did you mean '{near[0]}'?" if near else f"There are {', '.join(known)}."
            ctx.fail(f"No command '{args[0]}'. {hint}")
        return super().resolve_command(ctx, args)


version_option = click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=print_versions,
    help="Show the versions of scalebrain and of what it computes with.",
)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@version_option
def cli() -> None:
    """Regional brain age and stroke lesion statistics for large MRI cohorts."""


def main(arguments: list[str] | None = None) -> None:
    """Run a command: exit code 0 success, 1 failure, 2 usage, 3 partial success.

    SIGTERM and SIGHUP end it as Ctrl-C does, with the exit codes of a shell, 143 and 129.

    Parameters
    ----------
    arguments
        Command line without the program's name; that of the process when None.
    """
    run_command(cli, arguments, "scalebrain")


def run_command(command: click.Command, arguments: list[str] | None, program: str) -> None:
    """Run a command, and end with one line for what a user can mend.

    Parameters
    ----------
    command
        Command.
    arguments
        Command line without the program's name; that of the process when None.
    program
        Name of the program.
    """
    received: list[int] = []
    try:
        with _ending_signals(received), watched():
            code = command.main(args=arguments, prog_name=program, standalone_mode=False)
    except _HELP_ALONE as error:
        click.echo(error.format_message(), err=True)
        sys.exit(2)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else program
        message = error.format_message()
        stop = "" if message.endswith((".", "?")) else "."
        _tell(f"{message}{stop} See {where} --help.")
        sys.exit(2)
    except click.ClickException as error:
        _tell(error.format_message())
        sys.exit(1)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        with contextlib.suppress(OSError):  # of a terminal that is gone
            click.echo("stopped; the same command goes on from here", err=True)
        sys.exit(128 + received[0] if received else 1)
    except ScalebrainError as error:
        _tell(str(error))
        sys.exit(1)
    except OSError as error:
        if received:  # of the terminal, of which SIGHUP says that it is gone
            sys.exit(128 + received[0])
        place = str(error.filename or "")
        if error.errno in NO_SPACE:
            _tell(str(explain(place or "the results", error)))
        elif error.errno != errno.EPIPE:  # else nobody reads on, as of 'scalebrain ... | head'
            _tell(": ".join(filter(None, [place, error.strerror or str(error)])))
        sys.exit(1)
    if code:
        sys.exit(code)


@contextlib.contextmanager
def _ending_signals(received: list[int]) -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does, so that what was opened is closed.

    One that is ignored, as SIGHUP by nohup, or that has a handler stays so. They often come in
    twos, of which the second changes nothing; a later one ends the process as it is.
    """
    first = 0.0

    def end(number: int, _: Any) -> None:
        nonlocal first
        if not received:
            first = time.monotonic()
            received.append(number)
            with contextlib.suppress(OSError):
                os.write(2, _ENDING)
            raise KeyboardInterrupt(signal.Signals(number).name)
        if time.monotonic() - first > _TWINS_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    taken: list[signal.Signals] = []
    try:
        if threading.current_thread() is threading.main_thread():
            for one in (signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(one) is signal.SIG_DFL:
                    signal.signal(one, end)
                    taken.append(one)
        yield
    finally:
        for one in taken:
            signal.signal(one, signal.SIG_DFL)


def _tell(message: str) -> None:
    """Print an error."""
    click.secho(f"error: {redact(message)}", fg="red", err=True)
