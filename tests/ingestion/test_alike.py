import logging

import pytest

import scalebrain
from scalebrain.errors import TableError
from scalebrain.ingestion.alike import alike_ids
from scalebrain.ingestion.upkeep import withdraw_people
from tests.phantom import write_tree


@pytest.mark.parametrize(
    ("listed", "held", "found"),
    [
        ("stroke001", ["oslstroke001", "oslctrl002"], ["oslstroke001"]),
        ("STROKE001", ["stroke001", "ctrl002"], ["stroke001"]),
        ("1", ["001", "002"], ["001"]),
        ("0001", ["001", "002"], ["001"]),
        ("1", ["osl001", "osl002"], ["osl001"]),
        ("Stroke1", ["OSLstroke001", "OSLctrl002"], ["OSLstroke001"]),
        ("001", ["site2001", "site2002"], ["site2001"]),
        ("a1", ["b1", "b2"], []),
        ("1", ["11", "12"], []),  # a number is no prefix
        ("5", ["osl105", "osl106"], []),
        ("001", ["stroke001", "ctrl002"], []),  # not in front of everybody
        ("2", ["001", "003"], []),
    ],
)
def test_alike_ids__apart_from_case_zeros_and_prefix(listed, held, found):
    ids = {"a": [f"sub-{one}" for one in held], "b": ["sub-x", "sub-y"]}
    expected = {f"sub-{listed}": tuple(f"sub-{one}" for one in found)} if found else {}
    assert alike_ids([f"sub-{listed}"], ids) == expected


def test_withdraw__a_list_of_other_ids_than_the_stores_is_an_error(tmp_path):
    tree = write_tree(tmp_path / "bids", n=4)
    store = scalebrain.ingest(tree, tmp_path / "c.zarr", prefix="osl")
    for _ in range(2):  # as long as they are there
        with pytest.raises(TableError, match="0 rows emptied, 0 of 3 people named were") as caught:
            scalebrain.withdraw(store, [], also={"sub-001", "sub-OSL002", "sub-777"})
        lines = str(caught.value).splitlines()[1:]
        assert [line.split(":")[0] for line in lines] == ["  - sub-001", "  - sub-OSL002"]
        assert "which has sub-osl001. Where" in lines[0]
        assert lines[0].endswith(f"scalebrain store withdraw {store} sub-osl001")
    assert scalebrain.open_store(store).sizes["subject"] == 4
    fresh = scalebrain.ingest(write_tree(tmp_path / "b", n=4), store, update=True)
    assert scalebrain.open_store(fresh).sizes["subject"] == 7  # sub-001 is kept out
    with pytest.raises(TableError, match="sub-2: not in the store, which has sub-002, sub-osl002"):
        scalebrain.withdraw(store, ["2"])
    assert withdraw_people(store, ["osl001", "osl002", "002"]) == (3, 3, 3)
    assert withdraw_people(store, [], also={"sub-001", "sub-777"}) == (0, 0, 2)


def test_ingest__a_list_of_other_ids_than_the_sources_is_told(tmp_path, caplog):
    tree = write_tree(tmp_path / "bids", n=4)
    listed = tmp_path / "w.csv"
    listed.write_text("1\n002\n777\n")
    with caplog.at_level(logging.WARNING):
        store = scalebrain.ingest(tree, tmp_path / "c.zarr", prefix="b", withdrawn=listed)
    (told,) = [line for line in caplog.messages if "of its 3 ids" in line]
    assert "1 of its 3 ids are in the sources or the store. Nobody is left out for " in told
    assert "sub-1 (sub-b001?)" in told
    assert "002" not in told.removeprefix(str(tmp_path))
    assert scalebrain.open_store(store).sizes["subject"] == 3
    caplog.clear()
    listed.write_text("b003\n")
    scalebrain.ingest(tree, tmp_path / "d.zarr", prefix="b", withdrawn=listed)
    assert [line for line in caplog.messages if "sub-b003 (sub-b003?)" in line]
