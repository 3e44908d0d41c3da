"""Saved variables: a save that was killed at any write leaves nothing to the next one."""

import subprocess
import sys
from datetime import date

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import scalebrain
from scalebrain.errors import StoreError
from scalebrain.io.results import read_results, write_results
from scalebrain.io.store import hide_variables, show_variables, variables_hash
from tests.phantom import tree_bytes

DIES = """
import os, pathlib, sys
import numpy as np, xarray as xr
import scalebrain
left, real = int(sys.argv[2]), pathlib.Path.replace
def replace(self, target):
    global left
    left -= 1
    if not left:
        os._exit(9)
    return real(self, target)
pathlib.Path.replace = replace
ds = xr.open_dataset(sys.argv[3])
scalebrain.save_store(ds, sys.argv[1])
"""


@pytest.mark.parametrize("write", [1, 2, 3, 5, 8])
def test_save_store__killed_at_a_write_then_saved_again_leaves_the_same_files(tmp_path, write):
    subjects = {"subject": [f"sub-{i:02d}" for i in range(20)]}
    image = np.arange(60, dtype=np.float32).reshape(20, 3)
    whole, broken, more = tmp_path / "whole.zarr", tmp_path / "broken.zarr", tmp_path / "more.nc"
    extra = xr.Dataset(
        {name: ("subject", np.arange(20.0) + i) for i, name in enumerate("abc")}, subjects
    )
    extra.to_netcdf(more, engine="scipy")
    for store in (whole, broken):
        scalebrain.save_store(xr.Dataset({"t1w": (("subject", "voxel"), image)}, subjects), store)
    scalebrain.save_store(extra, whole)
    died = subprocess.run(
        [sys.executable, "-c", DIES, str(broken), str(write), str(more)], check=False
    )
    assert died.returncode == 9
    assert list(broken.rglob("*.partial"))
    scalebrain.save_store(extra, broken)
    assert tree_bytes(broken) == tree_bytes(whole)


def test_hide_variables__until_they_are_shown_they_do_not_count(tmp_path):
    store, subjects = tmp_path / "c.zarr", {"subject": ["sub-01", "sub-02"]}
    scalebrain.save_store(xr.Dataset({"t1w": (("subject", "voxel"), np.eye(2))}, subjects), store)
    saved = {name: ("subject", np.array([i, np.nan])) for i, name in enumerate("abc")}
    scalebrain.save_store(xr.Dataset(saved, subjects), store)
    before = tree_bytes(store)
    hide_variables(store, ["b"])
    assert set(scalebrain.open_store(store).data_vars) == {"t1w", "a", "c"}
    show_variables(store, ["b"])
    assert tree_bytes(store) == before


def test_variables_hash__tells_values_names_and_what_is_not_there(tmp_path):
    subjects = {"subject": [f"sub-{i}" for i in range(1500)]}
    values = np.arange(1500.0)
    values[3] = np.nan

    def hash_of(name, **variables):
        store = tmp_path / name
        held = {n: ("subject", v) for n, v in variables.items()}
        scalebrain.save_store(xr.Dataset(held, subjects), store)
        return variables_hash(store, ["a", "b"])

    first = hash_of("1", a=values, b=values)
    assert hash_of("2", a=values.copy(), b=values) == first
    other = values.copy()
    other[-1] += 1
    found = {first, hash_of("3", a=other, b=values), hash_of("4", a=values)}
    assert len({*found, hash_of("5", b=values), hash_of("6", a=values > 2, b=values)}) == 5


@pytest.fixture
def small(tmp_path):
    subjects = {"subject": [f"sub-{i}" for i in range(4)], "region": ["SMN_L", "SMN_R"]}
    ds = xr.Dataset({"age": ("subject", [50.0, 60.0, np.nan, 70.0])}, subjects)
    ds["sex"] = ("subject", ["F", "", "M", "F"])
    ds["t1w"] = (("subject", "voxel"), np.ones((4, 3), dtype=np.float32))
    scalebrain.save_store(ds, tmp_path / "c.zarr")
    return tmp_path / "c.zarr"


