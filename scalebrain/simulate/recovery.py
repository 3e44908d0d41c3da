"""Planted beside recovered: what a study of a simulated cohort found of the truth."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.stats
import xarray as xr

from scalebrain.errors import ConfigError, StatisticsError
from scalebrain.features.laterality import to_lesional_sides
from scalebrain.stats.frame import eligible_subjects, lesional_measures

__all__ = ["add_truth", "compare_effects", "recovery_table"]

_TERM = "scale(log10(lesion_volume))"


def _read(truth: str | Path) -> tuple[dict[str, Any], xr.Dataset]:
    """Effects and oracle, and the truth of every subject."""
    path = Path(truth)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["effects"], content["oracle"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{path}: not the truth of a simulated cohort ({error!r}).") from error
    from scalebrain.io.store import open_store

    return content, open_store(path.with_suffix(".zarr"))


def add_truth(accuracy: xr.Dataset, ds: xr.Dataset, truth: str | Path) -> xr.Dataset:
    """Put the truth beside the accuracy of every region.

    Parameters
    ----------
    accuracy
        By region: ``mae``, ``mae_mean``, ``r``, ``n``.
    ds
        Store with predictions.
    truth
        ``truth.json`` of the simulation.

    Returns
    -------
    Dataset
        With ``deviation_r``, the correlation of ``brain_pad_corrected`` with the true
        deviation over included references, and ``oracle_mae`` and ``oracle_r``, the best
        that a linear method could do from the region's own voxels, given the noise of the
        simulation. Voxels at borders carry the aging of neighbors too, so that an error can lie
        below it.

    Raises
    ------
    ConfigError
        When the truth is not that of the store's subjects.
    """
    content, people = _read(truth)
    regions = [str(r) for r in ds["region"].values]
    oracle = content["oracle"]["regions"]
    unknown = [region for region in regions if region not in oracle]
    if unknown:
        raise ConfigError(
            f"The truth knows nothing of regions {', '.join(unknown[:4])}; it has "
            f"{', '.join(list(oracle)[:4])} and others. Take the regions that were simulated."
        )
    true = _aligned(people, ds)["true_deviation"]
    keep = (ds["group"].values == "reference") & ds["included"].values.astype(bool)
    pad = ds["brain_pad_corrected"].values[keep]
    deviation = true.sel(region=ds["region"].values).values[keep]
    return accuracy.assign(
        deviation_r=(
            "region",
            [_correlation(pad[:, r], deviation[:, r]) for r in range(len(regions))],
        ),
        oracle_mae=("region", [float(oracle[region]["mae"]) for region in regions]),
        oracle_r=("region", [float(oracle[region]["r_deviation"]) for region in regions]),
    )


def _correlation(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> float:
    """Correlation over the people who have both; NaN for fewer than two."""
    both = np.isfinite(a) & np.isfinite(b)
    return float(np.corrcoef(a[both], b[both])[0, 1]) if both.sum() > 1 else float("nan")


def _aligned(people: xr.Dataset, ds: xr.Dataset) -> xr.Dataset:
    """Truth in the order of the store."""
    missing = sorted(set(ds["subject"].values.tolist()) - set(people["subject"].values.tolist()))
    if missing:
        raise ConfigError(
            f"The truth knows nothing of {len(missing)} subjects of the store, e.g. {missing[0]}. "
            "Give the truth.json that was written with the tree."
        )
    out = people.sel(subject=ds["subject"].values)
    apart = np.abs(out["age"].values - ds["age"].values)  # tables have a decimal
    other = ds["subject"].values[apart > 0.06].tolist()
    if other:
        raise ConfigError(
            f"The truth has other ages for {len(other)} subjects, e.g. {other[0]}: it is that of "
            "another simulation. Give the truth.json that was written with the tree."
        )
    return out


def recovery_table(ds: xr.Dataset, mixed: xr.Dataset | None, truth: str | Path) -> pd.DataFrame:
    """Compare every planted effect with its estimate.

    Parameters
    ----------
    ds
        Store with predictions, loads and motor scores.
    mixed
        Mixed model of ``brain_pad_corrected`` on lesion volume by lesional region.
    truth
        ``truth.json`` of the simulation.

    Returns
    -------
    DataFrame
        ``effect``, ``planted``, ``unit``, ``estimate``, ``ci_low``, ``ci_high``, ``n`` (people
        used), ``inside``.

    Raises
    ------
    StatisticsError
        When the study has too few strokes, or no mixed model.

    Notes
    -----
    Regional effects come from the mixed model, divided by the region's calibration slope,
    since a corrected PAD carries only that part of a deviation. The effects on motor
    outcome come from one least-squares regression of the standardized motor score on the
    three standardized causes, in the people that the other models use. One of the causes is
    the contralesional frontoparietal PAD, divided by the slope of its side, as estimated: its
    noise draws that estimate toward zero.
    """
    if mixed is None:
        raise StatisticsError("There is no mixed model to compare with the planted effects.")
    content, people = _read(truth)
    _aligned(people, ds)
    return compare_effects(ds, mixed, content["effects"])


def compare_effects(
    ds: xr.Dataset, mixed: xr.Dataset, effects: Sequence[Mapping[str, Any]]
) -> pd.DataFrame:
    """Compare planted effects with their estimates.

    Parameters
    ----------
    ds, mixed
        As for :func:`recovery_table`.
    effects
        What :func:`~scalebrain.simulate.structural.planted_effects` returns.

    Returns
    -------
    DataFrame
        As of :func:`recovery_table`.

    Raises
    ------
    StatisticsError
        When the study has too few strokes, or the model no standardized log10 lesion volume.
    """
    planted = {str(effect["name"]): effect for effect in effects}
    found = [str(t) for t in mixed["term"].values]
    terms = [t for t in found if t.replace(" ", "") == _TERM]
    if len(terms) != 1:
        raise StatisticsError(
            f"The mixed model has the terms {', '.join(found)}; planted is per SD of log10 "
            f"lesion volume. Give it {_TERM}, to compare them."
        )
    slope = _sided_slope(ds)
    rows = []
    for name, effect in planted.items():
        kind, _, network = name.partition(":")
        side, _, what = kind.partition("_")
        if what != "lesion_volume":
            continue
        region = f"{network}_{side}"
        one = mixed.sel(region=region, term=terms[0])
        rows.append(
            {
                "effect": f"lesion volume on {region.replace('_', ' ')}",
                "planted": float(effect["implied"]),
                "unit": effect["unit"],
                **{k: float(one[k]) / slope[region] for k in ("estimate", "ci_low", "ci_high")},
                "n": int(one["n"]),
            }
        )
    rows += _motor_rows(ds, planted)
    table = pd.DataFrame(rows)
    table["inside"] = (table["ci_low"] <= table["planted"]) & (table["planted"] <= table["ci_high"])
    table.attrs["note"] = (
        "Regional estimates are divided by the calibration slope of their region, since a "
        "corrected PAD carries only that part of a true deviation; the forest plot shows them "
        "undivided."
    )
    return table


def _sided_slope(ds: xr.Dataset) -> dict[str, float]:
    """Mean calibration slope of every lesional region over the strokes that models use."""
    sided = to_lesional_sides(ds[["calibration_slope", "lesion_hemisphere"]])["calibration_slope"]
    mean = sided.isel(subject=np.flatnonzero(eligible_subjects(ds))).mean("subject")
    return {str(r): float(mean.sel(region=r)) for r in mean["region"].values}


def _motor_rows(ds: xr.Dataset, planted: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Regression of motor outcome on its causes: two loads, and the deviation if it is one."""
    every = {
        "motor:cst_load_ipsilesional": "CST load on motor outcome",
        "motor:salience_load_ipsilesional": "salience load on motor outcome",
        "motor:contralesional_deviation:FPN": "contralesional FPN PAD on motor outcome",
    }
    names = {name: words for name, words in every.items() if name in planted}
    if not names:
        return []
    use = eligible_subjects(ds)
    sided = lesional_measures(ds, ("tract_load", "lesion_load", "brain_pad_corrected"), use)
    values = (
        sided["tract_load"].sel(tract="CST_ipsilesional").values,
        sided["lesion_load"].sel(region="SAL_ipsilesional").values,
        sided["brain_pad_corrected"].sel(region="FPN_contralesional").values,
    )
    known = dict(zip(every, values, strict=True))
    causes = np.stack([known[name] for name in names], axis=1)
    motor = ds["motor_score"].values
    age = ds["age"].values
    use &= np.isfinite(causes).all(axis=1) & np.isfinite(motor)
    n, k = int(use.sum()), causes.shape[1] + 2
    if n < k + 5:
        raise StatisticsError(f"{n} strokes are too few to compare with the planted effects.")
    both = np.column_stack([causes[use], age[use]])
    x = np.column_stack([np.ones(n), (both - both.mean(0)) / both.std(0)])
    y = (motor[use] - motor[use].mean()) / motor[use].std()
    inverse = np.linalg.inv(x.T @ x)
    beta = inverse @ x.T @ y
    se = np.sqrt(np.diag(inverse) * np.square(y - x @ beta).sum() / (n - k))
    reach = scipy.stats.t.ppf(0.975, n - k)
    return [
        {
            "effect": words,
            "planted": float(planted[name]["value"]),
            "unit": planted[name]["unit"],
            "estimate": float(beta[i + 1]),
            "ci_low": float(beta[i + 1] - reach * se[i + 1]),
            "ci_high": float(beta[i + 1] + reach * se[i + 1]),
            "n": n,
        }
        for i, (name, words) in enumerate(names.items())
    ]
