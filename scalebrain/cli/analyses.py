"""Commands that analyze a store."""

from pathlib import Path
from typing import Any

import click

import scalebrain
from scalebrain.cli.app import cli
from scalebrain.cli.options import EXISTING, FOLDER, STORE, Client, computing

__all__ = [
    "export",
    "import_ages",
    "meta",
    "motor",
    "person",
    "predict",
    "qc",
    "site_summary",
    "train",
]


@cli.command()
@click.argument("store", type=STORE)
@click.argument("model_dir", type=FOLDER)
@computing()
def train(store: str, model_dir: Path, client: Client) -> None:
    """Train the brain-age model on the references of STORE into MODEL_DIR."""
    from scalebrain.pipeline import train_model

    with client():
        train_model(store, model_dir)
    click.echo(model_dir)


@cli.command()
@click.argument("store", type=STORE)
@click.argument("model_dir", type=EXISTING)
@click.option("--replace", is_flag=True, help="Replace imported ages of another tool.")
@computing()
def predict(store: str, model_dir: Path, replace: bool, client: Client) -> None:
    """Predict the regional ages of everyone in STORE, and save them there."""
    from scalebrain.pipeline import predict_ages

    with client():
        predict_ages(store, model_dir, replace=replace)
    click.echo(store)


@cli.command(
    "import-ages",
    epilog="TSV (or .csv) has columns subject, region, brain_age; or subject and a column a "
    "region; or subject and brain_age, the age of the whole brain.",
)
@click.argument("store", type=STORE)
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
@click.argument("store", type=STORE)
@click.argument("out", type=FOLDER)
@click.option("--target", default="motor_score", show_default=True, help="What is predicted.")
@click.option("--groups", default="cohort", show_default=True, help="What is left out.")
@click.option(
    "--severe-below",
    type=float,
    metavar="NUMBER",
    help="A target below this is severe; default: 0.424 of Fugl-Meyer, for motor_score alone.",
)
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
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@computing()
def motor(store: str, out: Path, client: Client, learners: tuple[str, ...], **options: Any) -> None:
    """Predict motor outcome of STORE in cohorts not trained on; results go to OUT."""
    from scalebrain.pipeline import predict_outcome
    from scalebrain.report.motor import motor_summary

    if learners:
        options["learners"] = learners
    with client():
        result = predict_outcome(store, out, **options)
    for sentence in motor_summary(result):
        click.echo(sentence)
    click.echo(out)


@cli.command(epilog="Research use only: associations, no advice about therapy.")
@click.argument("store", type=STORE)
@click.argument("subject")
@click.argument("out", type=FOLDER)
@click.option(
    "--results",
    metavar="results.zarr",
    type=click.Path(path_type=Path),
    help="Results of a study, for its motor prediction; else one is made here.",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@computing()
def person(
    store: str, subject: str, out: Path, results: Path | None, seed: int, client: Client
) -> None:
    """Write what is known of SUBJECT of STORE, as a page and as JSON, to OUT."""
    from scalebrain.io.results import read_results
    from scalebrain.report.person import person_page, write_person

    person_page(subject, out)  # before anything is computed
    motor = None
    if results is not None:
        found, attrs = read_results(results)
        motor = found.get("motor")
        if motor is None:
            reason = dict(attrs.get("missing", {})).get("motor", "none was made")
            click.echo(f"{results}: no motor prediction ({reason}); one is made here", err=True)
    with client():
        report = scalebrain.person_report(
            scalebrain.open_store(store), subject, motor=motor, seed=seed
        )
    click.echo(write_person(report, out))


@cli.command(
    epilog="Open OUT/index.html in a browser, decide, and export decisions.tsv: the key "
    "qc_decisions of a study's configuration, or 'scalebrain features --qc-decisions'."
)
@click.argument("store", type=STORE)
@click.argument("out", type=FOLDER)
@click.option(
    "--subjects",
    multiple=True,
    metavar="LABEL,...",
    help="Only these; outliers are still those among everyone.",
)
@click.option(
    "--decisions",
    metavar="TSV",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Decisions to begin with, as they were exported; default: those of STORE.",
)
@computing()
def qc(
    store: str, out: Path, subjects: tuple[str, ...], decisions: Path | None, client: Client
) -> None:
    """Write a page of each subject of STORE for a quality control, and an index, to OUT."""
    chosen = [label.strip() for text in subjects for label in text.split(",") if label.strip()]
    if subjects and not chosen:
        raise click.UsageError(
            "--subjects names nobody. Give labels, or leave it out for everyone."
        )
    with client():
        index = scalebrain.write_qc_pages(store, out, subjects=chosen, decisions=decisions)
    click.echo(index)


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
@click.argument("store", type=STORE)
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


@cli.command(epilog="R: read.delim('OUT/participants.tsv', na.strings = 'n/a').")
@click.argument("store", type=STORE)
@click.argument("out", type=FOLDER)
@click.option("--results", metavar="results.zarr", type=EXISTING, help="Statistics of a study.")
@click.option(
    "--person-pages",
    is_flag=True,
    help="A page of each included person with a stroke too: OUT/sub-LABEL.html.",
)
def export(store: str, out: Path, results: Path | None, person_pages: bool) -> None:
    """Write what is in STORE to OUT as BIDS derivatives: TSV with JSON, and Parquet."""
    ds = scalebrain.open_store(store)
    click.echo(scalebrain.export_bids(ds, out, results=results, person_pages=person_pages))
