"""Commands: parse, call, print; nothing else."""

import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

import scalebrain
from scalebrain.errors import ScalebrainError
from scalebrain.options import show_progress

__all__ = ["main"]


def _plain_progress() -> Callable[[str, int, int], None]:
    """Progress as plain lines, at most ten a piece of work."""
    shown: dict[str, int] = {}

    def show(label: str, done: int, total: int) -> None:
        tenth = 10 * done // total if total else 10
        if shown.get(label) != tenth:
            shown[label] = tenth
            click.echo(f"{label}: {done}/{total}", err=True)

    return show


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """Log and progress: rich on a terminal, plain lines elsewhere."""
    logger = logging.getLogger("scalebrain")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    if not sys.stderr.isatty():
        handler: logging.Handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
        try:
            with show_progress(_plain_progress()):
                yield
        finally:
            logger.removeHandler(handler)
        return
    from rich.console import Console
    from rich.logging import RichHandler
    from rich.progress import Progress

    console = Console(stderr=True)
    handler = RichHandler(console=console, show_path=False, show_level=False)
    logger.addHandler(handler)
    tasks: dict[str, Any] = {}
    try:
        with Progress(console=console, transient=True) as bars:

            def show(label: str, done: int, total: int) -> None:
                if label not in tasks or bars.tasks[tasks[label]].finished:
                    tasks[label] = bars.add_task(label, total=total)
                bars.update(tasks[label], completed=done, total=total)

            with show_progress(show):
                yield
    finally:
        logger.removeHandler(handler)


def _scheduler(command: Callable[..., Any]) -> Callable[..., Any]:
    """Option of every command that computes."""
    return click.option(
        "--scheduler",
        default=None,
        metavar="SPEC",
        help="'threads', or the address of a Dask scheduler; default: workers on this machine.",
    )(command)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(scalebrain.__version__, prog_name="scalebrain")
def cli() -> None:
    """Regional brain age and stroke lesion statistics for large MRI cohorts."""


_EXISTING = click.Path(exists=True, file_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)


def _simulation(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of the simulation, defined once."""
    for option in (
        click.option("--seed", default=0, show_default=True, help="Same seed, same bytes."),
        click.option("--resolution", default=2.0, show_default=True, help="Voxel size in mm."),
        click.option("--cohorts", default=6, show_default=True, help="Number of cohorts."),
        click.option("--stroke", default=60, show_default=True, help="People with a stroke."),
        click.option("--reference", default=120, show_default=True, help="Healthy references."),
    ):
        command = option(command)
    return command


@cli.command()
@click.argument("out", type=_FOLDER)
@_simulation
@click.option(
    "--rival-direction",
    is_flag=True,
    help="Plant motor outcome -> contralesional frontoparietal deviation, not the reverse.",
)
@_scheduler
def simulate(out: Path, scheduler: str | None, **options: Any) -> None:
    """Write a simulated cohort with known truth to OUT, as a BIDS derivatives tree."""
    with scalebrain.open_client(scheduler):
        click.echo(scalebrain.simulate_cohort(out, **options))


@cli.command()
@click.argument("bids_dir", type=_EXISTING)
@click.argument("store", type=_FOLDER)
@_scheduler
def ingest(bids_dir: Path, store: Path, scheduler: str | None) -> None:
    """Read the scans of BIDS_DIR into the cohort store STORE."""
    with scalebrain.open_client(scheduler):
        click.echo(scalebrain.ingest(bids_dir, store))


@cli.command()
@click.argument("store", type=_EXISTING)
@_scheduler
def features(store: Path, scheduler: str | None) -> None:
    """Compute inclusion, node features and lesion loads of STORE."""
    from scalebrain.pipeline import compute_features

    with scalebrain.open_client(scheduler):
        compute_features(store)
    click.echo(store)


@cli.command()
@click.argument("store", type=_EXISTING)
@click.argument("model_dir", type=_FOLDER)
@_scheduler
def train(store: Path, model_dir: Path, scheduler: str | None) -> None:
    """Train the brain-age model on the references of STORE into MODEL_DIR."""
    from scalebrain.pipeline import train_model

    with scalebrain.open_client(scheduler):
        train_model(store, model_dir)
    click.echo(model_dir)


@cli.command()
@click.argument("store", type=_EXISTING)
@click.argument("model_dir", type=_EXISTING)
@_scheduler
def predict(store: Path, model_dir: Path, scheduler: str | None) -> None:
    """Predict the regional ages of everyone in STORE, and save them there."""
    from scalebrain.pipeline import predict_ages

    with scalebrain.open_client(scheduler):
        predict_ages(store, model_dir)
    click.echo(store)


@cli.command()
@click.argument("bids_dir", type=_EXISTING)
@click.argument("out", type=_FOLDER)
@click.option("--config", type=click.Path(exists=True, dir_okay=False), help="Study YAML.")
@click.option("--truth", type=click.Path(exists=True, dir_okay=False), help="Simulation's truth.")
@_scheduler
def run(
    bids_dir: Path, out: Path, config: str | None, truth: str | None, scheduler: str | None
) -> None:
    """Run the whole study on BIDS_DIR; results go to OUT."""
    with scalebrain.open_client(scheduler):
        report = scalebrain.run_study(bids_dir, out, config, truth=truth)
    click.echo(report)


@cli.command()
@click.argument("out", type=_FOLDER)
@_simulation
@_scheduler
def demo(out: Path, scheduler: str | None, **options: Any) -> None:
    """Simulate a cohort and run the whole study on it; results go to OUT."""
    with scalebrain.open_client(scheduler):
        tree = scalebrain.simulate_cohort(out / "bids", **options)
        report = scalebrain.run_study(tree, out, truth=out / "truth.json")
    click.echo(report)


def main(arguments: list[str] | None = None) -> None:
    """Run a command: exit code 0 success, 1 failure, 2 usage.

    Parameters
    ----------
    arguments
        Command line without the program's name; that of the process when None.
    """
    try:
        with _watched():
            cli.main(args=arguments, prog_name="scalebrain", standalone_mode=False)
    except click.UsageError as error:
        error.show()
        sys.exit(2)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped; the same command goes on from here", err=True)
        sys.exit(1)
    except ScalebrainError as error:
        click.secho(f"error: {error}", fg="red", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
