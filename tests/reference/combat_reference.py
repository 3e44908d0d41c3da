"""Writes combat_reference.json: data, and what neuroCombat and neuroHarmonize make of them.

python -m venv combat-ref && combat-ref/bin/pip install neuroCombat==0.2.12 \
    neuroHarmonize==2.5.2 "numpy<2"
combat-ref/bin/python combat_reference.py   (in this directory; the versions are recorded)

neuroHarmonize 2.5.2 stops with an error where its model meets a site that it has not seen, so
there is nothing to record of that.
"""

import importlib.metadata
import json
import platform
import warnings

import numpy as np
import pandas as pd

# neuroCombat 0.2.12 names it for a reference batch; numpy 1.24 took it away
np.__dict__["int"] = int

from neuroCombat import neuroCombat  # noqa: E402
from neuroHarmonize import harmonizationApply, harmonizationLearn  # noqa: E402

warnings.simplefilter("ignore")
FEATURES = 6


def simulate(sizes, seed):
    """Sites with a shift and a scale of their own, an effect of sex and a bent one of age."""
    rng = np.random.default_rng(seed)
    site = np.repeat([f"site{k}" for k in range(len(sizes))], sizes)
    n = len(site)
    age = np.round(rng.uniform(40, 85, n) * 2) / 2  # exact in the float32 that they take
    sex = rng.integers(0, 2, n)
    code = np.repeat(np.arange(len(sizes)), sizes)
    shift = rng.normal(0, 1.5, (len(sizes), FEATURES))[code]
    scale = rng.uniform(0.6, 1.8, (len(sizes), FEATURES))[code]
    bent = ((age - 60) / 12) ** 2
    data = (
        rng.normal(3, 2, FEATURES)
        - 0.05 * age[:, None]
        + bent[:, None] * rng.normal(0.6, 0.2, FEATURES)
        + 0.7 * sex[:, None]
        + shift
        + scale * rng.normal(0, 1, (n, FEATURES))
    )
    return data, pd.DataFrame({"SITE": site, "age": age, "sex": sex})


data, covars = simulate([14, 22, 9, 31], 1)
more, more_covars = simulate([5, 6, 4, 7], 2)
inside = more_covars["age"].between(covars["age"].min(), covars["age"].max()).to_numpy()
more, more_covars = more[inside], more_covars[inside].reset_index(drop=True)


def combat(columns=("age", "sex"), **options):
    return neuroCombat(
        dat=data.T.copy(),
        covars=covars,
        batch_col="SITE",
        continuous_cols=[c for c in columns if c == "age"],
        categorical_cols=[c for c in columns if c == "sex"],
        **options,
    )["data"].T


def learned(**options):
    model, out = harmonizationLearn(data.copy(), covars.copy(), seed=0, **options)
    applied = harmonizationApply(more.copy(), more_covars.copy(), model)
    return {"fit": out, "apply": applied}


cases = {
    "combat": combat(),
    "combat_no_covariates": combat(()),
    "combat_no_eb": combat(eb=False),
    "combat_reference": combat(ref_batch="site1"),
    "combat_reference_no_eb": combat(ref_batch="site2", eb=False),
}
for name, options in {
    "harmonize": {},
    "harmonize_no_eb": {"eb": False},
    "harmonize_reference": {"ref_batch": "site3"},
    "gam": {"smooth_terms": ["age"]},
    "gam_no_eb": {"smooth_terms": ["age"], "eb": False},
    "gam_reference": {"smooth_terms": ["age"], "ref_batch": "site1"},
}.items():
    cases[name] = learned(**options)


def plain(value):
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return np.asarray(value).tolist()


def people(values, frame):
    return {"data": values.tolist(), **{name: frame[name].tolist() for name in frame}}


record = {
    "train": people(data, covars),
    "more": people(more, more_covars),
    "cases": plain(cases),
    "versions": {
        "python": platform.python_version(),
        **{
            name: importlib.metadata.version(name)
            for name in ("neuroCombat", "neuroHarmonize", "statsmodels", "numpy", "scipy")
        },
    },
}
with open("combat_reference.json", "w") as file:
    json.dump(record, file, separators=(",", ":"))
