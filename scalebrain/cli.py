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


#: Exit code of a partial success.
_PARTIAL = 3
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


def _reading(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of how files are read, defined once."""
    for option in (
        click.option(
            "--lesion-labels",
            default="",
            metavar="1,2",
            help="Labels of multi-label masks that are lesion.",
        ),
        click.option("--volume", type=click.IntRange(0), help="Frame of 4-D images, from 0."),
        click.option(
            "--assume-space", is_flag=True, help="Trust images whose orientation codes are 0."
        ),
        click.option(
            "--root",
            type=click.Path(exists=True, file_okay=False, path_type=Path),
            help="Folder that the paths of a manifest may not leave; default: its own.",
        ),
        click.option("--prefix", default="", help="Put in front of every label of the datasets."),
        click.option("--session", help="Session to take of people with several, or 'all'."),
    ):
        command = option(command)
    return command


def _tell_rejected(store: str) -> None:
    """Say how many subjects a store lacks, and leave with the code of a partial success."""
    rejected = scalebrain.problems(store)
    if len(rejected):
        click.echo(f"{len(rejected)} rejected: {store}/ingest/rejected.tsv", err=True)
        raise click.exceptions.Exit(_PARTIAL)


def _labels(text: str) -> tuple[int, ...]:
    """Labels of a comma-separated list."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no list of whole numbers, as 1,2") from error


