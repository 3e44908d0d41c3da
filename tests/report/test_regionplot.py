import dask
import numpy as np
import pytest
import xarray as xr

import scalebrain
from scalebrain.atlas.regions import RegionSet
from scalebrain.errors import ConfigError, MissingVariableError, StatisticsError, TableError
from scalebrain.report.regionplot import parcel_values, regions_of, values_of_regions


@pytest.fixture(scope="module")
def ds(whole_study):
    return scalebrain.open_store(whole_study / "cohort.zarr")


def test_plot_regions__names_left_and_right_and_the_unit(ds):
    figure = ds.scalebrain.plot_regions("brain_pad_corrected")
    words = [t.get_text() for axes in figure.axes for t in [axes.title, axes.xaxis.label]]
    assert {"left, lateral", "left, medial", "right, medial", "right, lateral"} <= set(words)
    assert "brain-PAD corrected, years" in words
    assert f"median of {ds.sizes['subject']} subjects" in figure.texts[0].get_text()
    legend = [t.get_text() for t in figure.axes[-1].get_legend().get_texts()]
    assert legend == ["left", "right"]


def test_plot_regions__a_result_and_one_subject(ds):
    fit = xr.DataArray(
        [1.0, -2.0],
        coords={"region": ["SMN_ipsilesional", "SMN_contralesional"]},
        name="estimate",
    )
    figure = scalebrain.plot_regions(ds, fit, kind="dots")
    assert figure.axes[0].get_legend().get_texts()[0].get_text() == "ipsilesional"
    one = scalebrain.plot_regions(ds, "brain_age", subject="sub-ref001", kind="dots")
    left = one.axes[0].lines[0].get_xdata()
    expected = ds["brain_age"].sel(subject="sub-ref001", region="SMN_L")
    assert left[0] == pytest.approx(float(expected))


def test_values_of_regions__loads_the_variable_alone(ds):
    poisoned = ds.copy()
    poisoned["t1w"] = ds["t1w"].copy(
        data=dask.array.map_blocks(
            lambda block: 1 / 0, ds["t1w"].data, dtype=np.float32, meta=np.empty((0, 0), "f4")
        )
    )
    value, everyone = values_of_regions(poisoned, "brain_pad", reduce="mean")
    np.testing.assert_allclose(value, everyone.mean("subject"))
    assert "Scalebrain Dataset of" in poisoned.scalebrain._repr_html_()


def test_parcel_values__ipsilesional_is_left_and_shared_parcels_show_the_mean():
    from scalebrain.atlas.regions import default_regions

    value = xr.DataArray(
        [1.0, 3.0, np.nan],
        coords={"region": ["FPN_ipsilesional", "DMN_ipsilesional", "SMN_contralesional"]},
    )
    painted = parcel_values(value, default_regions())
    assert painted[65] == 2.0
    assert painted[5] == 1.0
    assert all(code % 2 for code in painted)


@pytest.mark.parametrize(
    ("variable", "options", "error", "match"),
    [
        ("nothing", {}, MissingVariableError, "brain_age"),
        ("age", {}, StatisticsError, "dims"),
        ("brain_age", {"subject": "nobody"}, MissingVariableError, "nobody"),
        ("lesion_load", {"subject": "sub-ref001"}, StatisticsError, "no region has a value"),
        ("brain_age", {"kind": "pie"}, ConfigError, "pie"),
        ("brain_age", {"reduce": "max"}, ConfigError, "max"),
        ("brain_age", {"cmap": "nocolor", "kind": "dots"}, ConfigError, "nocolor"),
    ],
)
def test_plot_regions__refuses(ds, variable, options, error, match):
    with pytest.raises(error, match=match):
        scalebrain.plot_regions(ds, variable, **options)


def test_view__is_offline_and_reads_one_row(ds):
    page = ds.scalebrain.view("t1w", subject="sub-stroke003").html
    assert "<script src=" not in page
    assert "https://" not in page
    assert len(page) > 50_000
    assert "canvas" in scalebrain.view(ds, "brain_pad_corrected").html


@pytest.mark.parametrize(
    ("variable", "subject", "error", "match"),
    [
        ("t1w", None, StatisticsError, "Name one"),
        ("t1w", "nobody", MissingVariableError, "nobody"),
        ("nothing", None, MissingVariableError, "There is"),
        ("node_features", None, StatisticsError, "dims"),
    ],
)
def test_view__refuses(ds, variable, subject, error, match):
    with pytest.raises(error, match=match):
        scalebrain.view(ds, variable, subject=subject)


def test_summary__counts_and_escapes():
    ds = xr.Dataset(
        {
            "group": ("subject", ["stroke", "<script>alert(1)</script>", "stroke"]),
            "age": ("subject", [50.0, np.nan, 61.0]),
            "scan_present": ("subject", [True, False, True]),
        },
        attrs={"simulated": "true", "space": "<b>"},
    )
    found = scalebrain.summary(ds)
    assert "stroke 2" in str(found)
    assert "2 of 3" in str(found)
    assert "Simulated" in str(found)
    assert "<script" not in found._repr_html_()
    assert "<b>" not in found._repr_html_()


def test_summary__people_of_one_name_in_two_datasets_are_two():
    ds = xr.Dataset(
        {"person": ("subject", ["01", "01", "01"]), "dataset": ("subject", ["a", "a", "b"])}
    )
    assert ("people", "2") in scalebrain.summary(ds).lines


def test_plot_regions__one_side_alone(ds):
    left = [r for r in ds["region"].values if r.endswith("_L")]
    one = ds["brain_age"].sel(region=left)
    figure = scalebrain.plot_regions(ds, one)
    assert [t.get_text() for t in figure.axes[-1].get_legend().get_texts()] == ["left"]
    missing = ds["brain_age"].where(ds["region"].isin(left))
    figure = scalebrain.plot_regions(ds, missing, kind="dots")
    assert [t.get_text() for t in figure.axes[-1].get_legend().get_texts()] == ["left"]


def test_plot_regions__names_regions_without_a_side(ds):
    value = xr.DataArray([1.0, 2.0], coords={"region": ["SMN_L", "Vermis"]}, name="load")
    with pytest.raises(StatisticsError, match=r"'load': Vermis have no side"):
        scalebrain.plot_regions(ds, value, kind="dots")


def test_model__shows_its_card(whole_study):
    model = scalebrain.BrainAgeModel.load(whole_study / "model")
    page = model._repr_html_()
    assert "Trained on simulated people" in page
    assert "MAE of predicting the mean" in page
    assert "SMN_L" in page


def test_regions_of__refuses_regions_that_would_not_be_drawn():
    value = xr.DataArray([1.0, 2.0], coords={"region": ["Precentral_L", "SMN_L"]}, name="load")
    with pytest.raises(TableError, match=r"'load': Precentral_L are no regions .*kind='dots'"):
        regions_of(value, None)
    drawn = regions_of(value.assign_coords(region=["SMN_ipsilesional", "FPN_L"]), None)
    assert drawn.name == "networks-9x2"


def test_regions_of__refuses_values_of_another_set_of_the_same_names():
    value = xr.DataArray([1.0], coords={"region": ["SMN_L"]}, name="load", attrs={"atlas": "mine"})
    with pytest.raises(TableError, match=r"'load' has regions of 'mine', expected .*networks-9x2"):
        regions_of(value, None)
    assert regions_of(value, RegionSet("mine", {"SMN_L": (43,), "SMN_R": (44,)})).name == "mine"