COLUMNS = [
    (np.array([1, 2.5, None, np.int64(4)], dtype=object), [1, 2.5, np.nan, 4]),
    (np.array([True, None, np.nan, False], dtype=object), [1, np.nan, np.nan, 0]),
    (np.array([True, False, True, np.False_], dtype=object), [True, False, True, False]),
    (np.array(["a", None, np.nan, "d"], dtype=object), ["a", "", "", "d"]),
    (np.array(["a", pd.NA, pd.NaT, "d"], dtype=object), ["a", "", "", "d"]),
    (np.array([None] * 4, dtype=object), ["", "", "", ""]),
    (pd.array([1, 2, None, 4], dtype="Int64"), [1, 2, np.nan, 4]),
    (pd.array([1, 2, 3, 4], dtype="Int64"), [1, 2, 3, 4]),
    (pd.array([True, False, None, True], dtype="boolean"), [1, 0, np.nan, 1]),
    (pd.array([True, False, True, True], dtype="boolean"), [True, False, True, True]),
    (pd.Categorical(["a", "b", None, "a"]), ["a", "b", "", "a"]),
    (pd.Series(["a", "b", None, "a"]).values, ["a", "b", "", "a"]),
    (pd.array(["a", "b", None, "a"], dtype="string"), ["a", "b", "", "a"]),
]


@pytest.mark.parametrize(("given", "expected"), COLUMNS)
@pytest.mark.parametrize("name", ["c.zarr", "new.zarr"])
def test_save_store__columns_of_pandas_and_of_objects(small, tmp_path, given, expected, name):
    ds = scalebrain.open_store(small)
    ds["extra"] = ("subject", given, {"least": np.float64(1), "bins": np.arange(2)})
    url = tmp_path / name
    scalebrain.save_store(ds[["extra"]], url)
    write_results({"motor": ds[["extra"]]}, tmp_path / "results.zarr", attrs={})
    results, _ = read_results(tmp_path / "results.zarr")
    for found in (scalebrain.open_store(url)["extra"], results["motor"]["extra"]):
        assert found.dtype.kind == np.array(expected).dtype.kind
        np.testing.assert_array_equal(found.values, expected)
        assert (found.attrs["least"], found.attrs["bins"]) == (1.0, [0, 1])


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["a", 1, None, 2], "int .1. and str .'a'."),
        ([date(2020, 1, 1)] * 4, "date"),
        ([1, None, 2**53 + 1, 3], f"{2**53 + 1}, which has more digits.*astype.str."),
        (pd.array([1, None, 2**53 + 1, 3], dtype="Int64"), f"{2**53 + 1}, which has more digits"),
        (pd.Categorical([1, None, 2**53 + 1, 3]), f"{2**53 + 1}, which has more digits"),
    ],
)
def test_save_store__refuses_what_is_neither_numbers_nor_text(small, tmp_path, given, found):
    ds = scalebrain.open_store(small)
    ds["extra"] = ("subject", np.array(given, dtype=object) if isinstance(given, list) else given)
    before = tree_bytes(small)
    with pytest.raises(StoreError, match=f"'extra' holds {found}"):
        scalebrain.save_store(ds[["extra"]], small)
    with pytest.raises(StoreError, match=f"'extra' holds {found}"):
        write_results({"motor": ds[["extra"]]}, tmp_path / "results.zarr", attrs={})
    assert tree_bytes(small) == before


def test_save_store__an_empty_column_of_numbers_is_numbers(small):
    ds = scalebrain.open_store(small)
    ds["icv"] = ("subject", np.array([None] * 4, dtype=object))
    scalebrain.save_store(ds[["icv"]], small)
    assert scalebrain.open_store(small)["icv"].dtype.kind == "f"


def test_save_store__a_changed_coordinate_is_told(small):
    ds = scalebrain.open_store(small)
    ds["extra"] = ds["age"] * 2
    scalebrain.save_store(ds, small)
    before = tree_bytes(small)
    ds["age"] = ds["age"] + 1
    ds["sex"] = ("subject", ["F", "M", "M", "F"])
    with pytest.raises(StoreError, match=r"'age' differs[\s\S]*'sex' differs"):
        scalebrain.save_store(ds, small)
    with pytest.raises(StoreError, match=r"'age' differs .* ds.reset_coords\('age'\)"):
        scalebrain.save_store(ds[["age"]], small)
    assert tree_bytes(small) == before
    scalebrain.save_store(ds[["age"]].drop_vars("sex").reset_coords("age"), small)
    np.testing.assert_array_equal(scalebrain.open_store(small)["age"], [51, 61, np.nan, 71])


def test_save_store__a_coordinate_that_was_saved_is_saved_again(small):
    ds = scalebrain.open_store(small)[[]].assign_coords(side=("region", ["L", "R"]))
    ds["load"] = (("subject", "region"), np.ones((4, 2)))
    scalebrain.save_store(ds, small)
    ds["side"] = ("region", ["left", "right"])
    scalebrain.save_store(ds, small)
    assert scalebrain.open_store(small)["side"].values.tolist() == ["left", "right"]


@pytest.mark.parametrize("names", [["age"], ["t1w"], ["t1w", "sex"]])
def test_save_store__nothing_to_save_is_told(small, names):
    with pytest.raises(StoreError, match="nothing to save"):
        scalebrain.save_store(scalebrain.open_store(small)[names], small)
