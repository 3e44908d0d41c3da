import numpy as np
import pytest

from scalebrain.errors import TableError
from scalebrain.io.measures import read_measures


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_read_measures__numbers_words_and_missing_ones(tmp_path):
    path = write(
        tmp_path / "t.tsv",
        "dose\tparticipant_id\tarm\n1.5\tsub-01\ta\nn/a\tsub-02\tb\n-2\tsub-03\tn/a\n",
    )
    table = read_measures(path)
    assert list(table.index) == ["sub-01", "sub-02", "sub-03"]
    assert list(table.columns) == ["dose", "arm"]
    np.testing.assert_array_equal(table["dose"], [1.5, np.nan, -2])
    assert list(table["arm"][:2]) == ["a", "b"]
    assert table["arm"].isna().tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("id\tx\n1\t2\n", "no column of ids"),
        ("subject\tx\na\t1\na\t2\n", "several rows of 'a'"),
        ("subject\tx\n\t1\n", "line 2: no id"),
        ("subject\na\n", "no measure in it"),
        ("subject\t\na\t1\n", "a column without a name"),
        ("subject\tx\na\t1\nb\tinf\n", r"'x' holds 'inf' \(line 3\)"),
        ("subject\tx\na\tp\nb\tq\nc\tr\n", "words of two kinds"),
        ("subject\tx\na\t1\nb\tbad\n", r"'x' holds 'bad' \(line 3\)"),
    ],
)
def test_read_measures__refuses_with_a_way_out(tmp_path, text, match):
    with pytest.raises(TableError, match=match):
        read_measures(write(tmp_path / "t.tsv", text))


def test_read_measures__of_no_file(tmp_path):
    with pytest.raises(TableError, match="missing"):
        read_measures(tmp_path / "none.tsv")
