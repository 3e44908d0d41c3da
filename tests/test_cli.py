import logging

import pytest

import scalebrain
from scalebrain import cli
from tests.phantom import write_tree


def run(capsys, *arguments):
    code = 0
    try:
        cli.main(list(arguments))
    except SystemExit as ended:
        code = ended.code
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(autouse=True)
def _logging():
    yield
    logging.getLogger("scalebrain").propagate = True


def test_main__ingest_prints_the_store_and_progress_lines(capsys, tmp_path):
    tree = write_tree(tmp_path / "bids")
    store = tmp_path / "c.zarr"
    code, out, err = run(capsys, "ingest", str(tree), str(store), "--scheduler", "threads")
    assert code == 0
    assert out.strip() == str(store)
    assert "ingest: 2/2" in err
    assert scalebrain.open_store(store).sizes["subject"] == 20


def test_main__users_mistake_is_one_message_and_exit_code_1(capsys, tmp_path):
    tree = write_tree(tmp_path / "bids")
    (tree / "participants.tsv").unlink()
    code, _, err = run(capsys, "ingest", str(tree), str(tmp_path / "c"), "--scheduler", "threads")
    assert code == 1
    assert "participants.tsv: missing" in err
    assert "Traceback" not in err


def test_main__usage_is_exit_code_2(capsys, tmp_path):
    assert run(capsys, "ingest", str(tmp_path / "none"), "x")[0] == 2
    assert run(capsys, "nonsense")[0] == 2


def test_main__unknown_scheduler_names_what_is_known(capsys, tmp_path):
    tree = write_tree(tmp_path / "bids")
    code, _, err = run(capsys, "ingest", str(tree), str(tmp_path / "c"), "--scheduler", "spark")
    assert code == 1
    assert "threads" in err


def test_main__version(capsys):
    code, out, _ = run(capsys, "--version")
    assert code == 0
    assert scalebrain.__version__ in out
