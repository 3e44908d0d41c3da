"""Cases of people: their rows in the table, their sessions, and what models make of them."""

import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import scalebrain
from scalebrain.errors import StatisticsError, TableError
from scalebrain.features.inclusion import same_people
from scalebrain.graph.folds import assign_folds
from scalebrain.report.page import render_report
from tests.guard.inputs import (
    GM,
    LEFT,
    LESION,
    MIDDLE,
    ONE,
    OTHER,
    RIGHT,
    SUBJECTS,
    T1W,
    Lab,
    add_rows,
    case,
    edit_table,
    rewrite,
    save,
    value,
)
from tests.phantom import image_path, tree_bytes
from tests.report.conftest import make_study

EVIL = "<img src=x onerror=alert(1)>"


@case("duplicate-id")
def duplicate_id(lab: Lab) -> str:
    tree = lab.tree()
    add_rows(tree, "002|40|F|site0|reference|n/a|1500|n/a")
    add_rows(tree, "sub-A1|40|F|site0|reference|n/a|1500|n/a")
    add_rows(tree, "sub-a1|41|F|site0|reference|n/a|1500|n/a")
    return lab.rejected(
        tree, "duplicate-id", ONE, "sub-A1", "sub-a1", says=r"in line \d+, .* in line \d+.*Keep one"
    )


@case("duplicate-scan")
def duplicate_scan(lab: Lab) -> str:
    tree = lab.tree()
    for kind in (T1W, GM):  # packed again: other bytes, the same voxels
        image = nib.load(image_path(tree, ONE, kind))
        save(image_path(tree, OTHER, kind), np.asarray(image.dataobj), image.affine)
    message, ds = lab.warned(tree, "duplicate-scan", ONE, OTHER, says="same scan as.*Keep one")
    assert value(ds, "scan_hash", ONE) == value(ds, "scan_hash", OTHER)
    masks = lab.tree()
    shutil.copy(image_path(masks, LEFT, LESION), image_path(masks, RIGHT, LESION))
    says = "same lesion mask as sub-01[67], of another scan"
    lab.warned(masks, "duplicate-scan", LEFT, RIGHT, says=says, others=False)
    return message


@case("scan-in-training")
def scan_in_training(lab: Lab) -> str:
    trained, model = lab.model()
    n = trained.sizes["subject"]
    scans = trained.assign_coords(subject=[f"sub-other{i}" for i in range(n)])
    out = scalebrain.brain_age(scans, model)
    assert out["out_of_fold"].all()
    np.testing.assert_array_equal(
        out["brain_age"].values, scalebrain.brain_age(trained, model)["brain_age"].values
    )
    new = scans.assign(scan_hash=("subject", [f"new {i}" for i in range(n)]))
    assert not scalebrain.brain_age(new, model)["out_of_fold"].any()
    outcome = study(np.arange(24) % 4)
    outcome["scan_hash"] = ("subject", ["same", "same", *(f"scan {i}" for i in range(2, 24))])
    with pytest.raises(StatisticsError, match=r"sub-00.*sub-01.*Keep one") as caught:
        predict(outcome)
    assert caught.value.code == "scan-in-training"
    return "`out_of_fold` True under the new id"


def split_sessions(tree: Path) -> None:
    """Make two sessions of the images of one person."""
    anat = tree / ONE / "anat"
    for session in ("1", "2"):
        folder = tree / ONE / f"ses-{session}" / "anat"
        folder.mkdir(parents=True)
        for path in anat.iterdir():
            name = path.name.replace(f"{ONE}_", f"{ONE}_ses-{session}_")
            shutil.copy(path, folder / name)
    shutil.rmtree(anat)


