"""Options and types of arguments that several commands have."""

import contextlib
import functools
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

import scalebrain
from scalebrain.cli.logfile import log_to
from scalebrain.cluster.client import ENGINES, check_client
from scalebrain.cluster.local import parsed_memory

__all__ = [
    "EXISTING",
    "FOLDER",
    "NODES",
    "STORE",
    "Client",
    "check_scheduler",
    "computing",
    "lesion_labels",
    "reading",
    "simulation",
    "unheard",
    "waits_in_a_queue",
]

#: Opens the Dask client that the options name.
Client = Callable[[], contextlib.AbstractContextManager[Any]]

Command = Callable[..., Any]
WorkersOf = Callable[[dict[str, Any], int | None], int]
LogOf = Callable[[dict[str, Any]], Path | None]

EXISTING = click.Path(exists=True, file_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
#: Those of features.surface_nodes, which costs seconds to import; a test compares them.
NODES = ("volume", "surface-3", "surface-4", "surface-5")


class _Store(click.types.StringParamType):
    """Path or URL of a store; a folder is completed."""

    name = "store"

    def shell_complete(
        self, _: click.Context, __: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Let the shell complete folders."""
        return [CompletionItem(incomplete, type="dir")]


STORE = _Store()


def _schedulers(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Words that a scheduler can begin with."""
    words = {"threads": "no worker processes", **ENGINES}
    return [
        CompletionItem(word, help=text)
        for word, text in words.items()
        if word.startswith(incomplete)
    ]


def waits_in_a_queue(client: Client) -> bool:
    """Whether the workers that a command opens are jobs, which may wait for hours."""
    spec = client.args[0] if isinstance(client, functools.partial) else None
    return isinstance(spec, str) and spec.startswith(("slurm:", "gateway:", "kubernetes:"))


def check_scheduler(client: Client) -> None:
    """Refuse workers that could not be opened as they are described; asks no cluster."""
    if isinstance(client, functools.partial):
        check_client(*client.args, **client.keywords)


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """Leave out warnings and log of a first look: the work itself says all again."""
    package = logging.getLogger("scalebrain")
    level = package.level
    package.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        package.setLevel(level)


def _all(options: Sequence[Callable[[Command], Command]], command: Command) -> Command:
    """Put options on a command; the last of the list is shown first."""
    for option in options:
        command = option(command)
    return command


def computing(
    default_log: LogOf = lambda _: None, default_workers: WorkersOf | None = None
) -> Callable[[Command], Command]:
    """Give a command that computes its options; it takes `client`, which opens what they name.

    Parameters
    ----------
    default_log
        Says from the other options where the log goes when the user does not.
    default_workers
        Says from the other options, and from the bytes that they may use, how many workers this
        machine has when the user does not.

    Returns
    -------
    callable
        Decorator.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def run(
            *arguments: Any,
            scheduler: str | None,
            n_workers: int | None,
            memory: str | None,
            profiles: Path | None,
            log_file: Path | None,
            **options: Any,
        ) -> Any:
            if default_workers is not None and scheduler is None and n_workers is None:
                n_workers = default_workers(options, parsed_memory(memory) if memory else None)
            client = functools.partial(
                scalebrain.open_client,
                scheduler,
                n_workers=n_workers,
                memory=memory,
                profiles=profiles,
            )
            with log_to(log_file or default_log(options), _command_line()):
                return command(*arguments, client=client, **options)

        return _all(_COMPUTING, run)

    return decorate


_COMPUTING = [
    click.option(
        "--log-file",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Append the log to this file, as one JSON object a line.",
    ),
    click.option(
        "--memory",
        metavar="AMOUNT",
        help="Memory that the workers of this machine share, such as 8GB; default: all.",
    ),
    click.option(
        "--n-workers",
        type=click.IntRange(1),
        metavar="N",
        help="Workers; default: one a core as far as memory allows, or what a cluster gives.",
    ),
    click.option(
        "--profiles",
        type=click.Path(dir_okay=False, path_type=Path),
        help="YAML file of the profiles of slurm:PROFILE; default: $SCALEBRAIN_PROFILES, else "
        "~/.config/scalebrain/profiles.yaml.",
    ),
    click.option(
        "--scheduler",
        metavar="SPEC",
        shell_complete=_schedulers,
        help="'threads', the address of a Dask scheduler, slurm:PROFILE, gateway:URL or "
        "kubernetes:FILE; default: workers on this machine.",
    ),
]


def _command_line() -> str:
    """Command line, as far as click knows it."""
    ctx = click.get_current_context()
    return f"{ctx.command_path} {scalebrain.__version__}: {' '.join(sys.argv[1:])}"


def simulation(command: Command) -> Command:
    """Options of the simulation."""
    return _all(
        [
            click.option("--seed", default=0, show_default=True, help="Same seed, same bytes."),
            click.option("--resolution", default=2.0, show_default=True, help="Voxel size in mm."),
            click.option("--cohorts", default=6, show_default=True, help="Number of cohorts."),
            click.option("--stroke", default=60, show_default=True, help="People with a stroke."),
            click.option("--reference", default=120, show_default=True, help="Healthy references."),
        ],
        command,
    )


def lesion_labels(command: Command) -> Command:
    """Option of masks with several labels."""
    return click.option(
        "--lesion-labels",
        default="",
        metavar="1,2",
        callback=_labels,
        help="Labels of multi-label masks that are lesion.",
    )(command)


def reading(command: Command) -> Command:
    """Options of how files are read."""
    return _all(
        [
            lesion_labels,
            click.option("--volume", type=click.IntRange(0), help="Frame of 4-D images, from 0."),
            click.option(
                "--assume-space", is_flag=True, help="Trust images whose orientation codes are 0."
            ),
            click.option(
                "--root",
                type=EXISTING,
                help="Folder that the paths of a manifest may not leave; default: its own.",
            ),
            click.option(
                "--prefix", default="", help="Put in front of every label of the datasets."
            ),
            click.option("--session", help="Session to take of people with several, or 'all'."),
        ],
        command,
    )


def _labels(_: click.Context, __: click.Parameter, text: str) -> tuple[int, ...]:
    """Labels of a comma-separated list."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no list of whole numbers, as 1,2") from error
