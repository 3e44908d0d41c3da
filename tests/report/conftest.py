"""A small symmetric head with results of every kind, made up, not computed."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from scalebrain.atlas.regions import default_regions
from scalebrain.report.content import StudyResults

SIDED = [
    f"{network}_{side}"
    for network in dict.fromkeys(r[:-2] for r in default_regions().regions)
    for side in ("ipsilesional", "contralesional")
]
STEP = 8.0
SHAPE = (20, 25, 19)
ORIGIN = (-76.0, -110.0, -60.0)


@dataclass
class Study:
    ds: xr.Dataset
    parts: dict[str, Any]

    @property
    def results(self) -> StudyResults:
        return StudyResults(**self.parts)


def grid_attrs() -> dict[str, Any]:
    affine = np.diag([STEP, STEP, STEP, 1.0])
    affine[:3, 3] = ORIGIN
    return {"affine": affine.ravel().tolist(), "shape": list(SHAPE)}


def voxels() -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in an ellipsoid, and mirrored parcels: odd codes left, even right."""
    axes = [o + STEP * np.arange(n) for o, n in zip(ORIGIN, SHAPE, strict=True)]
    mm = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    mm = mm[(((mm - (0, -18, 8)) / (72, 92, 66)) ** 2).sum(axis=1) < 1]
    block = (np.rint((mm[:, 1] + 110) / 24) * 5 + np.rint((mm[:, 2] + 60) / 32)).astype(int) % 45
    parcel = np.where(mm[:, 0] < 0, 2 * block + 1, 2 * block + 2)
    order = np.argsort(parcel, kind="stable")
    return mm[order], parcel[order].astype(np.int32)


def make_study(evil: str = "") -> Study:
    """Make a study; `evil` is put into every free text."""
    rng = np.random.default_rng(0)
    regions = list(default_regions().regions)
    mm, parcel = voxels()
    n_reference, n_stroke, n_regions = 24, 18, len(regions)
    n = n_reference + n_stroke
    stroke = np.arange(n) >= n_reference
    age = rng.uniform(45, 82, n)
    pad = rng.normal(0, 4, (n, n_regions))
    reason = np.full(n, "", dtype=object)
    reason[[0, 30, 31]] = ["sex missing", f"scan within 180 days{evil}", "bilateral lesion"]
    side = np.where(np.arange(n) % 3 == 0, "R", "L").astype(object)
    counts = np.clip(np.rint(9 - np.abs(np.abs(mm[:, 0]) - 30) / 5 - np.abs(mm[:, 2]) / 9), 0, 9)
    counts[mm[:, 0] > 0] = np.floor(counts[mm[:, 0] > 0] / 2)
    n_masks = int((stroke & (reason == "")).sum())
    ds = xr.Dataset(
        {
            "t1w": (("subject", "voxel"), 50 + 10 * rng.random((n, len(mm))).astype("f4")),
            "lesion_frequency": ("voxel", counts / n_masks, {"n": n_masks}),
            "scan_present": ("subject", np.ones(n, dtype=bool)),
            "lesion_present": ("subject", stroke),
            "included": ("subject", reason == "", {"min_days_post_stroke": 180.0}),
            "exclusion_reason": ("subject", reason),
            "days_post_stroke": ("subject", np.where(stroke, 700.0, np.nan)),
            "motor_score": ("subject", np.where(stroke, 0.6, np.nan)),
            "lesion_volume": ("subject", np.where(stroke, rng.lognormal(3, 1, n), np.nan)),
            "lesion_hemisphere": ("subject", np.where(stroke, side, "none").astype(object)),
            "brain_age": (("subject", "region"), age[:, None] + pad),
            "brain_age_low": (("subject", "region"), age[:, None] + pad - 7, {"coverage": 0.9}),
            "brain_age_high": (("subject", "region"), age[:, None] + pad + 7),
            "calibration_slope": ("region", rng.uniform(0.7, 0.95, n_regions)),
        },
        coords={
            "subject": np.array([f"sub-{i:03d}{evil}" for i in range(n)], dtype=object),
            "age": ("subject", age),
            "sex": ("subject", np.where(np.arange(n) % 2 == 0, "F", "M").astype(object)),
            "cohort": (
                "subject",
                np.array([f"site {'ABC'[i % 3]}{evil}" for i in range(n)], dtype=object),
            ),
            "group": ("subject", np.where(stroke, "stroke", "reference").astype(object)),
            "x": ("voxel", mm[:, 0].astype("f4")),
            "y": ("voxel", mm[:, 1].astype("f4")),
            "z": ("voxel", mm[:, 2].astype("f4")),
            "parcel": ("voxel", parcel),
            "region": np.array(regions, dtype=object),
        },
        attrs={"simulated": "true", "space": f"MNI152NLin2009aSym{evil}", **grid_attrs()},
    )
    parts = {
        "accuracy": _accuracy(regions, rng),
        "site_shift": _site_shift(regions, evil),
        "mixed": make_mixed("scale(log10(lesion_volume))", evil=evil),
        "mixed_load": make_mixed("scale(lesion_load)", effect=0.1),
        "sem": _sem(evil),
        "motor": _motor(evil),
        "recovery": pd.DataFrame(
            {
                "effect": [f"lesion volume on SMN ipsilesional{evil}", "CST load on motor score"],
                "planted": [0.8, -0.355],
                "estimate": [0.7, -0.1],
                "ci_low": [0.2, -0.3],
                "ci_high": [1.2, 0.1],
                "inside": [True, False],
                "unit": [f"years{evil}", "SD"],
            }
        ),
        "provenance": {
            f"command{evil}": f"scalebrain demo OUT{evil}",
            "versions": {"numpy": f"2.3.0{evil}"},
            "wall time, s": {"train": 61.25},
            "config": f"model:\n  kind: cheb{evil}\n",
            "nested": {"deep": {"er": [1, f"two{evil}"]}},
        },
    }
    return Study(ds, parts)


