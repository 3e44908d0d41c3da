"""Every rule of the guard: its input made as a real file, and what the public API does with it."""

import pytest

import scalebrain
from scalebrain import cli
from scalebrain.errors import ScalebrainError
from scalebrain.io.guard import RULES
from tests.guard.inputs import CASES, ONE, T1W, Lab
from tests.guard.table import DOCUMENT, render
from tests.phantom import image_path


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="session")
def messages() -> dict[str, str]:
    return {}


@pytest.mark.parametrize("code", CASES)
def test_bad_input__does_what_its_rule_says(lab, messages, code):
    messages[code] = CASES[code](lab)
    assert messages[code]


def test_rules__every_one_has_a_case():
    assert set(CASES) == set(RULES)


def test_document__is_what_the_cases_say(lab, messages):
    for code in CASES.keys() - messages.keys():
        messages[code] = CASES[code](lab)
    assert DOCUMENT.read_text(encoding="utf-8") == render(messages), (
        "Write it again with: python -m tests.guard.table"
    )


@pytest.mark.parametrize("command", ["ingest", "validate"])
def test_cli__exits_with_3_when_some_are_rejected(lab, capsys, command):
    tree = lab.tree()
    image_path(tree, ONE, T1W).write_bytes(b"")
    store = [str(tree.parent / "c.zarr")] if command == "ingest" else []
    with pytest.raises(SystemExit) as left:
        cli.main([command, str(tree), *store, "--scheduler", "threads"])
    assert left.value.code == 3
    out = capsys.readouterr()
    assert "rejected.tsv" in out.err if store else f"E [empty-file] cohort {ONE}: " in out.out


def test_cli__strict_stops_with_1(lab, capsys):
    tree = lab.tree()
    image_path(tree, ONE, T1W).write_bytes(b"")
    store = tree.parent / "c.zarr"
    with pytest.raises(SystemExit) as left:
        cli.main(["ingest", str(tree), str(store), "--strict", "--scheduler", "threads"])
    assert left.value.code == 1
    assert "is empty" in capsys.readouterr().err
    with pytest.raises(ScalebrainError):
        scalebrain.open_store(store)
