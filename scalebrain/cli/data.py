"""Commands that make stores and look after them."""

import re
from pathlib import Path
from typing import Any

import click

import scalebrain
from scalebrain.cli.app import cli
from scalebrain.cli.options import (
    FOLDER,
    NODES,
    STORE,
    Client,
    computing,
    reading,
    simulation,
    unheard,
    waits_in_a_queue,
)

__all__ = ["features", "ingest", "simulate", "store", "tell_rejected", "validate"]

#: Exit code of a partial success.
PARTIAL = 3


@cli.command()
@click.argument("out", type=FOLDER)
@simulation
@click.option(
    "--rival-direction",
    is_flag=True,
    help="Plant motor outcome -> contralesional frontoparietal deviation, not the reverse.",
)
@click.option(
    "--surfaces", is_flag=True, help="Write FreeSurfer folders in place of T1w and grey matter."
)
@computing()
def simulate(out: Path, client: Client, **options: Any) -> None:
    """Write a simulated cohort with known truth to OUT, as a BIDS derivatives tree."""
    with client():
        click.echo(scalebrain.simulate_cohort(out, **options))


def tell_rejected(store: str) -> None:
    """Say how many subjects a store lacks, and leave with the code of a partial success."""
    rejected = scalebrain.problems(store)
    if len(rejected):
        click.echo(f"{len(rejected)} rejected: {store}/ingest/rejected.tsv", err=True)
        raise click.exceptions.Exit(PARTIAL)


def _part(_: click.Context, __: click.Parameter, text: str | None) -> tuple[int, int] | None:
    """Read the number and count of a part."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise click.BadParameter(f"{text!r} is not I/N with I from 1 to N, as 1/8")
    return int(found[1]), int(found[2])


@cli.command(
    epilog="A source is a folder (BIDS derivatives, ATLAS R2.0, CAT12, UK Biobank, FreeSurfer) or "
    "a manifest (TSV or CSV). Exit code 3: some subjects were rejected, the others are in."
)
@click.argument("sources", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.argument("store", type=STORE)
@click.option("--update", is_flag=True, help="Add to a finished store, read changed scans again.")
@click.option("--strict", is_flag=True, help="Stop when any subject is rejected.")
@click.option(
    "--withdrawn",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File of ids, one a line, of people who withdrew consent.",
)
@click.option("--resolution", type=float, help="Voxel size in mm of a new store.")
@click.option("--whole-head", is_flag=True, help="Keep voxels outside the brain too.")
@click.option("--min-lesion", default=0.0, metavar="ML", help="Leave smaller components out.")
@click.option("--verify", is_flag=True, help="Write again what is damaged.")
@click.option(
    "--part",
    metavar="I/N",
    callback=_part,
    help="Do the I-th of N shares of the work, beside processes that do the others; then run it "
    "without, which finishes the store.",
)
@reading
@computing()
def ingest(
    sources: tuple[Path, ...],
    store: str,
    part: tuple[int, int] | None,
    client: Client,
    **options: Any,
) -> None:
    """Read SOURCES into the cohort store STORE, a path or URL."""
    if part is None and waits_in_a_queue(client):
        from scalebrain.ingestion.preview import preview_ingest

        look = {k: v for k, v in options.items() if k not in ("update", "verify")}
        with unheard():
            preview_ingest(sources, store, **look)
    with client():
        scalebrain.ingest(sources, store, part=part, **options)
    click.echo(store)
    if part is None:
        tell_rejected(store)


@cli.command(epilog="Exit code 3: some subjects would be rejected.")
@click.argument("sources", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@reading
@computing()
def validate(sources: tuple[Path, ...], client: Client, **options: Any) -> None:
    """Do every check of an ingest of SOURCES and write nothing."""
    with client():
        found = scalebrain.validate(sources, **options)
    for row in found.itertuples():
        click.echo(f"{row.action} [{row.code}] {row.dataset} {row.subject}: {row.message}")
    rejected = int((found["action"] == "E").sum())
    click.echo(
        f"{found.attrs['n_subjects']} subjects usable, {rejected} rejected, "
        f"{len(found) - rejected} warnings"
    )
    if rejected:
        raise click.exceptions.Exit(PARTIAL)


@cli.group()
def store() -> None:
    """Look after a cohort store."""


@store.command("info")
@click.argument("path", type=STORE)
def store_info(path: str) -> None:
    """Say what the store at PATH holds, as YAML."""
    import yaml

    from scalebrain.ingestion.upkeep import store_info as info

    click.echo(yaml.safe_dump(info(path), sort_keys=False).rstrip())


@store.command("verify")
@click.argument("path", type=STORE)
@computing()
def store_verify(path: str, client: Client) -> None:
    """Compare every shard of the store at PATH with the hash of what was written."""
    from scalebrain.ingestion.upkeep import verify_store

    with client():
        damaged = verify_store(path)
    for line in damaged:
        click.echo(line)
    if damaged:
        click.echo(f"{len(damaged)} damaged. Run the same ingest with --verify.", err=True)
        raise click.exceptions.Exit(1)
    click.echo(f"{path}: intact")


@store.command("withdraw")
@click.argument("path", type=STORE)
@click.argument("ids", nargs=-1)
@click.option(
    "--list",
    "listed",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File of ids, one a line; those that the store does not hold are kept out too.",
)
def store_withdraw(path: str, ids: tuple[str, ...], listed: Path | None) -> None:
    """Remove the participants IDS from the store at PATH, and keep them out."""
    from scalebrain.ingestion.upkeep import withdraw_people
    from scalebrain.io.sources import read_withdrawn

    more = read_withdrawn(listed) if listed else frozenset()
    if not ids and not more:
        raise click.UsageError("Name participants, or give a list of them.")
    done = withdraw_people(path, ids, also=more)
    click.echo(
        f"{done.rows} rows emptied, {done.found} of {done.named} people named were in the store; "
        "all of them are kept out"
    )


@cli.command()
@click.argument("store", type=STORE)
@click.option(
    "--nodes",
    type=click.Choice(NODES),
    default="volume",
    show_default=True,
    help="Pieces of grey matter of the T1w scan, or vertices of the cortical surface.",
)
@click.option(
    "--qc-decisions",
    "decisions",
    metavar="TSV",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Decisions of a quality control, as the pages of 'scalebrain qc' export them.",
)
@computing()
def features(store: str, nodes: str, decisions: Path | None, client: Client) -> None:
    """Compute inclusion, node features and lesion loads of STORE."""
    from scalebrain.pipeline import compute_features

    with client():
        compute_features(store, nodes=nodes, decisions=decisions)
    click.echo(store)