def _accuracy(regions: list[str], rng: np.random.Generator) -> xr.Dataset:
    n = len(regions)
    return xr.Dataset(
        {
            "mae": ("region", rng.uniform(4.0, 5.0, n)),
            "mae_mean": ("region", np.full(n, 9.0)),
            "r": ("region", rng.uniform(0.7, 0.9, n)),
            "n": ("region", np.full(n, 23)),
            "deviation_r": ("region", rng.uniform(0.3, 0.5, n)),
            "oracle_mae": ("region", np.full(n, 3.5)),
            "oracle_r": ("region", np.full(n, 0.7)),
        },
        coords={"region": regions},
    )


def _site_shift(regions: list[str], evil: str) -> xr.Dataset:
    shift = np.stack([np.full(len(regions), years) for years in (0.4, -1.5, np.nan)])
    dims = ("cohort", "region")
    return xr.Dataset(
        {
            "site_mean": (dims, 1.2 * shift),
            "site_shift": (dims, shift),
            "site_shift_low": (dims, shift - 1),
            "site_shift_high": (dims, shift + 1),
            "n_healthy": (dims, np.tile([[11.0], [12.0], [0.0]], (1, len(regions)))),
            "between_sites_sd": ("region", np.full(len(regions), 1.1)),
            "within_site_sd": ("region", np.full(len(regions), 4.0)),
        },
        coords={"cohort": [f"site {name}{evil}" for name in "ABC"], "region": regions},
        attrs={"confidence": 0.95},
    )


def make_mixed(term: str, *, effect: float = 0.8, evil: str = "") -> xr.Dataset:
    shape = (len(SIDED), 2)
    ipsi = np.array([r.endswith("_ipsilesional") for r in SIDED])
    estimate = np.full(shape, 3.0)
    estimate[:, 1] = np.where(ipsi, effect, -effect / 4)
    p = np.where(ipsi, 0.001, 0.6)
    p = np.stack([p, p if effect > 0.5 else np.full(len(SIDED), 0.5)], axis=1)
    values = {
        "estimate": estimate,
        "se": np.full(shape, 0.2),
        "df": np.full(shape, 12.0),
        "ci_low": estimate - 0.4,
        "ci_high": estimate + 0.4,
        "p": p,
        "q": np.minimum(2 * p, 1),
    }
    return xr.Dataset(
        {name: (("region", "term"), array) for name, array in values.items()}
        | {"n": ("region", np.full(len(SIDED), 16))},
        coords={"region": SIDED, "term": ["Intercept", term]},
        attrs={"formula": f"brain_pad_corrected ~ {term}{evil}", "groups": f"cohort{evil}"},
    )


