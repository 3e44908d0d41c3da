"""Atlases by entry point, of this package and of others."""

import re

import numpy as np
import pytest

import scalebrain
from scalebrain.atlas.atlas import Atlas
from scalebrain.atlas.regions import RegionSet, default_regions
from scalebrain.atlas.registry import available_atlases, load_atlas
from scalebrain.errors import ConfigError, ImageError

BUILT_IN = {
    "aal",
    "aal3",
    "desikan-killiany",
    "harvard-oxford",
    "juelich-cst",
    "networks-9x2",
    "yeo-7",
    "yeo-17",
}

MODULE = '''
import numpy as np

import scalebrain
from scalebrain.atlas.regions import RegionSet
from scalebrain.atlas.space import Grid
from scalebrain.errors import ImageError


def halves():
    """Two halves of a box, for a test.

    And more that is not shown.
    """
    labels = np.ones((4, 3, 2), dtype=np.int16)
    labels[2:] = 2
    affine = np.eye(4)
    affine[0, 3] = -1.5
    grid = Grid.from_matrix(labels.shape, affine)
    return scalebrain.Atlas("halves", grid, ("H_L", "H_R"), (1, 2), labels=labels)


def pair():
    return RegionSet("pair", {"M_L": (1,), "M_R": (2,)})


def broken():
    raise ZeroDivisionError("by design")


def refused():
    raise ImageError("its file is gone. Download it.")


def other():
    return {"M_L": (1,)}


NUMBER = 7
'''


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a package on the path that registers atlases."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "acme_atlas_module.py").write_text(MODULE)

    def add(package: str, **atlases: str) -> None:
        folder = tmp_path / f"{package.replace('-', '_')}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{name.replace('_', '-')} = {value}" for name, value in atlases.items()]
        (folder / "entry_points.txt").write_text("\n".join(["[scalebrain.atlases]", *lines]) + "\n")

    return add


def test_available_atlases__says_a_sentence_of_each():
    found = available_atlases()
    assert set(found) >= BUILT_IN
    assert list(found) == sorted(found)
    for name in BUILT_IN:
        assert re.fullmatch(r"[A-Z].{20,100}\.", found[name]), name


def test_load_atlas__default_regions_by_name():
    atlas = load_atlas("networks-9x2")
    assert isinstance(atlas, RegionSet)
    assert atlas == default_regions()


def test_load_atlas__unknown_name_lists_the_others():
    with pytest.raises(
        ConfigError, match=r"No atlas 'aall'. Available: .*aal, .*yeo-7.*read_atlas"
    ):
        scalebrain.load_atlas("aall")


def test_load_atlas__of_another_package(install):
    install("acme-atlas", halves="acme_atlas_module:halves", pair="acme_atlas_module:pair")
    found = available_atlases()
    assert found["halves"] == "Two halves of a box, for a test."
    assert found["pair"] == "Of package acme-atlas."
    assert set(found) >= BUILT_IN
    halves = load_atlas("halves")
    assert isinstance(halves, Atlas)
    np.testing.assert_allclose(halves.centroids()[:, 0], [-1, 1])
    assert load_atlas("pair").regions == ("M_L", "M_R")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("acme_atlas_absent:make", "cannot be imported: ModuleNotFoundError"),
        ("acme_atlas_module:absent", "cannot be imported: AttributeError"),
        ("acme_atlas_module:NUMBER", "is a int, expected a function"),
    ],
)
def test_load_atlas__package_that_cannot_be_imported_is_named(install, value, says):
    install("acme-atlas", bad=value)
    with pytest.raises(ConfigError, match=rf"'bad' of package 'acme-atlas'.*{says}.*repair"):
        load_atlas("bad")
    found = available_atlases()
    assert found["bad"].startswith("Not usable. Atlas 'bad' of package 'acme-atlas'")
    assert set(found) >= BUILT_IN
    assert load_atlas("networks-9x2")


def test_load_atlas__package_that_fails_or_returns_something_else_is_named(install):
    install(
        "acme-atlas",
        broken="acme_atlas_module:broken",
        other="acme_atlas_module:other",
        refused="acme_atlas_module:refused",
    )
    with pytest.raises(ConfigError, match="'acme-atlas' failed: ZeroDivisionError: by design"):
        load_atlas("broken")
    with pytest.raises(ConfigError, match=r"'acme-atlas'.*returned a dict, expected an Atlas or"):
        load_atlas("other")
    with pytest.raises(ImageError, match="Download it"):  # its own words are the best ones
        load_atlas("refused")


def test_load_atlas__same_name_of_two_packages_is_an_error(install):
    install("acme-atlas", aal="acme_atlas_module:halves", pair="acme_atlas_module:pair")
    with pytest.raises(
        ConfigError,
        match=r"'aal' is registered 2 times: by acme-atlas \(.*scalebrain \(.*Uninstall",
    ):
        load_atlas("aal")
    with pytest.raises(ConfigError, match="'aal' is registered 2 times"):
        available_atlases()
    assert load_atlas("pair")
