import dask
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from scalebrain.errors import MissingVariableError, StatisticsError
from scalebrain.stats.frame import (
    calibrated_pad,
    eligible_subjects,
    lesional_measures,
    subject_frame,
    table,
    tidy_tables,
)


def forbid(*args, **kwargs):
    raise AssertionError("a dask array was computed")


@pytest.mark.parametrize(
    "values",
    [
        np.array(["F", "", "M"]),
        np.array(["F", "", "M"], dtype=object),
        np.array(["F", None, "M"], dtype=object),
        np.array(["F", np.nan, "M"], dtype=object),
        np.array(["F", "", "M"], dtype=np.dtypes.StringDType()),
    ],
)
def test_subject_frame__text_of_every_kind_becomes_str_and_missing(values):
    frame = subject_frame(xr.Dataset({"sex": ("subject", values)}))
    assert frame["sex"].isna().tolist() == [False, True, False]
    assert [type(item) for item in frame["sex"].dropna()] == [str, str]


def test_subject_frame__numbers_and_flags_keep_their_dtype():
    ds = xr.Dataset(
        {
            "age": ("subject", np.array([50.5, np.nan], dtype=np.float32)),
            "count": ("subject", [1, 2]),
            "flag": ("subject", [True, False]),
            "object_flag": ("subject", np.array([True, False], dtype=object)),
        },
        coords={"subject": ["a", "b"]},
    )
    frame = subject_frame(ds)
    assert frame.index.tolist() == ["a", "b"]
    assert [frame[name].dtype.kind for name in frame] == ["f", "i", "b", "b"]
    assert frame["age"].dtype == np.float32


def test_subject_frame__takes_one_region_and_repeats_region_constants(cohort):
    frame = subject_frame(cohort, ["age", "brain_pad_corrected", "calibration_slope"], at="FPN_R")
    expected = cohort["brain_pad_corrected"].sel(region="FPN_R").values
    np.testing.assert_array_equal(frame["brain_pad_corrected"], expected)
    assert frame["calibration_slope"].nunique() == 1


def test_subject_frame__default_names_need_no_images(cohort):
    frame = subject_frame(cohort, at="SMN_L")
    assert "lesion_load" in frame
    assert "t1w" not in frame
    assert "tract_load" not in frame
    assert "lesion_load" not in subject_frame(cohort)


def test_subject_frame__leaves_other_arrays_lazy(cohort):
    poisoned = dask.array.map_blocks(
        forbid, cohort["t1w"].data, dtype=np.float32, meta=np.empty((0, 0), np.float32)
    )
    ds = cohort.assign(t1w=(("subject", "voxel"), poisoned))
    subject_frame(ds, ["age", "lesion_load"], at="SMN_L")
    assert dask.is_dask_collection(ds["lesion_load"].data)


@pytest.mark.parametrize(
    ("names", "at", "error", "match"),
    [
        (["nothing"], None, MissingVariableError, "'nothing'"),
        (["t1w"], None, StatisticsError, "other dimensions"),
        (["lesion_load"], None, StatisticsError, "need `at`"),
        (["lesion_load"], "SMN_X", MissingVariableError, "SMN_X"),
    ],
)
def test_subject_frame__refuses(cohort, names, at, error, match):
    with pytest.raises(error, match=match):
        subject_frame(cohort, names, at=at)


def test_calibrated_pad__divides_and_masks_slopes_that_are_not_positive():
    ds = xr.Dataset(
        {
            "brain_pad_corrected": (("subject", "region"), [[1.0, 2.0, 3.0]]),
            "calibration_slope": ("region", [0.5, 0.0, np.nan]),
        }
    )
    np.testing.assert_array_equal(calibrated_pad(ds), [[2.0, np.nan, np.nan]])


def test_lesional_measures__native_and_lesional_input_agree(cohort):
    from scalebrain.features.laterality import to_lesional_sides

    names = ["brain_pad_corrected", "tract_load"]
    native = lesional_measures(cohort, names)
    lesional = lesional_measures(to_lesional_sides(cohort), names)
    for name in names:
        np.testing.assert_allclose(native[name].values, lesional[name].values)
    subject = int(np.flatnonzero(cohort["lesion_hemisphere"].values == "R")[0])
    expected = cohort["brain_pad_corrected"] / cohort["calibration_slope"]
    assert native["brain_pad_corrected"].sel(region="FPN_ipsilesional")[subject] == pytest.approx(
        float(expected.sel(region="FPN_R")[subject])
    )
    assert native["tract_load"][-1].isnull().all(), "a bilateral lesion has no side"


def test_lesional_measures__missing_variable_names_the_stage(cohort):
    with pytest.raises(MissingVariableError, match="predict stage"):
        lesional_measures(cohort.drop_vars("calibration_slope"), ["brain_pad_corrected"])


def test_eligible_subjects__group_and_filter(cohort):
    assert eligible_subjects(cohort).sum() == 59
    assert eligible_subjects(cohort, included=None).sum() == 60
    assert eligible_subjects(cohort, group=None, included=None).all()
    assert pd.Series(eligible_subjects(cohort.drop_vars(["group", "included"]))).all()


