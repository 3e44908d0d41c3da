# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Predicting motor outcome, and patients with the same lesion
#
# Two questions of one cohort. How well is the motor score of someone in a *new* cohort predicted,
# and from what? And what about two people whose lesions are equally large: does the one whose
# corticospinal tract was hit harder move worse?
#
# It reads the study that `make demo` leaves in `demo-out`; set `SCALEBRAIN_STUDY` to look at yours.
# **The demo's people are simulated**: a larger load of the tract was made to lower the score, by
# 0.36 standard deviations a standard deviation. A few dozen people may not show it. Research use
# only: these are associations, no advice for therapy.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import scalebrain as sb

study = Path(os.environ.get("SCALEBRAIN_STUDY", "../demo-out"))
ds = sb.open_store(study / "cohort.zarr")

# %% [markdown]
# ## Prediction, one cohort left out at a time
#
# Everything that learns (imputation, scaling, the choice of settings, the model) is fitted on the
# other cohorts. Groups of predictors compete: clinical data, the lesion, brain age, and all.

# %%
motor = sb.predict_motor(ds, learners=["elastic_net"], n_permutations=20)
part = motor.sel(learner="elastic_net")
r2 = part.sel(metric="r2")[["score", "ci_low", "ci_high"]].to_dataframe()
r2[["score", "ci_low", "ci_high"]].round(2)

# %% [markdown]
# An R² below zero is worse than always guessing the mean of the other cohorts. With so few people
# intervals are wide: look at what brain age adds to the lesion, with its own paired interval,
# before believing a ranking.

# %%
gain = part.sel(metric="r2")[["gain", "gain_low", "gain_high"]].to_dataframe()
print(gain[["gain", "gain_low", "gain_high"]].round(2).to_string())
print(f"p of the permutation test: {part['p_permutation'].item():.2f}")

# %%
last = part.isel(feature_group=-1)
seen = np.isfinite(last["prediction"].values)
order = np.flatnonzero(seen)[np.argsort(last["prediction"].values[seen])]
fig, axis = plt.subplots(figsize=(9, 3.8), layout="constrained")
axis.vlines(
    range(len(order)),
    last["interval_low"].values[order],
    last["interval_high"].values[order],
    color="#9ecae1",
    linewidth=4,
    label="90% interval",
)
axis.plot(last["prediction"].values[order], color="#0072b2", label="predicted, held out")
axis.plot(motor["observed"].values[order], "o", color="#d55e00", markersize=4, label="observed")
axis.set_xlabel("person, by prediction")
axis.set_ylabel("motor score")
fig.legend(loc="outside upper right", frameon=False, ncols=3)
plt.show()

# %% [markdown]
# What the predictions hang on: how much R² is lost when a predictor is shuffled among the people
# of a held-out cohort. The three loads of the corticospinal tract measure one thing and are
# shuffled together.

# %%
size = part["importance"].to_series().sort_values()
top = size[size.abs() > 1e-6].tail(10)
fig, axis = plt.subplots(figsize=(8, 3.6), layout="constrained")
top.plot.barh(ax=axis, color="#0072b2", width=0.7)
axis.axvline(0, color="k", linewidth=0.7)
axis.set_xlabel("loss of R² when shuffled")
axis.set_ylabel("")
plt.show()

# %% [markdown]
# ## The same lesion volume, another tract
#
# Pairs of patients whose lesions are of the same side and nearly the same volume, and who differ as
# much as possible in the load of the corticospinal tract. Nobody is in two pairs, and the outcome
# played no part in choosing them. The calipers are wide because the demo is small: the defaults are
# narrower, and with enough people they should be.

# %%
pairs = sb.matched_pairs(ds, caliper=0.5, age_caliper=20.0, min_contrast=0.3, min_pairs=3)
print(f"{pairs['n_pairs'].item()} pairs of {pairs['n_people'].item()} people")
pairs[["smd"]].to_dataframe()["smd"].unstack("stage").round(2)

# %% [markdown]
# Standardized differences shrink where the matching worked. Each line is a pair: from the person
# with the smaller load to the one with the larger.

# %%
fig, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for axis, name, label in (
    (axes[0], "pair_lesion_volume", "lesion volume, mL"),
    (axes[1], "pair_outcome", "motor score"),
):
    for pair in range(pairs.sizes["pair"]):
        one = pairs.isel(pair=pair)
        x = [one["pair_value"].sel(member=m).item() for m in ("low", "high")]
        y = [one[name].sel(member=m).item() for m in ("low", "high")]
        axis.plot(x, y, "o-", color="#777777", markersize=4, linewidth=0.9)
        axis.plot(x[1], y[1], "o", color="#d55e00", markersize=5)
    axis.set_xlabel("load of the corticospinal tract, weighted by section")
    axis.set_ylabel(label)
axes[0].set_yscale("log")
for formatter in (axes[0].yaxis.set_major_formatter, axes[0].yaxis.set_minor_formatter):
    formatter("{x:g}")
plt.show()

effect = pairs.sel(effect="difference_adjusted")  # for what is left of volume and age
print(
    f"motor score, larger less smaller load: {effect['estimate'].item():.3f} "
    f"(95% interval {effect['ci_low'].item():.3f} to {effect['ci_high'].item():.3f}), "
    f"exchange of the two: p = {pairs['p_permutation_adjusted'].item():.3f}"
)

# %% [markdown]
# ## One person
#
# What is known of one of them, with every caveat. `report.html` is a page that loads nothing from
# elsewhere (`scalebrain person cohort.zarr SUBJECT OUT` writes it); `report.facts` are its data.

# %%
subject = str(pairs["pair_subject"].values[0, 0])
report = sb.person_report(ds, subject, motor=motor)
matched = pd.DataFrame(report.facts["matches"]["rows"])
matched[
    ["subject_matched", "lesion_volume", "age", "value_difference", "outcome_difference"]
].round(2)

# %%
print("\n".join(f"- {sentence}" for sentence in report.facts["caveats"]))