@cli.command(
    epilog="A source is a folder (BIDS derivatives, ATLAS R2.0, CAT12, UK Biobank, FreeSurfer) or "
    "a manifest (TSV or CSV). Exit code 3: some subjects were rejected, the others are in."
)
@click.argument("sources", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.argument("store")
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
@_reading
@_scheduler
def ingest(
    sources: tuple[Path, ...],
    store: str,
    scheduler: str | None,
    lesion_labels: str,
    **options: Any,
) -> None:
    """Read SOURCES into the cohort store STORE, a path or URL."""
    with scalebrain.open_client(scheduler):
        scalebrain.ingest(sources, store, lesion_labels=_labels(lesion_labels), **options)
    click.echo(store)
    _tell_rejected(store)


@cli.command(epilog="Exit code 3: some subjects would be rejected.")
@click.argument("sources", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@_reading
@_scheduler
def validate(
    sources: tuple[Path, ...], scheduler: str | None, lesion_labels: str, **options: Any
) -> None:
    """Do every check of an ingest of SOURCES and write nothing."""
    with scalebrain.open_client(scheduler):
        found = scalebrain.validate(sources, lesion_labels=_labels(lesion_labels), **options)
    for row in found.itertuples():
        click.echo(f"{row.action} [{row.code}] {row.dataset} {row.subject}: {row.message}")
    rejected = int((found["action"] == "E").sum())
    click.echo(
        f"{found.attrs['n_subjects']} subjects usable, {rejected} rejected, "
        f"{len(found) - rejected} warnings"
    )
    if rejected:
        raise click.exceptions.Exit(_PARTIAL)


@cli.group()
def store() -> None:
    """Look after a cohort store."""


@store.command("info")
@click.argument("path")
def store_info(path: str) -> None:
    """Say what the store at PATH holds, as YAML."""
    import yaml

    from scalebrain.ingestion.upkeep import store_info as info

    click.echo(yaml.safe_dump(info(path), sort_keys=False).rstrip())


@store.command("verify")
@click.argument("path")
@_scheduler
def store_verify(path: str, scheduler: str | None) -> None:
    """Compare every shard of the store at PATH with the hash of what was written."""
    from scalebrain.ingestion.upkeep import verify_store

    with scalebrain.open_client(scheduler):
        damaged = verify_store(path)
    for line in damaged:
        click.echo(line)
    if damaged:
        click.echo(f"{len(damaged)} damaged. Run the same ingest with --verify.", err=True)
        raise click.exceptions.Exit(1)
    click.echo(f"{path}: intact")


@store.command("withdraw")
@click.argument("path")
@click.argument("ids", nargs=-1)
@click.option(
    "--list",
    "listed",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File of ids, one a line; those that the store does not hold are kept out too.",
)
def store_withdraw(path: str, ids: tuple[str, ...], listed: Path | None) -> None:
    """Remove the participants IDS from the store at PATH, and keep them out."""
    from scalebrain.ingestion.upkeep import withdraw
    from scalebrain.io.sources import read_withdrawn

    more = read_withdrawn(listed) if listed else frozenset()
    if not ids and not more:
        raise click.UsageError("Name participants, or give a list of them.")
    n = withdraw(path, ids, also=more)
    click.echo(f"{n} rows emptied, {len(ids) + len(more)} people named; all of them are kept out")


@cli.command()
@click.argument("store")
@click.option(
    "--nodes",
    default="volume",
    show_default=True,
    help="volume, or surface-3, surface-4, surface-5: vertices of the cortical surface.",
)
@_scheduler
def features(store: str, nodes: str, scheduler: str | None) -> None:
    """Compute inclusion, node features and lesion loads of STORE."""
    from scalebrain.pipeline import compute_features

    with scalebrain.open_client(scheduler):
        compute_features(store, nodes=nodes)
    click.echo(store)


@cli.command()
@click.argument("store")
@click.argument("model_dir", type=_FOLDER)
@_scheduler
def train(store: str, model_dir: Path, scheduler: str | None) -> None:
    """Train the brain-age model on the references of STORE into MODEL_DIR."""
    from scalebrain.pipeline import train_model

    with scalebrain.open_client(scheduler):
        train_model(store, model_dir)
    click.echo(model_dir)


@cli.command()
@click.argument("store")
@click.argument("model_dir", type=_EXISTING)
@click.option("--replace", is_flag=True, help="Replace imported ages of another tool.")
@_scheduler
def predict(store: str, model_dir: Path, replace: bool, scheduler: str | None) -> None:
    """Predict the regional ages of everyone in STORE, and save them there."""
    from scalebrain.pipeline import predict_ages

    with scalebrain.open_client(scheduler):
        predict_ages(store, model_dir, replace=replace)
    click.echo(store)


@cli.command(
    "import-ages",
    epilog="TSV (or .csv) has columns subject, region, brain_age; or subject and a column a "
    "region; or subject and brain_age, the age of the whole brain.",
)
@click.argument("store")
@click.argument("table", metavar="TSV", type=click.Path(path_type=Path))
@click.option("--tool", required=True, metavar="NAME", help="Tool that predicted the ages.")
@click.option("--tool-version", default="", metavar="VERSION", help="Its version.")
@click.option(
    "--trained-on",
    type=click.Choice(["real", "simulated", "unknown"]),
    default="unknown",
    show_default=True,
    help="People that the tool's model learned from.",
)
@click.option("--replace", is_flag=True, help="Replace ages of another tool or of our model.")
def import_ages(store: str, table: Path, **options: Any) -> None:
    """Take the brain ages that another tool predicted into STORE."""
    scalebrain.import_ages(store, table, **options)
    click.echo(store)


@cli.command(
    epilog="OUT gets motor.zarr and one motor_*.tsv for every set of dimensions. Cohorts are left "
    "out one at a time: no score is of people whom the model has seen."
)
@click.argument("store")
@click.argument("out", type=_FOLDER)
@click.option("--target", default="motor_score", show_default=True, help="What is predicted.")
@click.option("--groups", default="cohort", show_default=True, help="What is left out.")
@click.option(
    "--learner",
    "learners",
    multiple=True,
    type=click.Choice(["elastic_net", "random_forest", "gradient_boosting"]),
    help="Only these learners; default: all.",
)
@click.option(
    "--extra",
    metavar="TSV",
    type=click.Path(path_type=Path),
    help="Further predictors: subject, and a column each. Everyone used needs a row.",
)
@click.option(
    "--permutations", "n_permutations", default=100, show_default=True, type=click.IntRange(0)
)
@click.option("--seed", default=0, show_default=True)
@_scheduler
def motor(
    store: str, out: Path, scheduler: str | None, learners: tuple[str, ...], **options: Any
) -> None:
    """Predict motor outcome of STORE in cohorts not trained on; results go to OUT."""
    from scalebrain.pipeline import predict_outcome
    from scalebrain.report.motor import motor_summary

    if learners:
        options["learners"] = learners
    with scalebrain.open_client(scheduler):
        result = predict_outcome(store, out, **options)
    for sentence in motor_summary(result):
        click.echo(sentence)
    click.echo(out)


@cli.command(epilog="Research use only: associations, no advice about therapy.")
@click.argument("store")
@click.argument("subject")
@click.argument("out", type=_FOLDER)
@click.option(
    "--results",
    metavar="results.zarr",
    type=click.Path(path_type=Path),
    help="Results of a study, for its motor prediction; else one is made here.",
)
@click.option("--seed", default=0, show_default=True)
@_scheduler
def person(
    store: str, subject: str, out: Path, results: Path | None, seed: int, scheduler: str | None
) -> None:
    """Write what is known of SUBJECT of STORE, as a page and as JSON, to OUT."""
    from scalebrain.io.results import read_results
    from scalebrain.report.person import write_person

    motor = None
    if results is not None:
        found, attrs = read_results(results)
        motor = found.get("motor")
        if motor is None:
            reason = dict(attrs.get("missing", {})).get("motor", "none was made")
            click.echo(f"{results}: no motor prediction ({reason}); one is made here", err=True)
    with scalebrain.open_client(scheduler):
        report = scalebrain.person_report(
            scalebrain.open_store(store), subject, motor=motor, seed=seed
        )
    click.echo(write_person(report, out))


def _named_levels(_: Any, __: Any, values: tuple[str, ...]) -> dict[str, list[str]]:
    """Levels of several options NAME=A,B."""
    made = {}
    for text in values:
        name, equals, levels = text.partition("=")
        if not equals or not name.strip() or "" in levels.split(","):
            raise click.BadParameter(f"{text!r} is not NAME=FIRST,SECOND")
        made[name.strip()] = [level.strip() for level in levels.split(",")]
    return made


@cli.command("site-summary")
@click.argument("store")
@click.argument("out", metavar="OUT.json", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--formula",
    default="brain_pad_corrected ~ log10(lesion_volume) + age + sex",
    show_default=True,
    help="The same at every site.",
)
@click.option("--cohort", "cohorts", multiple=True, metavar="NAME", help="Only these cohorts.")
@click.option("--group", metavar="NAME", help="Only people of this group, e.g. stroke.")
@click.option(
    "--levels",
    multiple=True,
    metavar="NAME=A,B",
    callback=_named_levels,
    help="Levels of a text variable, the same at every site; sex is F,M.",
)
def site_summary(
    store: str, out: Path, formula: str, cohorts: tuple[str, ...], **options: Any
) -> None:
    """Write sums of squares of STORE that hold no person, for a meta-analysis."""
    from scalebrain.io.summaries import write_summary

    ds = scalebrain.open_store(store)
    summary = scalebrain.site_summary(ds, formula, cohorts=cohorts or None, **options)
    write_summary(summary, out)
    click.echo(out)


@cli.command(epilog="The table goes to the standard output, as tab-separated values.")
@click.argument(
    "summaries", metavar="SUMMARY...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
def meta(summaries: tuple[Path, ...]) -> None:
    """Pool the summaries of sites that share no people."""
    from scalebrain.io.summaries import read_summary
    from scalebrain.stats.meta import meta_table

    result = scalebrain.meta([read_summary(path) for path in summaries])
    click.echo(meta_table(result).to_csv(sep="\t", float_format="%.10g").rstrip())


@cli.command(epilog="Exit code 3: some subjects were rejected, the study ran on the others.")
@click.argument("bids_dir", type=click.Path(exists=True, path_type=Path))
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
    _tell_rejected(str(out / "cohort.zarr"))


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


@cli.command(epilog="R: read.delim('OUT/participants.tsv', na.strings = 'n/a').")
@click.argument("store")
@click.argument("out", type=_FOLDER)
@click.option("--results", metavar="results.zarr", type=_EXISTING, help="Statistics of a study.")
def export(store: str, out: Path, results: Path | None) -> None:
    """Write what is in STORE to OUT as BIDS derivatives: TSV with JSON, and Parquet."""
    click.echo(scalebrain.export_bids(scalebrain.open_store(store), out, results=results))


def main(arguments: list[str] | None = None) -> None:
    """Run a command: exit code 0 success, 1 failure, 2 usage, 3 partial success.

    Parameters
    ----------
    arguments
        Command line without the program's name; that of the process when None.
    """
    try:
        with _watched():
            code = cli.main(args=arguments, prog_name="scalebrain", standalone_mode=False)
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
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
