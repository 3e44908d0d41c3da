"""What has to be known of a brain-age model, as Markdown and for a notebook."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import escape

from scalebrain.graph.images import voxel_text

if TYPE_CHECKING:
    from scalebrain.graph.train import Training

__all__ = ["card_html", "card_text"]

_SIMULATED = "Trained on simulated people. It says nothing about a real brain."
_USE = "Research use only; not a medical device."
_HASHES = (
    "model.json holds hashes of the scans and of the ids (dataset and person) of those trained on: "
    "who guesses an id can tell whether it was, so share it as you would share the ids"
)
_COLUMNS = ("region", "MAE", "MAE of predicting the mean", "r")

Metrics = Mapping[str, Mapping[str, float]]


def card_text(
    training: "Training", features: Sequence[str], metrics: Metrics, about: Mapping[str, Any]
) -> str:
    """Model card, in Markdown."""
    simulated = f"**{_SIMULATED}**\n\n" if about["simulated"] == "true" else ""
    facts = "\n".join(f"- {fact}" for fact in _facts(training, features, about))
    rows = "\n".join(f"| {' | '.join(row)} |" for row in _rows(metrics))
    return (
        f"# Regional brain-age model\n\n{simulated}{_USE}\n\n{facts}\n\n"
        "Out-of-fold accuracy on the references, years:\n\n"
        f"| {' | '.join(_COLUMNS)} |\n| - | - | - | - |\n{rows}\n"
    )


def card_html(
    training: "Training", features: Sequence[str], metrics: Metrics, about: Mapping[str, Any]
) -> str:
    """Model card, as HTML for a notebook; all text is escaped."""
    simulated = f"<p><strong>{_SIMULATED}</strong></p>" if about["simulated"] == "true" else ""
    facts = "".join(f"<li>{escape(fact)}</li>" for fact in _facts(training, features, about))
    head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(value)}</td>" for value in row) + "</tr>"
        for row in _rows(metrics)
    )
    return (
        f"<div><p><strong>Regional brain-age model</strong></p>{simulated}<p>{_USE}</p>"
        f"<ul>{facts}</ul><details><summary>Out-of-fold accuracy of {len(metrics)} regions, years"
        f"</summary><table><tr>{head}</tr>{rows}</table></details></div>"
    )


def _facts(
    training: "Training", features: Sequence[str], about: Mapping[str, Any]
) -> tuple[str, ...]:
    """Say in sentences what the model is."""
    ages = f"{about['age_min']:.1f} to {about['age_max']:.1f} years"
    n, n_people = about["n_training"], about.get("n_people")
    scans = f"{n} references" if n_people is None else f"{n} scans of {n_people} references"
    people = f"Trained on {scans} aged {ages}"
    return (
        f"Layer: {training.layer}; {training.folds} folds; seed {training.seed}",
        *_convolved(training, about),
        f"Node features: {', '.join(features)}",
        f"Space: {about['space']}{_images(about)}",
        f"{people}; elsewhere predictions are marked as extrapolated",
        f"Interval: split-conformal, {100 * about['coverage']:g}%",
        _HASHES,
    )


def _convolved(training: "Training", about: Mapping[str, Any]) -> tuple[str, ...]:
    """Say how many folds are more than ridge regression, where that is known."""
    if "convolved_folds" not in about:
        return ()
    kept = f"Convolutions kept in {about['convolved_folds']} of {training.folds} folds"
    if about["convolved_folds"] == training.folds:
        return (kept,)
    return (f"{kept}; others are ridge regressions, not bettered by a standard error",)


def _images(about: Mapping[str, Any]) -> str:
    """Voxels and grey matter that the model is for, where that is known."""
    size = f"; voxels of {voxel_text(about['voxel_size'])}" if "voxel_size" in about else ""
    if "gm_modulated" not in about:
        return size
    return f"{size}; {'modulated' if about['gm_modulated'] else 'unmodulated'} grey matter"


def _rows(metrics: Metrics) -> list[tuple[str, ...]]:
    """Scores of every region."""
    return [
        (region, f"{m['mae']:.2f}", f"{m['mae_mean']:.2f}", f"{m['r']:.2f}")
        for region, m in metrics.items()
    ]
