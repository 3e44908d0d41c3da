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
# # Lesions and statistics
#
# From lesion masks to models: where the lesions lie, what they hit, whether larger ones go with an
# older brain region by region, which damage goes with a weak hand, which path models the data can
# tell apart, how far the answers hang on choices, and where one person lies among healthy people.
#
# It reads the study that `make demo` leaves in `demo-out`; set `SCALEBRAIN_STUDY` to look at yours.
# **The demo's people are simulated**, so estimates stand beside what was planted. With a few dozen
# strokes most intervals are wide: look at whether they hold the truth, not at what is significant.

# %%
import json
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import norm

import scalebrain as sb
from scalebrain.simulate.recovery import recovery_table

study = Path(os.environ.get("SCALEBRAIN_STUDY", "../demo-out"))
ds = sb.open_store(study / "cohort.zarr")
truth_file = next(f / "truth.json" for f in (study, study.parent) if (f / "truth.json").is_file())
planted = {e["name"]: e["value"] for e in json.loads(truth_file.read_text())["effects"]}
truth = xr.open_zarr(truth_file.with_suffix(".zarr"), consolidated=False).sel(subject=ds["subject"])

# %% [markdown]
# ## Where the lesions lie
#
# Left and right lesions apart; the person's left is on the left. The line is the corticospinal
# tract.

# %%
by_side = sb.lesion_frequency(ds, by="lesion_hemisphere").compute()
tract = sb.unpack(ds["tract_probability"].max("tract")).compute()
some = np.flatnonzero((ds["group"] == "reference").values)[:8]
brain = sb.unpack(ds["t1w"].isel(subject=some).mean("subject")).compute()


def draw(axis, values, z, **style):
    """Draw one slice over the brain, with the tract."""
    plane = {"z": z, "method": "nearest"}
    axis.imshow(brain.sel(**plane).T, cmap="gray", origin="lower")
    image = axis.imshow(values.sel(**plane).T, origin="lower", **style)
    axis.contour(tract.sel(**plane).T, levels=[0.5], colors="#56b4e9", linewidths=1)
    axis.set_title(f"z = {z} mm", fontsize=9)
    axis.axis("off")
    return image


fig, axes = plt.subplots(2, 4, figsize=(11, 6.2), layout="constrained")
for row, side in zip(axes, "LR", strict=True):
    frequency = sb.unpack(by_side["lesion_frequency"].sel(lesion_hemisphere=side))
    for axis, z in zip(row, (-10, 5, 20, 40), strict=True):
        image = draw(axis, frequency.where(frequency > 0), z, cmap="inferno", vmin=0, vmax=0.5)
    n = int(by_side["n_masks"].sel(lesion_hemisphere=side))
    row[0].text(0, 1.15, f"{n} people, {side}", transform=row[0].transAxes)
fig.colorbar(image, ax=axes, label="part of these people", shrink=0.7)
plt.show()

# %% [markdown]
# ## What they hit
#
# A load is the lesioned fraction of a region. `to_lesional_sides` names sides by the lesion:
# everything ipsilesional lies on the side of the lesion, without an image being flipped.

# %%
strokes = ds.isel(subject=np.flatnonzero((ds["group"] == "stroke") & ds["included"]))
sided = sb.to_lesional_sides(strokes)
own = [r for r in sided["region"].values if r.endswith("_ipsilesional")]
loads = sided["lesion_load"].sel(region=own).compute()
order = np.argsort(sided["lesion_volume"].values)
cst = sided["tract_load"].sel(tract="CST_ipsilesional").values
table = np.column_stack([loads.values, cst])[order]
fig, axis = plt.subplots(figsize=(11, 3.2), layout="constrained")
image = axis.imshow(table.T, aspect="auto", cmap="inferno", vmin=0, vmax=1)
axis.set_yticks(range(len(own) + 1), [r.removesuffix("_ipsilesional") for r in own] + ["CST"])
axis.set_xlabel("people, by lesion volume")
fig.colorbar(image, label="lesioned fraction")
plt.show()

# %% [markdown]
# Three loads of the corticospinal tract: the plain overlap, the same weighted by how narrow the
# tract is at each section, and the most lesioned section.

# %%
fig, axes = plt.subplots(1, 3, figsize=(11, 3.4), sharey=True, layout="constrained")
motor = sided["motor_score"].values
for axis, name in zip(axes, ("tract_load", "tract_load_weighted", "tract_load_max"), strict=True):
    x = sided[name].sel(tract="CST_ipsilesional").values
    use = np.isfinite(x) & np.isfinite(motor)
    axis.plot(x, motor, "o", color="#0072b2", markersize=4)
    axis.set(xlabel=name, title=f"r = {np.corrcoef(x[use], motor[use])[0, 1]:.2f}")
