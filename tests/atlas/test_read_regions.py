"""Region sets from a table: unions of AAL parcels."""

import pytest

import scalebrain
from scalebrain.atlas.providers import aal_names
from scalebrain.atlas.regions import default_regions
from scalebrain.errors import LateralityError, TableError

ROWS = "SMN_L\t1\nSMN_L\tPostcentral_L\nSMN_R\t2\nSMN_R\tPostcentral_R\n"


@pytest.fixture
def written(tmp_path):
    def write(text, name="motor.tsv"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_read_regions__codes_and_names_of_parcels(written):
    regions = scalebrain.read_regions(written("region\tparcel\n" + ROWS))
    assert regions.name == "motor"
    assert dict(regions.parcels) == {"SMN_L": (1, 57), "SMN_R": (2, 58)}


@pytest.mark.parametrize("by_name", [False, True])
def test_read_regions__default_regions_go_round(written, by_name):
    names = aal_names()
    rows = ["note,region,parcel"]
    for region, codes in default_regions().parcels.items():
        rows += [f"x,{region},{names[code] if by_name else code}" for code in codes]
    path = written("\n".join(rows) + "\n", "mine.csv")
    assert scalebrain.read_regions(path, name="networks-9x2") == default_regions()


@pytest.mark.parametrize(
    ("rows", "error", "says"),
    [
        ("SMN_L\t117\n", TableError, "line 2: region 'SMN_L', parcel '117'; .* from 1 to 116"),
        ("SMN_L\t0\n", TableError, "parcel '0'"),
        ("SMN_L\tPrecentral\n", TableError, "parcel 'Precentral'"),
        ("\t1\n", TableError, "region ''"),
        (ROWS + "SMN_R\t2\n", TableError, "line 6: parcel 2 is in region 'SMN_R' already"),
        (ROWS + "SMN_R\tPrecentral_R\n", TableError, "is in region 'SMN_R' already"),
        (ROWS + "SMN_L\t4\n", LateralityError, r"parcel 4 \(Frontal_Sup_R\) in region 'SMN_L'"),
        (ROWS + "SMN_L\t110\n", LateralityError, r"parcel 110 \(Vermis_3\)"),
        ("SMN_L\t1\n", TableError, "no homologue 'SMN_R'"),
        ("SMN\t1\n", TableError, "has no side"),
    ],
)
def test_read_regions__refuses_what_is_wrong(written, rows, error, says):
    with pytest.raises(error, match=says):
        scalebrain.read_regions(written("region\tparcel\n" + rows))


def test_read_regions__the_vermis_is_in_both_homologues(written):
    rows = "CB_L\t91\nCB_L\t109\nCB_R\t92\nCB_R\tVermis_1_2\n"
    regions = scalebrain.read_regions(written("region\tparcel\n" + rows))
    assert dict(regions.parcels) == {"CB_L": (91, 109), "CB_R": (92, 109)}
    with pytest.raises(LateralityError, match=r"line 3: .* Give it to 'CB_R' too, or take"):
        scalebrain.read_regions(written("region\tparcel\n" + rows[:-16]))


def test_read_regions__lists_every_bad_row(written):
    rows = "".join(f"A_L\t{code}\n" for code in (200, 201, 202))
    with pytest.raises(TableError, match=r"\(3 problems\)"):
        scalebrain.read_regions(written("region\tparcel\n" + rows))


def test_read_regions__refuses_another_table(written, tmp_path):
    with pytest.raises(TableError, match="each name region, parcel, found region, code"):
        scalebrain.read_regions(written("region\tcode\nA_L\t1\n"))
    with pytest.raises(TableError, match=r"expected a \.tsv"):
        scalebrain.read_regions(written("region\tparcel\n", "motor.xlsx"))
    with pytest.raises(TableError, match="cannot be read"):
        scalebrain.read_regions(tmp_path / "absent.tsv")
