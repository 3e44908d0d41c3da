"""Commands of the whole study."""

import json
from pathlib import Path
from typing import Any

import click

import scalebrain
from scalebrain.cli.app import cli
from scalebrain.cli.data import tell_rejected
from scalebrain.cli.options import (
    FOLDER,
    Client,
    check_scheduler,
    computing,
    simulation,
    unheard,
    waits_in_a_queue,
)
from scalebrain.config import read_config

__all__ = ["check_study", "config", "demo", "log_of_study", "run", "tell_preview"]

_ONE_GB = 1e9


def log_of_study(options: dict[str, Any]) -> Path | None:
    """Log of a study: beside its results, unless nothing is written."""
    return None if options.get("dry_run") else options["out"] / "log.jsonl"


@cli.command(epilog="Exit code 3: some subjects were rejected, the study ran on the others.")
@click.argument("bids_dir", type=click.Path(exists=True, path_type=Path))
@click.argument("out", type=FOLDER)
@click.option("--config", type=click.Path(exists=True, dir_okay=False), help="Study YAML.")
@click.option("--truth", type=click.Path(exists=True, dir_okay=False), help="Simulation's truth.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and write nothing.")
@computing(log_of_study)
def run(
    bids_dir: Path, out: Path, config: str | None, truth: str | None, dry_run: bool, client: Client
) -> None:
    """Run the whole study on BIDS_DIR; results and log.jsonl go to OUT."""
    if dry_run:
        check_scheduler(client)
        tell_preview(bids_dir, out, config, truth=truth)
        return
    read_config(config)  # before workers are started
    if waits_in_a_queue(client):
        check_study(bids_dir, out, config, truth=truth)
    with client():
        report = scalebrain.run_study(bids_dir, out, config, truth=truth)
    click.echo(report)
    tell_rejected(str(out / "cohort.zarr"))


def check_study(bids_dir: Path, out: Path, config: Any, **options: Any) -> None:
    """Refuse what a study would refuse at its beginning, before workers wait in a queue.

    Parameters
    ----------
    bids_dir, out, config
        As for :func:`scalebrain.run_study`.
    **options
        Of :func:`scalebrain.run_study`.
    """
    from scalebrain.pipeline import preview_study

    with unheard():
        preview_study(bids_dir, out, config, **options)


def tell_preview(bids_dir: Path, out: Path, config: Any, **options: Any) -> None:
    """Print what a study would do.

    Parameters
    ----------
    bids_dir, out, config
        As for :func:`scalebrain.run_study`.
    **options
        Of :func:`scalebrain.run_study`.
    """
    from scalebrain.pipeline import preview_study

    preview = preview_study(bids_dir, out, config, **options)
    scans = preview.ingest
    if scans is not None:
        click.echo(
            f"scans: {scans.n_scans}, {scans.n_new} of them new, {scans.n_changed} changed; "
            f"{scans.n_rejected} people rejected before anything is read"
        )
        click.echo(f"store: {preview.store}, about {_size(scans.n_bytes)} of scans when complete")
    for number, (name, is_done) in enumerate(preview.stages, start=1):
        state = "done before" if is_done else "would run"
        click.echo(f"{number}/{len(preview.stages)} {name}: {state}")
    click.echo("nothing was written")


def _size(n_bytes: int) -> str:
    """Size in words."""
    return f"{n_bytes / _ONE_GB:.1f} GB" if n_bytes >= _ONE_GB else f"{n_bytes / 1e6:.0f} MB"


@cli.command()
@click.argument("out", type=FOLDER)
@simulation
@computing(log_of_study)
def demo(out: Path, client: Client, **options: Any) -> None:
    """Simulate a cohort and run the whole study on it; results and log.jsonl go to OUT."""
    with client():
        tree = scalebrain.simulate_cohort(out / "bids", **options)
        report = scalebrain.run_study(tree, out, truth=out / "truth.json")
    click.echo(report)


@cli.command()
@click.option("--schema", is_flag=True, help="Print the JSON schema instead.")
@click.option(
    "--check",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False),
    help="Check this configuration instead, and print nothing but what is wrong.",
)
def config(schema: bool, check: str | None) -> None:
    """Print a configuration of a study with every key, its default and what it does."""
    from scalebrain.config import config_schema, default_yaml

    if check and schema:
        raise click.UsageError("--check and --schema exclude each other. Give one of them.")
    if check:
        read_config(check)
    elif schema:
        click.echo(json.dumps(config_schema(), indent=2))
    else:
        click.echo(default_yaml(), nl=False)