axes[0].set_ylabel("motor score")
fig.suptitle(f"planted: {planted['motor:cst_load_ipsilesional']} SD per SD of the plain overlap")
plt.show()

# %% [markdown]
# ## Lesion volume and brain age: one mixed model a region
#
# `lmer(brain_pad_corrected ~ scale(log10(lesion_volume)) + ... + (1 | cohort))` for each region,
# with Satterthwaite's degrees of freedom and q values over regions. `attrs` say who was dropped,
# and why: the healthy, who have no lesion, and people outside the ages that the model was trained
# on.

# %%
formula = "brain_pad_corrected ~ scale(log10(lesion_volume)) + age + sex + days_post_stroke + icv"
mixed = sb.mixed_model(sb.to_lesional_sides(ds), formula)
term = next(t for t in mixed["term"].values if "volume" in t)
print(mixed.attrs["rows_dropped"])
mixed.sel(term=term)[["estimate", "se", "df", "p", "q", "n"]].to_dataframe().drop(
    columns="term"
).round(3).head()

# %% [markdown]
# Beside what was planted. Regional estimates are divided by the region's calibration slope, because
# a corrected brain-PAD shows only that part of a true deviation. The last three are effects on the
# motor score.

# %%
recovery = recovery_table(ds, mixed, truth_file)
fig, axes = plt.subplots(
    1, 2, figsize=(11, 5), layout="constrained", gridspec_kw={"width_ratios": [2, 1]}
)
on_motor = recovery["effect"].str.contains("motor")
for axis, rows in ((axes[0], recovery[~on_motor]), (axes[1], recovery[on_motor])):
    y = np.arange(len(rows))[::-1]
    axis.hlines(y, rows["ci_low"], rows["ci_high"], color="#0072b2")
    axis.plot(rows["estimate"], y, "o", color="#0072b2", label="estimate, 95% interval")
    axis.plot(rows["planted"], y, "D", color="#d55e00", markersize=5, label="planted")
    axis.axvline(0, color="k", linewidth=0.7)
    names = rows["effect"].str.replace("lesion volume on ", "").str.replace(" on motor outcome", "")
    axis.set_yticks(y, names)
    axis.set_xlabel(rows["unit"].iloc[0])
axes[0].legend(frameon=False, loc="lower right", fontsize=8)
plt.show()
print(f"{recovery['inside'].sum()} of {len(recovery)} intervals hold what was planted")

# %% [markdown]
# ## Which damage goes with a weak hand?
#
# In every voxel that enough people have lesioned: is their score lower? Freedman-Lane permutations
# within cohorts correct for the number of voxels. In the simulation damage acts through the loads
# of the tract (blue line) and of the salience regions, not voxel by voxel.

# %%
lsm = sb.lesion_symptom_map(ds, "motor_score ~ age + log10(lesion_volume)", n_permutations=200)
t = sb.unpack(lsm["t"])
reach = max(float(lsm["threshold"]), float(np.abs(t).max()))
fig, axes = plt.subplots(1, 4, figsize=(11, 3.2), layout="constrained")
for axis, z in zip(axes, (-10, 5, 20, 40), strict=True):
    image = draw(axis, t, z, cmap="RdBu", vmin=-reach, vmax=reach)
bar = fig.colorbar(image, ax=axes, label="t, red: lower score", shrink=0.8)
bar.ax.axhline(-float(lsm["threshold"]), color="k")
plt.show()
print(
    f"{int(lsm['n'])} people, {int(lsm['n_tested'])} voxels in {int(lsm['n_patterns'])} patterns; "
    f"p < 0.05 corrected beyond |t| = {float(lsm['threshold']):.2f} (line on the bar): "
    f"{int((lsm['p_fwe'] <= 0.05).sum())} voxels"
)

# %% [markdown]
# ## A path model, and its rivals
#
# Damage of the tract (`cst`), age of the damaged hemisphere (`ipsi`), motor score, and age of the
# other hemisphere's frontoparietal regions (`contra`). Standardized paths with intervals that draw
# whole cohorts; gray where the interval holds zero.

# %%
paths = sb.sem(ds, n_boot=300)
places = {"cst": (0, 0.5), "ipsi": (0.5, 0), "motor": (1, 0.5), "contra": (0.5, 1)}
fig, axis = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
for name, (x, y) in places.items():
    box = {"boxstyle": "round,pad=0.5", "facecolor": "white"}
    axis.text(x, y, name, ha="center", va="center", bbox=box, zorder=3)
