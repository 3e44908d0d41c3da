import pytest

from scalebrain.ingestion.sites import odd_sites


def told(**datasets):
    """Warnings about datasets of such cohorts."""
    tables = {
        name: {f"sub-{name}{i}": {"cohort": cohort} for i, cohort in enumerate(cohorts)}
        for name, cohorts in datasets.items()
    }
    everyone = {subject for rows in tables.values() for subject in rows}
    return odd_sites(tables, everyone)


@pytest.mark.parametrize(
    "cohorts",
    [
        ("1", "1.0"),
        ("1", "01"),
        ("R1", "R001"),
        ("Oslo", "oslo"),
        ("Oslo  1", "Oslo 1"),
        ("STRASSE", "Straße"),
    ],
)
def test_odd_sites__one_site_in_two_spellings(cohorts):
    ((dataset, problem),) = told(one=[*cohorts, "other"])
    assert (dataset, problem.subject, problem.code) == ("one", "", "cohort-alike")
    assert " and ".join(map(repr, sorted(cohorts))) in problem.message
    assert told(a=cohorts[:1], b=cohorts[1:])[0][1].message == problem.message


@pytest.mark.parametrize(
    "cohorts", [("1", "10"), ("0", "00.5"), ("1.5", "1.05"), ("A", "B"), ("", "0"), ("1", "1.01")]
)
def test_odd_sites__sites_that_differ(cohorts):
    assert not told(one=cohorts)


def test_odd_sites__one_name_in_several_datasets():
    found = told(a=["1", "2", "3"], b=["1", "2"], c=["3", "4"])
    assert [(name, p.code) for name, p in found] == [("b", "cohort-shared"), ("c", "cohort-shared")]
    assert found[0][1].message.startswith("the datasets 'a', 'b' have the same cohorts '1', '2':")
    assert "the datasets 'a', 'c' have the same cohorts '3'" in found[1][1].message
    rows = {"sub-1": {"cohort": "x"}}
    assert not odd_sites({"a": rows, "b": rows | {"sub-2": {"cohort": "x"}}}, {"sub-2"})
    many = [f"S{i}" for i in range(30)]
    assert "and 20 more: each is one cohort" in told(a=many, b=many)[0][1].message