@pytest.fixture
def small():
    return xr.Dataset(
        {
            "brain_pad": (("subject", "region"), [[1.0, 2.0], [3.0, np.nan]]),
            "tract_load": (("subject", "tract"), [[0.1], [0.2]]),
            "age": ("subject", [50.0, 60.0]),
            "t1w": (("subject", "voxel"), np.zeros((2, 3))),
        },
        coords={"subject": ["b", "a"], "region": ["SMN_L", "SMN_R"], "tract": ["CST_L"]},
        attrs={"simulated": "true"},
    )


def test_table__keeps_order_and_repeats_what_has_fewer_dimensions(small):
    found = table(small, ["age", "brain_pad"])
    assert found.columns.tolist() == ["subject", "region", "age", "brain_pad"]
    assert found["subject"].tolist() == ["b", "b", "a", "a"]
    assert found["age"].tolist() == [50, 50, 60, 60]
    assert found.attrs["units"] == {"age": "years", "brain_pad": "years"}
    assert found.attrs["simulated"]
    assert table(small).columns.tolist() == ["subject", "age"]


def test_table__wide(small):
    found = table(small, ["age", "brain_pad"], wide=True)
    assert found.columns.tolist() == ["subject", "age", "brain_pad_SMN_L", "brain_pad_SMN_R"]
    assert found["subject"].tolist() == ["b", "a"]
    assert found["brain_pad_SMN_L"].tolist() == [1, 3]


@pytest.mark.parametrize(
    ("names", "options", "error", "match"),
    [
        (["nothing"], {}, MissingVariableError, "nothing"),
        (["brain_pad", "tract_load"], {}, StatisticsError, "one table for each"),
        ("t1w", {}, StatisticsError, "parcellate"),
        ("age", {"wide": True}, StatisticsError, "wide"),
    ],
)
def test_table__refuses(small, names, options, error, match):
    with pytest.raises(error, match=match):
        table(small, names, **options)


def test_table__refuses_a_subject_that_is_there_twice(small):
    with pytest.raises(StatisticsError, match="twice"):
        table(xr.concat([small, small], dim="subject"), "brain_pad")


def test_tidy_tables__keeps_coordinates_along_a_dimension():
    ds = xr.Dataset(
        {"estimate": (("effect", "specification"), [[1.0, 2.0]]), "n": ((), 3)},
        coords={"effect": ["a"], "policy": ("specification", ["mask", "as_is"])},
    )
    found = tidy_tables(ds)
    assert found["effect_specification"]["policy"].tolist() == ["mask", "as_is"]
    assert found["summary"]["value"].tolist() == [3]


def test_subject_frame__categories_are_those_there_in_their_order():
    frame = pd.DataFrame(
        {
            "code": pd.Categorical([3, 1, None, 3], categories=[3, 2, 1]),
            "sex": pd.Categorical(["F", "M", "F", None], categories=["M", "F", "X"]),
        },
        index=pd.Index(list("abcd"), name="subject"),
    )
    found = subject_frame(frame.to_xarray(), ["code", "sex"])
    assert found["code"].cat.categories.tolist() == [3, 1]
    assert found["sex"].cat.categories.tolist() == ["M", "F"]
    assert found.isna().sum().tolist() == [1, 1]


def test_subject_frame__flag_with_a_missing_value_is_a_flag():
    ds = xr.Dataset({"flag": ("subject", np.array([True, None, False], dtype=object))})
    column = subject_frame(ds, ["flag"])["flag"]
    assert column.dtype == "boolean"
    assert column.isna().tolist() == [False, True, False]


DATES = np.array(["2015-01-01", "NaT", "2016-02-03"], dtype="datetime64[ns]")


@pytest.mark.parametrize(
    ("values", "match"),
    [(DATES, r"dates.*timedelta64"), (DATES - DATES[0], r"durations.*ds\['when'\] / np")],
)
def test_subject_frame__dates_and_durations_are_no_numbers(values, match):
    ds = xr.Dataset({"when": ("subject", values)})
    with pytest.raises(StatisticsError, match=match):
        subject_frame(ds, ["when"])


def test_table__dates_and_durations_are_iso_text():
    ds = xr.Dataset({"day": ("subject", DATES), "since": ("subject", DATES - DATES[0])})
    for found in (table(ds), subject_frame(ds)):
        assert found["day"].dropna().tolist() == ["2015-01-01", "2016-02-03"]
        assert found["since"].dropna().tolist() == ["P0DT0H0M0S", "P398DT0H0M0S"]
        assert found["day"].isna().tolist() == [False, True, False]


def test_subject_frame__refuses_a_label_that_is_there_twice():
    ds = xr.Dataset({"load": (("subject", "region"), np.eye(3))}, {"region": ["A", "A", "B"]})
    with pytest.raises(StatisticsError, match="'A' is on dimension 'region' twice"):
        subject_frame(ds, ["load"], at="A")
