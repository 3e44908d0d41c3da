"""``scalebrain-bids``: the command line of a BIDS App."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

import scalebrain
from scalebrain.cli.app import run_command, version_option
from scalebrain.cli.data import tell_rejected
from scalebrain.cli.options import (
    FOLDER,
    Client,
    check_scheduler,
    computing,
    waits_in_a_queue,
)
from scalebrain.cli.study import check_study, log_of_study, tell_preview
from scalebrain.config import read_config

if TYPE_CHECKING:
    from scalebrain.study import Level

__all__ = ["bids", "bids_main"]

_LEVELS = ("participant", "group")
_LABELS = ("--participant-label", "--participant_label")

_HELP = """Run scalebrain on BIDS_DIR as a BIDS App.

The level participant reads scans into OUTPUT_DIR/cohort.zarr and computes features, loads and
measures of each person; it can be called again with other labels. The level group trains,
predicts, fits the statistics and writes the report, on everyone who is in the store.
"""


@click.command(
    help=_HELP,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit code 3: some subjects were rejected, the others are in the store.",
)
@click.argument("bids_dir", type=click.Path(exists=True, path_type=Path))
@click.argument("out", metavar="OUTPUT_DIR", type=FOLDER)
@click.argument("level", metavar="{participant,group}", type=click.Choice(_LEVELS))
@click.option(
    *_LABELS,
    "labels",
    multiple=True,
    metavar="LABEL...",
    help="People to take, with or without 'sub-', separated by spaces or commas; default: "
    "everyone. Whom the store holds stays.",
)
@click.option(
    "--session-label",
    "--session_label",
    "session",
    metavar="LABEL",
    help="Session to take of people with several, or 'all'.",
)
@click.option("--config", type=click.Path(exists=True, dir_okay=False), help="Study YAML.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and write nothing.")
@version_option
@computing(log_of_study)
def bids(
    bids_dir: Path,
    out: Path,
    level: "Level",
    labels: tuple[str, ...],
    session: str | None,
    config: str | None,
    dry_run: bool,
    client: Client,
) -> None:
    """Run scalebrain on BIDS_DIR as a BIDS App."""
    if level == "group" and (labels or session):
        raise click.UsageError(
            "The level group takes everyone in the store: it has no labels of people or sessions."
        )
    labels = _labels(labels)
    settings = read_config(config)
    if session:
        settings = replace(settings, ingest={**settings.ingest, "session": session})
    if dry_run:
        check_scheduler(client)
        tell_preview(bids_dir, out, settings, level=level, participants=labels)
        return
    if waits_in_a_queue(client):
        check_study(bids_dir, out, settings, level=level, participants=labels)
    with client():
        result = scalebrain.run_study(bids_dir, out, settings, level=level, participants=labels)
    click.echo(result)
    tell_rejected(str(out / "cohort.zarr"))


def bids_main(arguments: list[str] | None = None) -> None:
    """Run ``scalebrain-bids``, with the exit codes of ``scalebrain``.

    Parameters
    ----------
    arguments
        Command line without the program's name; that of the process when None.
    """
    given = sys.argv[1:] if arguments is None else arguments
    run_command(bids, _one_label_each(given), "scalebrain-bids")


def _one_label_each(arguments: Sequence[str]) -> list[str]:
    """Write ``--participant-label 01 02``, as BIDS Apps take it, with the option before each.

    Only behind the level: before it, what follows one label is the next argument.
    """
    out: list[str] = []
    listing = behind_level = False
    for number, word in enumerate(arguments):
        if word.startswith("-"):
            listing = word in _LABELS and behind_level
        elif listing and arguments[number - 1] not in _LABELS:
            out.append(_LABELS[0])
        behind_level = behind_level or word in _LEVELS
        out.append(word)
    return out


def _labels(words: Sequence[str]) -> tuple[str, ...]:
    """Labels of words such as ``01``, ``01,02`` or ``01,``."""
    split = [[part.strip() for part in word.split(",")] for word in words]
    kept = [[part for part in parts if part] or [""] for parts in split]  # '' is refused later
    return tuple(label for labels in kept for label in labels)
