"""Settings and fixtures that all tests share."""

import importlib.util
import os
import random
import shutil
import sys
from pathlib import Path
from typing import NoReturn

# Before anything imports matplotlib or starts a thread pool.
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("scalebrain", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("scalebrain")

#: Of the study that several modules look at.
CONFIG = {"training": {"epochs": 4, "folds": 3}, "n_boot": 20, "n_permutations": 2}
SYSTEM_PACKAGES = ".ci/system-packages.sh"


def missing(what: str, remedy: str = f"run {SYSTEM_PACKAGES} as root") -> NoReturn:
    """Skip a test that lacks what it needs; in CI, where it must be there, fail."""
    reason = f"{what} is not installed: {remedy}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def need(*modules: str, remedy: str = "make setup-dev") -> None:
    """Skip a test whose Python packages are missing; in CI fail."""
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    if absent:
        missing(" and ".join(absent), remedy)


@pytest.fixture(autouse=True)
def _deterministic_seeds() -> None:
    """Start every test from the same state of every global random generator."""
    random.seed(20260101)
    np.random.seed(20260101)  # noqa: NPY002 - other libraries draw from the global generator
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(20260101)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium that runs headless."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        found = shutil.which(name)
        if found:
            return found
    missing("Chromium")


@pytest.fixture(scope="session")
def mricron_templates() -> Path:
    """Folder of mricron's templates, where a real T1w scan in MNI space lies (ch2)."""
    folder = Path("/usr/share/mricron/templates")
    if not any(folder.glob("ch2*")):
        missing("mricron-data")
    return folder


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans of a simulated cohort; its truth lies beside it."""
    import scalebrain

    folder = tmp_path_factory.mktemp("study")
    return scalebrain.simulate_cohort(
        folder / "bids", reference=51, stroke=36, cohorts=4, resolution=3.0
    )


@pytest.fixture(scope="session")
def whole_study(tree: Path) -> Path:
    """Results of the whole study of the simulated cohort. Tests copy it before they change it."""
    import scalebrain

    out = tree.parent / "out"
    scalebrain.run_study(tree, out, CONFIG, truth=tree.parent / "truth.json")
    return out


@pytest.fixture(scope="session")
def study(whole_study: Path) -> Path:
    """The same, where no other fixture has this name."""
    return whole_study
