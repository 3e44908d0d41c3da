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
# # Training and reading brain age
#
# A regional brain-age model from its features to its model card: what it reads, how it is trained,
# how good it is, what its intervals promise, where in the brain an age comes from, and what a
# lesion does to it.
#
# It reads the study that `make demo` leaves in `demo-out`; set `SCALEBRAIN_STUDY` to look at yours.
# **The demo's people are simulated.** That is why the true deviation of everyone is known here, and
# why nothing here is a finding about brains.

# %%
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from IPython.display import Markdown
from matplotlib.collections import LineCollection

import scalebrain as sb

study = Path(os.environ.get("SCALEBRAIN_STUDY", "../demo-out"))
ds = sb.open_store(study / "cohort.zarr")
healthy = ds.isel(subject=np.flatnonzero((ds["group"] == "reference") & ds["included"]))

# %% [markdown]
# ## What the network reads
#
# Grey matter is cut into some 900 nodes, of about equal size within a region. Of each, the scan
# gives a few numbers: grey-matter probability, brightness and its spread (as parts of white
# matter), and the contrast with the white matter nearby, of all voxels and of those that are grey
# matter nearly alone. With age grey matter and contrast fall, the others rise.

# %%
features = healthy["node_features"].compute()
r = xr.corr(features, healthy["age"], dim="subject")
fig, axis = plt.subplots(figsize=(8, 3), layout="constrained")
for name in r["feature"].values:
    axis.hist(r.sel(feature=name), bins=40, histtype="step", linewidth=1.6, label=name)
axis.axvline(0, color="k", linewidth=0.7)
axis.set_xlabel("correlation of a node's feature with age")
axis.set_ylabel("nodes")
axis.legend(frameon=False, ncols=2)
plt.show()

# %% [markdown]
# ## Train
#
# Only healthy people train the model. It has one network a fold: each is trained without the people
# of its fold and predicts them. 5 folds and 200 epochs are the default; these do for a look.

# %%
training = sb.Training(folds=3, epochs=15)
model = sb.BrainAgeModel.fit(ds, training=training)

# %% [markdown]
# The graph: nodes that touch are neighbors, and the age of a region sees the nodes of that region
# alone. Edges between regions (grey) are not used.

# %%
graph = model.graph
at = np.stack([ds[f"node_{axis}"].values for axis in "xyz"], axis=1)
names = [region.rsplit("_", 1)[0] for region in graph.regions]
colors = {name: plt.get_cmap("tab10")(i) for i, name in enumerate(dict.fromkeys(names))}
fig, axes = plt.subplots(1, 2, figsize=(12, 5.6), layout="constrained")
for axis, (i, j) in zip(axes, ((0, 1), (1, 2)), strict=True):
    seen = slice(None) if i == 0 else np.flatnonzero(at[:, 0] < 0)
    inside = np.isin(graph.edges, np.arange(len(at))[seen]).all(axis=1)
    lines = at[graph.edges[inside]][:, :, [i, j]]
    axis.add_collection(LineCollection(lines, colors="#bbbbbb", linewidths=0.3))
    for name, members in zip(names, graph.members, strict=True):
        own = inside & np.isin(graph.edges, members).all(axis=1)
        lines = at[graph.edges[own]][:, :, [i, j]]
        axis.add_collection(LineCollection(lines, colors=[colors[name]], linewidths=0.7))
        own = np.intersect1d(members, np.arange(len(at))[seen])
        axis.scatter(*at[own][:, [i, j]].T, s=7, color=colors[name], zorder=2)
    axis.set_aspect("equal")
    axis.axis("off")
axes[0].set_title("from above, left is left")
axes[1].set_title("left hemisphere, front is right")
handles = [plt.Line2D([], [], marker="o", ls="", color=c, label=n) for n, c in colors.items()]
fig.legend(handles=handles, loc="outside lower center", ncols=9, frameon=False)
plt.show()
print(f"{graph.n_nodes} nodes, {len(graph.edges)} edges, {len(graph.regions)} regions")

# %% [markdown]
# Folds are drawn within narrow bands of age, and all scans of one person share a fold. Training
# starts from a ridge regression (epoch 0) and stops when people who are in neither the fold nor the
# training no longer profit. The network keeps the first epoch whose validation error is within one
# standard error of the lowest: in a small cohort that is often the ridge itself, and what looks
# like learning in the dotted lines is not used.

# %%
fold = model.folds_of(healthy)
fig, axes = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained")
for number, learned in enumerate(model.folds):
    color = f"C{number}"
    axes[0].plot(
        healthy["age"][fold == number], (fold + 1)[fold == number], "|", color=color, ms=12
    )
    axes[1].plot(learned.curve[:, 0], color=color, linewidth=1, linestyle=":")
    axes[1].plot(learned.curve[:, 1], color=color, linewidth=1.4)
