"""Command that brings raw scans to template space."""

from pathlib import Path
from typing import Any

import click

import scalebrain
from scalebrain.cli.app import cli
from scalebrain.cli.data import PARTIAL
from scalebrain.cli.options import EXISTING, FOLDER, Client, computing, lesion_labels

__all__ = ["preprocess"]


def _workers(options: dict[str, Any], memory: int | None) -> int:
    """Workers of this machine, each of which has one scan at a time."""
    from scalebrain.preprocessing.settings import scans_at_once

    return scans_at_once(options["threads"], memory=memory)


@cli.command(
    epilog="Then: scalebrain ingest OUT STORE. DICOM is converted before (dcm2niix, BIDScoin). "
    "Exit code 3: some scans were left out (OUT/problems.tsv), the others are done; the same "
    "command goes on."
)
@click.argument("bids_dir", type=EXISTING)
@click.argument("out", type=FOLDER)
@click.option(
    "--quick/--full",
    default=False,
    show_default="--full",
    help="Affine alone and images of 2 mm, or SyN behind it and 1 mm.",
)
@click.option(
    "--fill",
    type=click.Choice(["enantiomorphic"]),
    help="Fill lesions from the other hemisphere for the registration, instead of leaving them "
    "out of its cost.",
)
@click.option("--lesions", type=EXISTING, help="Folder of the lesion masks, when not in BIDS_DIR.")
@click.option(
    "--participant-label", "labels", multiple=True, metavar="LABEL", help="Take only these."
)
@lesion_labels
@click.option(
    "--threads",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Threads of a scan; by default as many scans run at once as cores and 2 GB of memory for "
    "each allow.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and write nothing.")
@computing(default_workers=_workers)
def preprocess(
    bids_dir: Path,
    out: Path,
    labels: tuple[str, ...],
    lesions: Path | None,
    dry_run: bool,
    client: Client,
    **options: Any,
) -> None:
    """Bring raw T1w scans of BIDS_DIR and their lesion masks to template space, into OUT."""
    if dry_run:
        from scalebrain.preprocessing.cohort import plan_lines

        scans, rejected = plan_lines(bids_dir, lesions=lesions, participants=labels)
        for line in (*scans, *rejected):
            click.echo(line)
        if rejected:
            raise click.exceptions.Exit(PARTIAL)
        return
    with client():
        found = scalebrain.preprocess(
            bids_dir, out, lesions=lesions, participants=labels, **options
        )
    for row in found.itertuples():
        click.echo(f"{row.action} [{row.code}] {row.subject}: {row.message}", err=True)
    click.echo(out)
    done, resumed, failed = (found.attrs[f"n_{n}"] for n in ("done", "resumed", "failed"))
    click.echo(f"{done} done, {resumed} done before, {failed} left out", err=True)
    if failed:
        raise click.exceptions.Exit(PARTIAL)