for path in paths["path"].values:
    one = paths.sel(path=path)
    end, start = path.split(" ~ ")
    low, high = float(one["std_ci_low"]), float(one["std_ci_high"])
    b = float(one["std_estimate"])
    color = "#999999" if low < 0 < high else "#d55e00" if b < 0 else "#0072b2"
    arrow = {
        "arrowstyle": "-|>",
        "lw": 1 + 5 * abs(b),
        "color": color,
        "shrinkA": 24,
        "shrinkB": 24,
    }
    axis.annotate("", places[end], places[start], arrowprops=arrow)
    far = 0.25 if {start, end} in ({"cst", "motor"}, {"ipsi", "contra"}) else 0.5
    x, y = (np.array(places[start]) * (1 - far) + np.array(places[end]) * far).tolist()
    label = f"{b:.2f}\n[{low:.2f}, {high:.2f}]"
    axis.text(x, y, label, ha="center", va="center", fontsize=8, backgroundcolor="white")
axis.set(xlim=(-0.15, 1.15), ylim=(-0.12, 1.12))
axis.axis("off")
plt.show()
paths[
    ["model_chi2", "model_df", "model_aic", "model_bic", "model_equivalent"]
].to_dataframe().round(2)

# %%
print("\n".join(f"- {sentence}" for sentence in paths.attrs["conclusions"]))

# %% [markdown]
# In this simulation the arrow runs from `contra` to `motor`, against the first model. The model
# with that arrow (`reversed`) fits exactly as well: the data cannot say which is right.
#
# ## How far does it hang on choices?
#
# The same effects under every lesion policy, with random intercepts, ComBat, both or neither, with
# and without intracranial volume, raw or by rank. `verdict` says whether sign and interval agree.
# Intervals draw whole cohorts, and there are few of them. The study has fitted it; with more people
# or other choices:
#
# ```python
# policies = sb.ages_by_policy(strokes, study / "model")
# many = sb.multiverse(strokes, policies=policies, n_boot=1000)
# ```

# %%
many = xr.open_zarr(study / "results.zarr", group="multiverse", consolidated=False).load()
fig, axes = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
for axis, effect in zip(axes, ("lesion_volume -> SMN_ipsilesional", "cst -> motor"), strict=True):
    one = many.sel(effect=effect).sortby("estimate")
    x = np.arange(one.sizes["specification"])
    for i, policy in enumerate(dict.fromkeys(many["policy"].values.tolist())):
        use = (one["policy"] == policy).values
        low, high = one["ci_low"].values[use], one["ci_high"].values[use]
        axis.vlines(x[use], low, high, color=f"C{i}", alpha=0.35)
        axis.plot(x[use], one["estimate"].values[use], "o", ms=3, color=f"C{i}", label=policy)
    axis.axhline(0, color="k", linewidth=0.7)
    axis.set(xlabel="specification", title=f"{effect}: {one['verdict'].item()}")
axes[0].set_ylabel("SD per SD")
axes[0].legend(frameon=False, fontsize=8)
plt.show()
many["verdict"].to_series().value_counts()

# %% [markdown]
# ## Where does one person lie?
#
# `normative` places a person's brain age among healthy people of the same age and sex. 90 means
# older than in 90 of 100 of them. The interval tells how well so many healthy people place a value,
# not how well the model finds the true deviation, whose own centile is the diamond.

# %%
placed = sb.normative(ds, n_bootstrap=50)
known = np.isfinite(placed["brain_age_centile"]).all("region") & ds["included"]
known &= ds["group"] == "stroke"
subject = ds["lesion_volume"].where(known).idxmax("subject").item()
one = placed.sel(subject=subject).sortby("brain_pad_z")
deviation = truth["true_deviation"].sel(subject=subject, region=one["region"].values)
fig, axis = plt.subplots(figsize=(11, 3.6), layout="constrained")
x = np.arange(one.sizes["region"])
axis.vlines(x, one["brain_age_centile_low"], one["brain_age_centile_high"], color="#0072b2")
axis.plot(x, one["brain_age_centile"], "o", color="#0072b2", label="centile, 95% interval")
axis.plot(x, 100 * norm.cdf(deviation / 4), "D", ms=5, color="#d55e00", label="true (SD 4 years)")
axis.axhspan(10, 90, color="#eeeeee", zorder=0)
axis.set_xticks(x, one["region"].values, fontsize=8)
axis.set_ylabel("centile among the healthy")
side, volume = one["lesion_hemisphere"].item(), one["lesion_volume"].item()
axis.set_title(f"{subject}: lesion of {volume:.0f} mL, {side}", fontsize=10)
fig.legend(loc="outside lower center", ncols=2, frameon=False)
plt.show()

# %% [markdown]
# Among healthy people 10% lie beyond the 90th centile. Among the strokes:

# %%
centiles = sb.to_lesional_sides(placed.sel(subject=strokes["subject"].values))["brain_age_centile"]
part = {
    side: 100 * float((values > 90).sum() / values.notnull().sum())
    for side in ("ipsilesional", "contralesional")
    for values in [centiles.sel(region=[r for r in centiles["region"].values if r.endswith(side)])]
}
pd.Series(part, name="% of regions beyond the 90th centile").round(1).to_frame()
