"""Commands of the pages: encrypted between machines, no dashboard in the network, pinned charts."""

import re
from pathlib import Path

import pytest

PAGES = ("deploy/docker", "deploy/kubernetes", "deploy/gateway", "deploy/tls", "docs/clusters.md")


def commands(page: Path) -> list[str]:
    """Lines of the shell blocks of a page, continued ones joined."""
    page = page / "README.md" if page.is_dir() else page
    found = re.findall(r"^```sh\n(.*?)^```$", page.read_text(), flags=re.M | re.S)
    assert found, page
    return "".join(found).replace("\\\n", " ").splitlines()


@pytest.mark.parametrize("page", ["deploy/tls", "deploy/docker", "docs/clusters.md"])
def test_schedulers_and_workers__talk_tls_and_show_their_pages_to_nobody(
    repository: Path, page: str
) -> None:
    lines = [one for one in commands(repository / page) if re.search(r"\bdask \w", one)]
    assert len(lines) >= 2
    for line in lines:
        assert "--protocol tls" in line or " tls://" in line
        assert " --dashboard-address 127.0.0.1:" in line


@pytest.mark.parametrize("page", PAGES)
def test_commands__hold_no_plain_scheduler_and_no_variable_of_the_reader(
    repository: Path, page: str
) -> None:
    text = "\n".join(commands(repository / page))
    assert "tcp://" not in text
    used = set(re.findall(r"\$\{?(\w+)", text)) - {"HOME", "PWD"}
    assert used <= set(re.findall(r"^(?:export )?(\w+)=", text, flags=re.M))


@pytest.mark.parametrize(
    ("page", "chart", "package"),
    [
        ("deploy/kubernetes", "dask-kubernetes-operator", "dask-kubernetes"),
        ("deploy/gateway", "dask-gateway", "dask-gateway"),
    ],
)
def test_charts__are_of_the_version_that_is_tested(
    repository: Path, page: str, chart: str, package: str
) -> None:
    constraints = (repository / "constraints.txt").read_text()
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", constraints, flags=re.M))
    (line,) = [one for one in commands(repository / page) if one.startswith("helm install")]
    assert f"--repo https://helm.dask.org --version {pins[package]} " in line
    assert chart in line.split()


def test_certificates__are_not_made_in_the_checkout(repository: Path) -> None:
    for page in ("deploy/kubernetes", "deploy/tls"):
        text = "\n".join(commands(repository / page))
        (folder,) = re.findall(r"make_certificates\.sh (\S+)", text)
        assert folder.startswith("~/") or re.search(r"^tls=\$HOME/", text, flags=re.M)
    ignored = (repository / ".gitignore").read_text().splitlines()
    assert {"certificates/", "*.key"} <= set(ignored)


def test_image__is_built_by_the_same_commands_in_both_places(repository: Path) -> None:
    comment = (repository / "deploy" / "docker" / "Dockerfile").read_text().replace("\n#", "\n")
    builds = {
        " ".join(found.split())
        for text in (comment, "\n".join(commands(repository / "deploy" / "docker")))
        for found in re.findall(r"docker build .*? \.$", text.replace("\\\n", " "), flags=re.M)
    }
    assert len(builds) == 2
    assert all("--build-arg VARIANT=" in one for one in builds)
    assert sum("TORCH_INDEX=https://download.pytorch.org/whl/cpu" in one for one in builds) == 1