def _sem(evil: str) -> xr.Dataset:
    contra = f"contra{evil}"
    paths = {
        "motor ~ cst": (-0.36, -0.45, -0.27),
        "motor ~ ipsi": (-0.05, -0.2, 0.1),
        f"{contra} ~ motor": (0.2, 0.02, 0.38),
        f"{contra} ~ cst": (0.0, -0.1, 0.1),
        f"{contra} ~ ipsi": (0.4, 0.2, 0.6),
        "ipsi ~ cst": (0.3, 0.1, 0.5),
    }
    std, low, high = (np.array(column) for column in zip(*paths.values(), strict=True))
    columns = {
        "estimate": std * 2,
        "ci_low": low * 2,
        "ci_high": high * 2,
        "p": np.full(6, 0.02),
        "std_estimate": std,
        "std_ci_low": low,
        "std_ci_high": high,
    }
    fit = {"chi2": 0.0, "df": 0, "cfi": 1.0, "tli": 1.0, "rmsea": 0.0, "srmr": 0.0, "n": 16}
    models = np.arange(3.0)
    return xr.Dataset(
        {name: ("path", values) for name, values in columns.items()}
        | {name: ((), value) for name, value in fit.items()}
        | {f"model_{name}": ("model", models) for name in ("chi2", "df", "p", "cfi", "aic", "bic")}
        | {
            "rival_std_estimate": ("rival_path", [0.2]),
            "rival_p": ("rival_path", [0.04]),
            "indirect_std_estimate": ("indirect", [0.12]),
            "indirect_std_ci_low": ("indirect", [0.02]),
            "indirect_std_ci_high": ("indirect", [0.3]),
        },
        coords={
            "path": list(paths),
            "model": ["specified", f"reversed{evil}", "restricted"],
            "rival_path": [f"reversed{evil}: motor ~ {contra}"],
            "indirect": [f"cst -> ipsi -> {contra}"],
        },
        attrs={
            "saturated": 1,
            "variables": {"cst": f"tract_load{evil}", "contra": "mean of FPN_contralesional"},
        },
    )


def _motor(evil: str) -> xr.Dataset:
    learners, groups = ["elastic_net", f"random_forest{evil}"], ["clinical", f"combined{evil}"]
    metrics, predictors = ["r2", "mae", "auc"], ["age", "tract_load:CST_ipsilesional", f"x{evil}"]
    score = np.arange(12.0).reshape(2, 2, 3) / 30 + 0.1
    dims = ("learner", "feature_group", "metric")
    return xr.Dataset(
        {
            "score": (dims, score),
            "ci_low": (dims, score - 0.05),
            "ci_high": (dims, score + 0.05),
            "baseline_score": ("metric", [-0.05, 0.2, 0.4]),
            "importance": (("learner", "predictor"), [[0.01, 0.2, 0.0], [0.03, 0.1, -0.01]]),
            "mean_rank": ("predictor", [2.0, 1.2, 2.8]),
            "top3_fraction": ("predictor", [0.4, 0.9, 0.1]),
            "predictor_group": ("predictor", ["clinical", "lesion", f"lesion{evil}"]),
            "shap_importance": (("learner", "predictor"), [[0.01, 0.2, 0.0], [0.03, 0.1, 0.01]]),
            "null_r2": (("learner", "permutation"), np.zeros((2, 20))),
            "p_permutation": ("learner", [0.048, 0.3]),
            "gain": (("learner", "versus", "metric"), score[:, :1]),
            "gain_low": (("learner", "versus", "metric"), score[:, :1] - 0.2),
            "gain_high": (("learner", "versus", "metric"), score[:, :1] + 0.2),
            "interval_covered": (dims[:2], np.full((2, 2), 0.9)),
            "interval_covered_low": (dims[:2], np.full((2, 2), 0.8)),
            "interval_covered_high": (dims[:2], np.full((2, 2), 0.95)),
            "unlike_training": ("subject", np.arange(16) == 3),
            "calibration_slope": (dims[:2], np.full((2, 2), 0.8)),
            "calibration_intercept": (dims[:2], np.full((2, 2), 0.1)),
            "calibration_n": ((*dims[:2], "bin"), np.tile([9, 7, 0], (2, 2, 1))),
            "n": ((), 16),
        }
        | {
            f"calibration_{name}": ((*dims[:2], "bin"), np.tile([at, at + 0.5, nan], (2, 2, 1)))
            for name, at in (("predicted", 0.2), ("observed", 0.3), ("low", 0.1), ("high", 0.4))
            for nan in (np.nan,)
        },
        coords={
            "learner": learners,
            "versus": [f"clinical{evil}"],
            "feature_group": groups,
            "metric": metrics,
            "predictor": predictors,
            "cohort": ["a", "b", "c"],
        },
        attrs={
            "coverage": 0.9,
            "permutation_of": f"elastic_net{evil}",
            "skipped": [f"cohort a{evil}"],
        },
    )


@pytest.fixture
def study() -> Study:
    return make_study()


@pytest.fixture(scope="session")
def page() -> str:
    """The page of the ordinary study; rendered once."""
    from scalebrain.report.page import render_report

    made = make_study()
    return render_report(made.ds, results=made.results)
