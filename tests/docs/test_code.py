"""The code in the documentation: recipes run, and whatever a page names exists."""

import ast
import inspect
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import click
import pytest

import scalebrain
from scalebrain.cli import cli

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "deploy").rglob("*.md")),
]
#: The recipe that runs a whole study is what the fixture of the study does.
NOT_RUN = ("sb.run_study(",)


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def by_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def check_call(call: ast.Call, page: Path) -> None:
    """A call of a public function binds to its signature, as far as options go."""
    if not isinstance(call.func, ast.Attribute) or not isinstance(call.func.value, ast.Name):
        return
    if call.func.value.id not in ("sb", "scalebrain"):
        return
    function = getattr(scalebrain, call.func.attr)
    known = inspect.signature(function).parameters
    for option in call.keywords:
        assert option.arg is None or option.arg in known, f"{page.name}: {ast.unparse(call)}"


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_python__compiles_and_names_what_exists(page: Path) -> None:
    for code in blocks(page, "python"):
        for node in ast.walk(ast.parse(code, page.name)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if node.value.id in ("sb", "scalebrain") and node.attr not in ("io", "stats"):
                    assert node.attr in scalebrain.__all__, f"{page.name}: {node.attr}"
            elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("scalebrain"):
                module = __import__(str(node.module), fromlist=["_"])
                assert all(hasattr(module, alias.name) for alias in node.names), page.name
            elif isinstance(node, ast.Call):
                check_call(node, page)


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_shell__commands_and_options_exist(page: Path) -> None:
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    for line in lines:
        words = shlex.split(line, comments=True)
        if not words or words[0] != "scalebrain":
            continue
        command: click.Command = cli
        rest = words[1:]
        while rest and isinstance(command, click.Group) and not rest[0].startswith("-"):
            found = command.get_command(click.Context(command), rest[0])
            assert found is not None, f"{page.name}: {line}"
            command, rest = found, rest[1:]
        known = {o for parameter in command.params for o in parameter.opts} | {
            "--help",
            "--version",
        }
        assert {word for word in rest if word.startswith("--")} <= known, f"{page.name}: {line}"


@pytest.mark.slow
def test_readme__example_runs(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "OUT").symlink_to(study, target_is_directory=True)
    (example,) = blocks(ROOT / "README.md", "python")
    names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert "SMN_ipsilesional" in names["effects"]["region"].values


@pytest.mark.slow
def test_how_do_i__recipes_run(
    study: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(study, tmp_path / "OUT")
    (tmp_path / "BIDS_DIR").symlink_to(tree, target_is_directory=True)
    names: dict[str, object] = {}
    recipes = blocks(ROOT / "docs" / "how_do_i.md", "python")
    assert len(recipes) > 20
    for recipe in recipes:
        if not any(word in recipe for word in NOT_RUN):
            exec(compile(recipe, recipe.strip().splitlines()[0], "exec"), names)
    assert (tmp_path / "first.nii.gz").stat().st_size > 0
    assert (tmp_path / "brain_pad.tsv").read_text().startswith("subject\t")