axes[0].set(xlabel="age, years", ylabel="fold", yticks=range(1, training.folds + 1))
axes[1].set(xlabel="epoch", ylabel="mean absolute error, years")
axes[1].plot([], [], "k:", label="training (with patches masked)")
axes[1].plot([], [], "k-", label="validation")
axes[1].legend(frameon=False)
plt.show()

# %% [markdown]
# ## How good is it?
#
# Everyone of the training is predicted by the network that has not seen them (`out_of_fold`), all
# others by the mean of the networks. `mae_mean` is the error of guessing the mean age.

# %%
ages = sb.brain_age(ds, model).compute()
accuracy = pd.DataFrame(model.metrics).T[["mae", "mae_mean", "r", "n"]]
accuracy.sort_values("mae").round(2)

# %%
region = str(accuracy["mae"].idxmin())
out = ages.sel(subject=healthy["subject"].values, region=region)
age = healthy["age"].values
ends = np.array([age.min(), age.max()])
fig, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
axes[0].errorbar(
    age,
    out["brain_age"],
    yerr=[out["brain_age"] - out["brain_age_low"], out["brain_age_high"] - out["brain_age"]],
    fmt="o",
    color="#0072b2",
    ecolor="#c6dbef",
    markersize=3,
)
axes[0].plot(ends, ends, "k--", linewidth=0.8)
axes[0].set(xlabel="age", ylabel="brain age", title=f"{region}, out of fold, 90% intervals")
for axis, name in ((axes[1], "brain_pad"), (axes[2], "brain_pad_corrected")):
    axis.plot(age, out[name], "o", color="#0072b2", markersize=3)
    slope, start = np.polyfit(age, out[name].values, 1)
    axis.plot(ends, start + slope * ends, color="#d55e00")
    axis.axhline(0, color="k", linewidth=0.7)
    axis.set(xlabel="age", ylabel=name, title=f"slope {slope:+.2f} years a year")
plt.show()

# %% [markdown]
# The middle picture is regression to the mean: a model that is unsure guesses toward the middle, so
# the young look old and the old look young. `brain_pad_corrected` takes a line out that was fitted
# to held-out healthy people, region by region. The price: a true deviation of one year
# moves the corrected brain-PAD by `calibration_slope` years only. Statistics that compare regions
# divide by it.
#
# Here the truth is known. How much of a person's true deviation arrives?

# %%
places = (study / "truth.zarr", study.parent / "truth.zarr")
truth = xr.open_zarr(next(p for p in places if p.is_dir()), consolidated=False)
true = truth["true_deviation"].sel(subject=healthy["subject"].values, region=region)
fig, axis = plt.subplots(figsize=(4.6, 4.2), layout="constrained")
axis.plot(true, out["brain_pad_corrected"], "o", color="#0072b2", markersize=3.5)
axis.axline(
    (0, 0),
    slope=out["calibration_slope"].item(),
    color="#d55e00",
    label=f"calibration slope {out['calibration_slope'].item():.2f}",
)
found = np.corrcoef(true, out["brain_pad_corrected"])[0, 1]
axis.set(xlabel="true deviation, years", ylabel="corrected brain-PAD", title=f"r = {found:.2f}")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# ## What an interval promises
#
# `brain_age_low` to `brain_age_high` holds the age of 90 of 100 new healthy people, whatever
# the errors look like (split-conformal). Its width comes from the out-of-fold errors, so those same
# people prove nothing. A fair check takes the width from one half of them and counts in the other.

# %%
error = np.abs(ages["brain_pad"].sel(subject=healthy["subject"].values).values)
levels = np.array([0.5, 0.6, 0.7, 0.8, 0.9])
rng = np.random.default_rng(0)
held = np.zeros((50, len(levels)))
for draw in held:
    first, second = np.array_split(rng.permutation(len(error)), 2)
    for k, level in enumerate(levels):
        # the rank that split-conformal prediction asks for
        rank = min(int(np.ceil(level * (len(first) + 1))), len(first))
        width = np.sort(error[first], axis=0)[rank - 1]
        draw[k] = (error[second] <= width).mean()
fig, axis = plt.subplots(figsize=(4.6, 4.2), layout="constrained")
axis.plot([0.45, 0.95], [0.45, 0.95], "k--", linewidth=0.8)
axis.errorbar(levels, held.mean(axis=0), yerr=held.std(axis=0), fmt="o", color="#0072b2")
axis.set(xlabel="promised", ylabel="held, in the other half", title="coverage, 50 splits")
plt.show()

# %% [markdown]
# ## Where an age comes from
#
# `explain` shares a brain age out over the nodes of its region (integrated gradients): the parts of
# a person sum to the brain age less that of a person with average nodes. Their mean size says
# what the network looks at, not what makes a brain old.