@case("several-sessions")
def several_sessions(lab: Lab) -> str:
    tree = lab.tree()
    split_sessions(tree)
    message = lab.rejected(tree, "several-sessions", ONE, says="ses-1, ses-2.*--session.*all")
    store = lab.space() / "all.zarr"
    ds = scalebrain.open_store(scalebrain.ingest(tree, store, session="all"))
    assert (ds["person"] == ONE).sum() == 2
    assert {f"{ONE}_ses-1", f"{ONE}_ses-2"} < set(ds["subject"].values)
    people = same_people(ds)
    assert len(set(people[ds["person"].values == ONE])) == 1
    fold = assign_folds(np.arange(40.0), 4, seed=0, person=np.arange(40) // 2)
    assert (fold[::2] == fold[1::2]).all()
    return message


@case("visit-values")
def visit_values(lab: Lab) -> str:
    tree = lab.tree()
    split_sessions(tree)
    second = tree / ONE / "ses-2" / "anat"
    for path in second.glob("*.nii.gz"):
        rewrite(path, lambda data: data * 0.99)
    both = f"{ONE}_ses-1", f"{ONE}_ses-2"
    says = "age by a row.*ses-1, ses-2.*_sessions.tsv"
    message, ds = lab.warned(tree, "visit-values", *both, says=says, others=False, session="all")
    assert value(ds, "age", both[0]) == value(ds, "age", both[1])
    told = lab.again(tree)
    lines = ("session_id\tage", "ses-1\t60", "ses-2\t61.5")
    (told / ONE / f"{ONE}_sessions.tsv").write_text("\n".join(lines))
    store = scalebrain.ingest(told, told.parent / "c.zarr", session="all")
    ds = scalebrain.open_store(store)
    assert ds["age"].sel(subject=list(both)).values.tolist() == [60, 61.5]
    assert (ds["warnings"].values == "").all()
    return message


@case("person-differs")
def person_differs(lab: Lab) -> str:
    tree = lab.tree()
    split_sessions(tree)
    for path in (tree / ONE / "ses-2" / "anat").glob("*.nii.gz"):
        rewrite(path, lambda data: data * 0.99)
    lines = ("session_id\tage\tsex", "ses-1\t60\tM", "ses-2\t61.5\tF")
    (tree / ONE / f"{ONE}_sessions.tsv").write_text("\n".join(lines))
    both = f"{ONE}_ses-1", f"{ONE}_ses-2"
    says = r"several values of sex of one person: .*M \(ses-1\), F \(ses-2\)\. Correct"
    message, ds = lab.warned(tree, "person-differs", *both, says=says, others=False, session="all")
    assert ds["sex"].sel(subject=list(both)).values.tolist() == ["M", "F"]
    return message


@case("several-images")
def several_images(lab: Lab) -> str:
    tree = lab.tree()
    path = image_path(tree, ONE, T1W)
    for run in ("1", "2"):
        shutil.copy(path, path.with_name(path.name.replace("_space", f"_run-{run}_space")))
    path.unlink()
    return lab.rejected(tree, "several-images", ONE, says="run-1.*run-2.*Keep one")


@case("age-unit")
def age_unit(lab: Lab) -> str:
    tree = lab.tree()
    ages = {
        "624": "In months. Divide by 12",
        "18993": "In days. Divide by 365.25",
        "1974-03-01": "a date. Write the age",
        "52,5": r"decimal comma. Write 52\.5",
        "1974": "a year of birth. Write the age",
        "52y": "in years. Write the number alone: 52",
    }
    people = (ONE, *(subject for subject in SUBJECTS if subject not in (ONE, MIDDLE)))
    edit_table(tree, {s: {"age": age} for s, age in zip(people, ages, strict=True)})
    shown = {"1974-03-01": "YYYY-MM-DD", "1974": "YYYY"}  # when someone was born stands nowhere
    says = "|".join(f"{shown.get(age, age)}.*{guess}" for age, guess in ages.items())
    assert "1974" not in says
    return lab.rejected(tree, "age-unit", *people, says=says)


@case("bad-number")
def bad_number(lab: Lab) -> str:
    tree = lab.tree()
    edit_table(
        tree,
        {
            ONE: {"age": "fifty"},
            OTHER: {"icv": "-5"},
            LEFT: {"days_post_stroke": "1e999"},
            RIGHT: {"motor_score": "-0.1"},
        },
    )
    return lab.rejected(tree, "bad-number", ONE, OTHER, LEFT, RIGHT, says="n/a")


@case("age-range")
def age_range(lab: Lab) -> str:
    tree = lab.tree()
    edit_table(tree, {ONE: {"age": "18-38"}})
    return lab.rejected(tree, "age-range", ONE, says="is a range. Write the age")


@case("age-censored")
def age_censored(lab: Lab) -> str:
    tree = lab.tree()
    edit_table(tree, {ONE: {"age": "89+"}})
    ds = lab.handled(tree, ONE)
    assert value(ds, "age", ONE) == 89
    assert ds["age_censored"].values.sum() == 1
    assert value(ds, "age_censored", ONE) is True
    return "`age` 89, `age_censored` True"


@case("extrapolated")
def extrapolated(lab: Lab) -> str:
    trained, model = lab.model()
    old = trained.isel(subject=[0, 1]).assign_coords(age=("subject", [98.0, 60.0]))
    out = scalebrain.brain_age(old, model)
    assert out["extrapolated"].values.tolist() == [True, False]
    assert np.isfinite(out["brain_age"]).all()
    outcome = study(np.arange(24) % 4)
    outcome["extrapolated"] = ("subject", np.arange(24) == 3)
    result = scalebrain.mixed_model(outcome, "motor_score ~ age")
    assert result["dropped"].values.nonzero()[0].tolist() == [3]
    return "`extrapolated` True"


@case("missing-covariate")
def missing_covariate(lab: Lab) -> str:
    tree = lab.tree()
    edit_table(tree, {ONE: {"age": "n/a"}, RIGHT: {"motor_score": "n/a"}})
    message, ds = lab.warned(
        tree, "missing-covariate", ONE, says="age is missing.*fill it in", others=False
    )
    assert np.isnan(value(ds, "age", ONE))
    outcome = study(np.arange(24) % 4)
    outcome["motor_score"][5] = np.nan
    result = scalebrain.mixed_model(outcome, "motor_score ~ age")
    assert (result["n"].item(), result["n_dropped"].item()) == (23, 1)
    assert result["dropped"].values.nonzero()[0].tolist() == [5]
    assert "motor_score" in result.attrs["rows_dropped"]
    motor = predict(outcome)
    assert (motor["n"].item(), motor["n_dropped"].item()) == (23, 1)
    assert motor["dropped"].values.nonzero()[0].tolist() == [5]
    return message


def study(site: np.ndarray) -> xr.Dataset:
    """Strokes at some sites, with a motor score that age explains in part."""
    rng = np.random.default_rng(0)
    n = len(site)
    age = rng.uniform(45, 80, n)
    return xr.Dataset(
        {"motor_score": ("subject", 1 - 0.008 * (age - 40) + rng.normal(0, 0.05, n))},
        coords={
            "subject": [f"sub-{i:02d}" for i in range(n)],
            "age": ("subject", age),
            "cohort": ("subject", np.array([f"site{i}" for i in site])),
            "group": ("subject", np.where(np.asarray(site) > 1, "stroke", "reference")),
        },
    )


def predict(ds: xr.Dataset) -> xr.Dataset:
    return scalebrain.predict_motor(
        ds,
        feature_groups={"age": ["age"]},
        learners=["elastic_net"],
        n_permutations=0,
        n_boot=10,
        group=None,
    )


@case("sex-coded")
def sex_coded(lab: Lab) -> str:
    tree = lab.tree()
    edit_table(tree, {ONE: {"sex": "2"}, OTHER: {"sex": "1"}})
    message = lab.rejected(tree, "sex-coded", ONE, OTHER, says="neither F nor M. Write F, M")
    told = lab.again(tree)
    levels = {"1": "male", "2": "female"}
    (told / "participants.json").write_text(json.dumps({"sex": {"Levels": levels}}))
    ds = lab.handled(told)
    assert (value(ds, "sex", ONE), value(ds, "sex", OTHER)) == ("F", "M")
    return message


@case("site-in-one-fold")
def site_in_one_fold(lab: Lab) -> str:
    ds = study(np.arange(24) % 4)
    before = predict(ds)["prediction"].squeeze()
    changed = ds.copy(deep=True)
    held = (ds["cohort"] == "site2").values
    changed["motor_score"][held] = changed["motor_score"][held] / 2
    after = predict(changed)["prediction"].squeeze()
    np.testing.assert_array_equal(after[held], before[held])  # it never trains on its own
    assert (after[~held] != before[~held]).all()
    return "predictions of a site do not depend on its own scores"


@case("small-site")
def small_site(lab: Lab) -> str:
    ds = study(np.array([0, 1, 2, 3] * 6)[:21])
    ds["cohort"] = ("subject", np.array([*ds["cohort"].values[:20], "alone"], dtype=object))
    result = scalebrain.mixed_model(ds, "motor_score ~ age")
    assert (result["n"].item(), result["n_groups"].item()) == (21, 5)
    assert np.isfinite(result["estimate"]).all()
    assert predict(ds)["cohort_n"].values.min() == 1
    flat = ds.assign(motor_score=("subject", np.full(21, 0.5)))
    with pytest.raises(StatisticsError, match="nothing to predict"):
        predict(flat)
    with np.errstate(invalid="ignore"):
        told = scalebrain.mixed_model(flat, "motor_score ~ age", errors="record")
    assert np.isnan(told["estimate"]).all()
    (reason,) = told.attrs["failures"]
    assert "no variation" in reason
    return reason


@case("cohort-shared")
def cohort_shared(lab: Lab) -> str:
    both = lab.tree(), lab.tree()
    store = scalebrain.ingest(both[0], both[0].parent / "c.zarr")
    other = both[1].rename(both[1].with_name("lima"))
    scalebrain.ingest(other, store, prefix="lima", update=True)
    sites = sorted(set(scalebrain.open_store(store)["cohort"].values.tolist()))
    found = scalebrain.problems(store, "warnings").set_index("code")
    told = found.loc["cohort-shared"]
    assert (told["dataset"], told["subject"]) == ("lima", "")
    for words in (
        *map(repr, sites),
        "the datasets 'cohort', 'lima' have",
        "Give sites that differ",
    ):
        assert words in told["message"]
    scalebrain.withdraw(store, [f"sub-lima{who.removeprefix('sub-')}" for who in SUBJECTS])
    assert scalebrain.problems(store, "warnings").empty
    return str(told["message"])


@case("cohort-alike")
def cohort_alike(lab: Lab) -> str:
    tree = lab.tree()
    sites = dict(zip(SUBJECTS, ("1", "1.0", "01", "Oslo", "oslo", "Lima", "R10"), strict=True))
    edit_table(tree, {who: {"cohort": site} for who, site in sites.items()})
    store = scalebrain.ingest(tree, tree.parent / "c.zarr")
    assert scalebrain.open_store(store)["cohort"].values.tolist() == list(sites.values())
    (message,) = scalebrain.problems(store, "warnings")["message"]
    assert "cohorts '01' and '1' and '1.0', 'Oslo' and 'oslo' differ in case" in message
    assert scalebrain.validate(tree)["message"].tolist() == [message]
    return str(message)


@case("site-confounded")
def site_confounded(lab: Lab) -> str:
    ds = study(np.arange(24) % 4)
    ds["clinic"] = ("subject", np.arange(24) % 5)
    with pytest.raises(StatisticsError, match=r"rank deficient.*Leave one") as caught:
        scalebrain.mixed_model(ds, "motor_score ~ group + C(cohort)", groups="clinic")
    return str(caught.value)


@case("mixed-scales")
def mixed_scales(lab: Lab) -> str:
    scales = {
        "FMA-UE": {"Maximum": 66, "HigherIsBetter": True},
        "NIHSS": {"Maximum": 42, "HigherIsBetter": False},
    }
    rows = {
        LEFT: {"motor_score": "33", "motor_scale": "FMA-UE"},
        RIGHT: {"motor_score": "21", "motor_scale": "NIHSS"},
        MIDDLE: {"motor_score": "n/a"},
    }
    tree = lab.tree()
    edit_table(tree, rows)
    message = lab.stopped(tree, TableError, "Declare each scale", code="mixed-scales")
    told = lab.tree()
    edit_table(told, rows)
    (told / "participants.json").write_text(json.dumps({"motor_score": {"Scales": scales}}))
    ds = lab.handled(told, LEFT, RIGHT, MIDDLE)
    assert (value(ds, "motor_score", LEFT), value(ds, "motor_score", RIGHT)) == (0.5, 0.5)
    assert (value(ds, "motor_scale", LEFT), value(ds, "motor_scale", RIGHT)) == ("FMA-UE", "NIHSS")
    return message


@case("group-mismatch")
def group_mismatch(lab: Lab) -> str:
    tree = lab.tree()
    edit_table(tree, {ONE: {"group": "stroke"}, LEFT: {"group": "control"}})
    message, ds = lab.warned(tree, "group-mismatch", LEFT, ONE, says="[Cc]orrect the group")
    assert value(ds, "group", LEFT) == "reference"
    return message


@case("mask-ignored")
def mask_ignored(lab: Lab) -> str:
    tree = lab.tree()
    for subject, ending in ((ONE, "label-infarct_mask"), (RIGHT, "desc-chronicLesion_dseg")):
        shutil.copy(image_path(tree, LEFT, "label-L_mask"), image_path(tree, subject, ending))
    message, _ = lab.warned(
        tree, "mask-ignored", ONE, RIGHT, says="not read.*label-L_mask, .*Rename it"
    )
    table = tree / "participants.tsv"
    table.write_text(re.sub(r"\t(group|reference|stroke)\b", "", table.read_text()))
    edit_table(tree, {OTHER: {"motor_score": "0.9"}})
    store = scalebrain.ingest(tree, tree.parent / "without_groups.zarr")
    found = scalebrain.problems(store, "warnings")
    doubted = found[found["code"] == "taken-as-reference"].set_index("subject")["message"]
    assert doubted.index.tolist() == [ONE, OTHER]
    assert "in spite of sub-002/anat/" in doubted[ONE]
    assert "in spite of a motor score. Where" in doubted[OTHER]
    return message


@case("column-ignored")
def column_ignored(lab: Lab) -> str:
    tree = lab.tree()
    path = tree / "participants.tsv"
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    for column, ending in (("t1w", T1W), ("gm_prob", GM), ("mask", LESION)):
        files = [image_path(tree, who, ending) for who in table["participant_id"]]
        table[column] = [str(f.relative_to(tree)) if f.exists() else "n/a" for f in files]
    table.drop(columns="group").to_csv(tree / "scans.tsv", sep="\t", index=False)
    store = scalebrain.ingest(tree / "scans.tsv", tree.parent / "c.zarr")
    found = scalebrain.problems(store, "warnings")
    about = found[found["subject"] == ""].set_index("code")["message"]
    assert set(about.index) == {"column-ignored", "mask-ignored"}
    assert "the column 'mask' names 3 files and is not read." in about["mask-ignored"]
    assert "rename it to lesion" in about["mask-ignored"]
    assert "'gm_prob' names 7 files" in about["column-ignored"]
    told = scalebrain.validate(tree / "scans.tsv")
    assert told["message"].tolist() == found["message"].tolist()
    return str(about["column-ignored"])


@case("gm-missing")
def gm_missing(lab: Lab) -> str:
    tree = lab.tree()
    image_path(tree, ONE, GM).unlink()
    return lab.rejected(tree, "gm-missing", ONE, says="no label-GM_probseg.*Add it")


@case("no-table-row")
def no_table_row(lab: Lab) -> str:
    tree = lab.tree()
    table = tree / "participants.tsv"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(line for line in lines if not line.startswith(ONE)))
    return lab.rejected(tree, "no-table-row", ONE, says="no row in the table. Add its row")


