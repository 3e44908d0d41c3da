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
# # Exploring a cohort with xarray
#
# A cohort store is one lazily opened `xarray.Dataset`: a row a subject, a column a voxel, vertex,
# region or tract. This notebook looks at one: who is in it, where the lesions lie, what a single
# scan looks like, and how brain age differs between regions.
#
# It reads the study that `make demo` leaves in `demo-out`; set `SCALEBRAIN_STUDY` to look at yours.
# **The demo's people are simulated**: its pictures show what the tool does, not what brains do.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import scalebrain as sb

study = Path(os.environ.get("SCALEBRAIN_STUDY", "../demo-out"))
ds = sb.open_store(study / "cohort.zarr")
ds

# %% [markdown]
# Nothing but the small coordinates has been read yet: `t1w` and `lesion_mask` are Dask arrays whose
# blocks are read when they are needed. Everything that xarray and pandas can do with labels works.

# %%
people = ds[["age", "sex", "cohort", "group"]].to_dataframe()
people.groupby(["cohort", "group"])["age"].describe()[["count", "min", "mean", "max"]].round(1)

# %% [markdown]
# Who was left out, and why? An excluded person stays in the store, with a reason. `extrapolated`
# people are younger or older than anyone that the brain-age model was trained on: they have an age,
# and the models leave them out.

# %%
left_out = ds["exclusion_reason"].to_series()
left_out[ds["extrapolated"].values & ds["included"].values] = "extrapolated"
left_out[left_out != ""].groupby(ds["group"].to_series()).value_counts()

# %% [markdown]
# ## Where the lesions lie
#
# `unpack` gives a variable over voxels its volume back, in RAS: x grows from left to right. In the
# pictures the person's left is on the left.

# %%
frequency = sb.unpack(ds["lesion_frequency"]).compute()
brain = sb.unpack(ds["t1w"].isel(subject=slice(8)).mean("subject")).compute()

top = float(frequency.max())
fig, axes = plt.subplots(1, 4, figsize=(12, 3.4), layout="constrained")
for axis, z in zip(axes, (-10, 5, 20, 40), strict=True):
    plane = {"z": z, "method": "nearest"}
    axis.imshow(brain.sel(**plane).T, cmap="gray", origin="lower")
    shown = frequency.sel(**plane).T
    image = axis.imshow(shown.where(shown > 0), cmap="inferno", origin="lower", vmin=0, vmax=top)
    axis.set_title(f"z = {z} mm", fontsize=9)
    axis.text(0.03, 0.92, "L", transform=axis.transAxes)
    axis.text(0.91, 0.92, "R", transform=axis.transAxes)
    axis.axis("off")
fig.colorbar(image, ax=axes, label="part of the people with a lesion", shrink=0.8)
plt.show()

# %% [markdown]
# ## One person
#
# Selecting by label reads that person's rows alone.

# %%
volume = ds["lesion_volume"].where(ds["included"] & (ds["group"] == "stroke")).compute()
subject = volume.idxmax().item()
one = ds.sel(subject=subject)
print(
    f"{subject}: {float(one['age']):.0f} years, {float(one['days_post_stroke']):.0f} days after "
    f"stroke, lesion of {float(one['lesion_volume']):.1f} mL, {one['lesion_hemisphere'].item()}"
)

scan, lesion = (sb.unpack(one[name]).compute() for name in ("t1w", "lesion_mask"))
at = {
    name: float(lesion[name][lesion.any([d for d in "xyz" if d != name])].mean()) for name in "xyz"
}
fig, axes = plt.subplots(1, 3, figsize=(11, 4), layout="constrained")
for axis, (name, across) in zip(axes, (("x", "yz"), ("y", "xz"), ("z", "xy")), strict=True):
    plane = {name: at[name], "method": "nearest"}
    axis.imshow(scan.sel(**plane).transpose(*across[::-1]), cmap="gray", origin="lower")
    mask = lesion.sel(**plane).transpose(*across[::-1]).astype(float)
    axis.contour(mask, levels=[0.5], colors="#d55e00", linewidths=1.2)
    axis.set_title(
        f"{name} = {at[name]:.0f} mm" + ("" if name == "x" else ", left is left"), fontsize=9
    )
    axis.axis("off")
plt.show()

# %% [markdown]
# ## Brain age by region
#
# `brain_pad` is brain age less age; `brain_pad_corrected` is free of the age bias of healthy people
# whom the model has not seen. `to_lesional_sides` turns left and right into ipsilesional and
# contralesional without flipping an image: where a lesion makes its hemisphere look older, the
# orange box lies above the blue one.

# %%
usable = ds["included"] & ~ds["extrapolated"]
strokes = ds.isel(subject=np.flatnonzero((ds["group"] == "stroke") & usable))
pad = sb.to_lesional_sides(strokes)["brain_pad_corrected"].compute()
names = list(dict.fromkeys(str(region).rsplit("_", 1)[0] for region in pad["region"].values))
fig, axis = plt.subplots(figsize=(10, 3.6), layout="constrained")
for shift, side, color in ((-0.17, "ipsilesional", "#d55e00"), (0.17, "contralesional", "#0072b2")):
    values = [pad.sel(region=f"{name}_{side}").dropna("subject").values for name in names]
    boxes = axis.boxplot(
        values,
        positions=np.arange(len(names)) + shift,
        widths=0.28,
        showfliers=False,
        patch_artist=True,
        medianprops={"color": "k"},
    )
    for box in boxes["boxes"]:
        box.set(facecolor=color, alpha=0.6)
    axis.plot([], [], color=color, linewidth=6, alpha=0.6, label=side)
axis.axhline(0, color="k", linewidth=0.7)
axis.set_xticks(range(len(names)), names)
axis.set_ylabel("corrected brain-PAD, years")
axis.legend(frameon=False, ncols=2)
plt.show()

# %% [markdown]
# The same people on the cortex, left and right as they are: medians, and the range of most below.

# %%
strokes.scalebrain.plot_regions("brain_pad_corrected")

# %% [markdown]
# ## Your own question
#
# A new measure is a function of the Dataset. How does grey matter go with age among the healthy?
# Voxels know their parcels, so means over any set of regions are one call, block by block on Dask.

# %%
healthy = ds.isel(subject=np.flatnonzero((ds["group"] == "reference") & ds["included"]))
means = sb.parcellate(healthy, variable="gm", regions=sb.load_atlas("networks-9x2"))
r = xr.corr(means["gm_mean"], healthy["age"], dim="subject").compute()
fig, axis = plt.subplots(figsize=(6, 4.5), layout="constrained")
r.to_series().sort_values().plot.barh(ax=axis, color="#0072b2", width=0.7)
axis.set_xlabel("correlation of mean grey-matter probability with age")
plt.show()