# %%
few = healthy.isel(subject=slice(30))
parts = sb.explain(few, model)["node_attribution"]
own = parts.isel(row=np.flatnonzero(parts["row_region"] == region))
size = np.full(graph.n_nodes + 1, np.nan)  # the last one stands for voxels of no node
size[own["row_node"].values] = np.abs(own).mean("subject")
voxels = ds["node_label"].copy(data=size[ds["node_label"].values])
shown = sb.unpack(voxels)
brain = sb.unpack(healthy["t1w"].isel(subject=slice(8)).mean("subject")).compute()

places = {a: float(np.average(at[own["row_node"], k])) for k, a in enumerate("xyz")}
fig, axes = plt.subplots(1, 3, figsize=(11, 4), layout="constrained")
for axis, (name, across) in zip(axes, (("x", "yz"), ("y", "xz"), ("z", "xy")), strict=True):
    plane = {name: places[name], "method": "nearest"}
    axis.imshow(brain.sel(**plane).transpose(*across[::-1]), cmap="gray", origin="lower")
    image = axis.imshow(
        shown.sel(**plane).transpose(*across[::-1]),
        cmap="inferno",
        origin="lower",
        vmin=0,
        vmax=np.nanmax(size),
    )
    axis.set_title(f"{name} = {places[name]:.0f} mm", fontsize=9)
    axis.axis("off")
fig.colorbar(image, ax=axes, label=f"mean size of a node's part of {region}, years", shrink=0.8)
plt.show()

# %% [markdown]
# ## A lesion in the scan
#
# Lesioned tissue is dark and would pass for very old. Four policies: `as_is` does nothing,
# `mask_nodes` (the default) leaves lesioned voxels out and imputes nodes that are mostly gone,
# `enantiomorphic` fills the lesion from the other hemisphere, and `exclude_region` gives no age
# where most of a region is lesioned.

# %%
volume = ds["lesion_volume"].where(ds["included"] & (ds["group"] == "stroke")).compute()
subject = volume.idxmax().item()
one = ds.sel(subject=[subject])
lesion = sb.unpack(one["lesion_mask"].isel(subject=0)).compute()
z = lesion.sum(["x", "y"]).idxmax("z").item()
images = {
    "as_is": one,
    "mask_nodes": sb.mask_lesions(one),
    "enantiomorphic": sb.enantiomorphic(one),
}
fig, axes = plt.subplots(1, 3, figsize=(9, 3.8), layout="constrained")
for axis, (policy, treated) in zip(axes, images.items(), strict=True):
    scan = sb.unpack(treated["t1w"].isel(subject=0)).compute().sel(z=z)
    axis.imshow(scan.T, cmap="gray", origin="lower")
    axis.contour(lesion.sel(z=z).T.astype(float), levels=[0.5], colors="#d55e00", linewidths=1)
    axis.set_title(policy, fontsize=9)
    axis.axis("off")
fig.suptitle(
    f"{subject}, lesion of {float(volume.max()):.0f} mL, {one['lesion_hemisphere'].item()}"
)
plt.show()

# %%
policies = ("as_is", "mask_nodes", "enantiomorphic", "exclude_region")
fig, axis = plt.subplots(figsize=(11, 3.8), layout="constrained")
load = one["lesion_load"].isel(subject=0)
load = load.sortby(load, ascending=False)
for i, policy in enumerate(policies):
    treated = one.assign(sb.node_features(one, policy=policy))
    pad = sb.brain_age(treated, model)["brain_pad_corrected"].isel(subject=0)
    pad = pad.sel(region=load["region"]).compute()
    axis.plot(np.arange(pad.size) + 0.14 * (i - 1.5), pad, "osD^"[i], markersize=5, label=policy)
axis.axhline(0, color="k", linewidth=0.7)
labels = [
    f"{r}\n{load_of:.0%}" for r, load_of in zip(load["region"].values, load.values, strict=True)
]
axis.set_xticks(range(load.size), labels, fontsize=8)
axis.set_xlabel("region and its lesioned part")
axis.set_ylabel("corrected brain-PAD, years")
axis.legend(frameon=False, ncols=4)
plt.show()

# %% [markdown]
# Doing nothing makes even untouched regions look several years older, and hit regions by decades:
# brightness is relative to white matter, and part of that is in the lesion. With any other policy
# untouched regions hardly move, as no region looks into another. How far a lesion alone moves an
# age is measured by putting lesions into healthy scans (`sb.lesion_artifact`); the study's report
# has that table.
#
# ## Save, load, and the model card
#
# A model is a folder: weights (safetensors), JSON and a card. Nothing in it is executed when it
# is loaded, and it predicts the same bits.

# %%
with tempfile.TemporaryDirectory() as folder:
    model.save(folder)
    again = sb.BrainAgeModel.load(folder)
    sizes = {path.name: path.stat().st_size for path in sorted(Path(folder).iterdir())}
    card = (Path(folder) / "MODEL_CARD.md").read_text()
    same = sb.brain_age(ds, again)["brain_age"].equals(ages["brain_age"])
print(f"the same ages: {same};", ", ".join(f"{n}: {s / 1e3:,.0f} kB" for n, s in sizes.items()))
Markdown(card)
