"""A real person's scan (mricron's ch2, a T1w in MNI space) goes the same way."""

import nibabel as nib
import numpy as np
import pytest

import scalebrain
from scalebrain import BrainAgeModel
from scalebrain.atlas.space import SPACE
from scalebrain.errors import DataWarning
from scalebrain.graph.train import Training
from tests.phantom import save

T1W_FEATURES = ["t1w_mean", "t1w_sd", "contrast"]


@pytest.fixture
def real_tree(mricron_templates, tmp_path):
    image = nib.load(mricron_templates / "ch2bet.nii.gz")
    root = tmp_path / "real"
    subject = root / "sub-ch2" / "anat"
    save(subject / f"sub-ch2_space-{SPACE}_T1w.nii.gz", np.asarray(image.dataobj), image.affine)
    index = np.indices(image.shape).reshape(3, -1).T
    mm = nib.affines.apply_affine(image.affine, index)
    lesion = np.linalg.norm(mm - np.array([32, -8, 26]), axis=1) < 14
    mask = lesion.reshape(image.shape).astype(np.uint8)
    save(subject / f"sub-ch2_space-{SPACE}_label-L_mask.nii.gz", mask, image.affine)
    (root / "participants.tsv").write_text(
        "participant_id\tage\tsex\tcohort\tgroup\tdays_post_stroke\ticv\tmotor_score\n"
        "sub-ch2\t45\tM\tmontreal\tstroke\t400\t1500\tn/a\n"
    )
    return root, mask.sum() / 1000


@pytest.mark.slow
def test_real_scan__has_loads_and_18_regional_ages(real_tree, tmp_path, capsys):
    root, volume = real_tree
    store = scalebrain.ingest(root, tmp_path / "real.zarr")
    ds = scalebrain.open_store(store)
    assert ds.attrs["simulated"] == "false"
    assert ds["lesion_volume"].item() == pytest.approx(volume)
    assert ds["lesion_hemisphere"].item() == "R"
    loads = scalebrain.lesion_load(ds).compute()["lesion_load"].squeeze("subject")
    tracts = scalebrain.tract_load(ds).compute()["tract_load"].squeeze("subject")
    assert loads.sel(region=[r for r in loads.region.values if r.endswith("_L")]).max() == 0
    assert loads.sel(region="SMN_R") > 0
    assert tracts.sel(tract="CST_R") > 0
    assert tracts.sel(tract="CST_L") == 0

    tree = scalebrain.simulate_cohort(
        tmp_path / "bids", reference=60, stroke=0, cohorts=3, resolution=3.0
    )
    references = scalebrain.open_store(scalebrain.ingest(tree, tmp_path / "references.zarr"))
    features = scalebrain.node_features(references)
    trained_on = references.assign(features.sel(feature=T1W_FEATURES).compute().data_vars)
    model = BrainAgeModel.fit(trained_on, training=Training(epochs=3, folds=3))
    with pytest.warns(DataWarning, match="voxels of 3 mm, the data have 1 mm"):
        ages = model.predict(ds).compute()
    values = ages["brain_age"].squeeze("subject")
    assert values.sizes["region"] == 18
    assert np.isfinite(values).all()
    with capsys.disabled():
        print("\nch2 with a lesion drawn in; ages by a model of simulated people, not a finding:")
        for region in values.region.values:
            load = loads.sel(region=region).item()
            print(f"  {region}: lesion load {load:.3f}, age {values.sel(region=region).item():.1f}")