@case("no-image")
def no_image(lab: Lab) -> str:
    tree = lab.tree()
    shutil.rmtree(tree / ONE)
    message, ds = lab.warned(tree, "no-image", ONE, says="kept as missing. Add the file")
    assert value(ds, "scan_present", ONE) is False
    assert ds["t1w"].sel(subject=ONE).isnull().all()
    assert scalebrain.node_features(ds)["node_features"].sel(subject=ONE).isnull().all()
    return message


@case("withdrawn")
def withdrawn(lab: Lab) -> str:
    tree = lab.tree()
    listed = tree.parent / "w1234.csv"
    listed.write_text("002\n")
    ds = lab.handled(tree, ONE, withdrawn=listed)
    assert ONE not in ds["subject"].values
    everything = b"".join(tree_bytes(tree.parent / "c.zarr").values())
    assert ONE.encode() not in everything
    return "in no table; the store keeps a hash of the id"


@case("bad-id")
def bad_id(lab: Lab) -> str:
    tree = lab.tree()
    long = "sub-" + "a" * 300
    evil = f"sub-{EVIL}"
    split = "sub-a\tb\nc"
    names = (evil, "sub-has space", split)
    for name in names:
        shutil.copytree(tree / ONE, tree / name)
    add_rows(tree, f"{long}|40|F|site0|reference|n/a|1500|n/a")
    add_rows(tree, f"{evil}|40|F|site0|reference|n/a|1500|n/a")
    store = tree.parent / "c.zarr"
    ds = scalebrain.open_store(scalebrain.ingest(tree, store))
    assert ds["subject"].values.tolist() == list(SUBJECTS)
    table = scalebrain.problems(store)
    assert (table["code"] == "bad-id").all()
    assert len(table) == 5
    assert table["message"].str.contains("Write sub-<label>|Rename it", regex=True).all()
    assert table["message"].str.len().max() < 300
    assert len((store / "ingest" / "rejected.tsv").read_text().splitlines()) == 6
    made = make_study(EVIL)
    page = render_report(made.ds, results=made.results)
    assert EVIL not in page
    assert EVIL.replace("<", "&lt;").replace(">", "&gt;") in page
    return str(table["message"][table["message"].str.contains("img")].iloc[0])
