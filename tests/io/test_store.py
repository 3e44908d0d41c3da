"""Saved variables: a save that was killed at any write leaves nothing to the next one."""

import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

import scalebrain
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
