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
# # From scans to a cohort store
#
# What stands between a folder of scans and an analysis: files that are broken, tables that do not
# fit, left and right that were swapped. This notebook takes twelve people of a BIDS derivatives
# folder, breaks two of them on purpose, and shows what is let in and what the store looks like.
#
# It copies people of the simulated cohort that `make demo` leaves in `demo-out`; set
# `SCALEBRAIN_STUDY` to another study whose scans lie in a folder `bids` inside or beside it.

# %%
import os
import shutil
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pandas as pd
import xarray as xr

import scalebrain as sb

study = Path(os.environ.get("SCALEBRAIN_STUDY", "../demo-out"))
bids = next(folder for folder in (study / "bids", study.parent / "bids") if folder.is_dir())

pd.set_option("display.max_colwidth", None)  # messages in full
work = Path(tempfile.mkdtemp())
table = pd.read_csv(bids / "participants.tsv", sep="\t")
chosen = pd.concat(
    [table[table["group"] == "reference"][:6], table[table["group"] == "stroke"][:6]]
)
for subject in chosen["participant_id"]:
    shutil.copytree(bids / subject, work / "tree" / subject)
shutil.copy(bids / "dataset_description.json", work / "tree")
chosen.to_csv(work / "tree" / "participants.tsv", sep="\t", index=False)
chosen.head()

# %% [markdown]
# ## Break two scans
#
# One T1w file is cut short, as by a full disk. And one lesion mask is mirrored, as by a tool that
# forgot which side is left.

# %%
strokes = list(chosen["participant_id"][chosen["group"] == "stroke"])
cut = next((work / "tree" / strokes[0]).rglob("*_T1w.nii.gz"))
cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])

mask = next((work / "tree" / strokes[1]).rglob("*_mask.nii.gz"))
image = nib.load(mask)
flipped = np.asarray(image.dataobj)[::-1].copy()
nib.Nifti1Image(flipped, image.affine, image.header).to_filename(mask)

# %% [markdown]
# `validate` does every check and writes nothing. `E`: this person would be left out; `W`: kept,
# with a warning that stays in the store.

# %%
found = sb.validate(work / "tree")
found[["subject", "code", "action", "message"]].style.set_properties(**{"text-align": "left"})

# %% [markdown]
# The cut file is found. A mirrored mask is no error of format: it shows when it reaches out of the
# brain (`lesion-outside`), or when the table names the hemisphere or the paretic side.
#
# ## Read the rest
#
# One bad scan never stops the others.

# %%
store = work / "cohort.zarr"
sb.ingest(work / "tree", store)
sb.problems(store)[["subject", "code", "message"]]

# %%
info = sb.store_info(store)
{key: info[key] for key in ("complete", "space", "shape", "datasets", "rejected", "objects")}

# %% [markdown]
# ## What is in it
#
# The brain's voxels alone, sorted by parcel: no air, no skull, no face. Anything that reads Zarr
# opens it, without scalebrain.

# %%
plain = xr.open_zarr(store, consolidated=False)
plain[["t1w", "lesion_mask", "lesion_volume", "lesion_hemisphere", "age"]]

# %% [markdown]
# And back to a volume with its affine, for a viewer or another tool:

# %%
ds = sb.open_store(store)
volume = sb.unpack(ds["t1w"].isel(subject=0)).compute()
path = work / "one.nii.gz"
nib.Nifti1Image(volume.values, volume.attrs["affine"]).to_filename(path)
print(nib.load(path).shape, nib.aff2axcodes(nib.load(path).affine))

# %% [markdown]
# A volume has coordinates in mm. The axial slice with most of the largest lesion:

# %%
subject = ds["lesion_volume"].idxmax().item()
one = ds.sel(subject=subject)
scan, lesion = (sb.unpack(one[name]).compute() for name in ("t1w", "lesion_mask"))
z = lesion.sum(["x", "y"]).idxmax("z").item()
fig, axis = plt.subplots(figsize=(4, 4.4), layout="constrained")
axis.imshow(scan.sel(z=z).T, cmap="gray", origin="lower")
axis.contour(lesion.sel(z=z).T.astype(float), levels=[0.5], colors="#d55e00", linewidths=1.2)
axis.set_title(f"{subject}, z = {z:.0f} mm, left is left", fontsize=9)
axis.axis("off")
plt.show()

# %% [markdown]
# ## Consent withdrawn, scan mended
#
# A withdrawn person's data are gone from the store, and the id stays out of later ingests. A mended
# scan comes in with `update=True`; what has not changed is not read again.

# %%
sb.withdraw(store, [strokes[2]])
whole = next((bids / strokes[0]).rglob("*_T1w.nii.gz"))
shutil.copy(whole, cut)
sb.ingest(work / "tree", store, update=True)
ds = sb.open_store(store)
print(strokes[0] in ds["subject"].values, strokes[2] in ds["subject"].values)
print("damaged:", sb.verify_store(store))
shutil.rmtree(work)
