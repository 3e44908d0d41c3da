"""The package as a whole: what importing it costs, what it exports, what it never does."""

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import scalebrain

PUBLIC = {
    "BrainAgeModel",
    "RegionSet",
    "brain_age",
    "ingest",
    "load_atlas",
    "read_atlas",
    "lesion_frequency",
    "lesion_load",
    "lesion_measures",
    "lesion_symptom_map",
    "lesion_volume",
    "mixed_model",
    "network_load",
    "open_client",
    "open_store",
    "parcellate",
    "parcellate_files",
    "predict_motor",
    "run_study",
    "save_store",
    "sem",
    "simulate_cohort",
    "to_lesional_sides",
    "tract_load",
    "unpack",
}
HEAVY = ("torch", "semopy", "statsmodels", "matplotlib", "sklearn")

IMPORT = """
import json, sys, time
import xarray
start = time.process_time()
import scalebrain
spent = time.process_time() - start
print(json.dumps({"seconds": spent, "modules": sorted({m.partition(".")[0] for m in sys.modules})}))
"""

NAMES = """
import importlib, json, pkgutil, warnings
warnings.simplefilter("ignore")
import scalebrain
for module in pkgutil.walk_packages(scalebrain.__path__, "scalebrain."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
names = [n for n in scalebrain.__all__ if not n.startswith("_")]
print(json.dumps([n for n in names if not callable(getattr(scalebrain, n))]))
"""


def in_new_python(code: str) -> object:
    """Run code in a fresh interpreter and return the JSON of its last line."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def modules() -> list[Path]:
    return sorted(Path(scalebrain.__file__).parent.rglob("*.py"))


def imported_names(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def test_import__is_lazy_and_quick() -> None:
    runs = [in_new_python(IMPORT) for _ in range(3)]
    loaded = set(HEAVY) & set(runs[0]["modules"])
    assert not loaded, f"import scalebrain also imports {sorted(loaded)}"
    # CPU seconds, the best of three: other processes on the machine do not count.
    assert min(run["seconds"] for run in runs) < 0.3


def test_all__holds_the_public_names() -> None:
    assert set(scalebrain.__all__) >= PUBLIC
    assert len(set(scalebrain.__all__)) == len(scalebrain.__all__)
    assert set(scalebrain.__all__) <= set(dir(scalebrain))


def test_all__resolves() -> None:
    for name in scalebrain.__all__:
        assert getattr(scalebrain, name) is not None, name


def test_all__stays_callable_after_every_module_is_imported() -> None:
    # No submodule may take the place of a function of its name.
    assert in_new_python(NAMES) == []


def test_getattr__unknown_name() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        scalebrain.no_such_name  # noqa: B018 - the access is what is tested


def test_accessor__is_registered_by_the_import() -> None:
    import xarray as xr

    assert hasattr(xr.Dataset, "scalebrain")


def test_version__matches_the_metadata() -> None:
    assert scalebrain.__version__ == importlib.metadata.version("scalebrain")


@pytest.mark.parametrize("word", ["pickle.load", "torch.load(", "yaml.load(", "allow_pickle=True"])
def test_source__never_runs_what_it_reads(word: str) -> None:
    found = [str(path) for path in modules() if word in path.read_text()]
    assert not found


def test_source__numba_is_named_in_accelerate_alone() -> None:
    found = [
        path.name
        for path in modules()
        if any(re.match(r"numba(\.|$)", name) for name in imported_names(path))
    ]
    assert found == ["accelerate.py"]


def test_source__kernels_know_neither_dask_nor_files() -> None:
    allowed = {"collections.abc", "heapq", "math", "numpy", "numpy.typing", "typing"}
    allowed |= {"scalebrain.accelerate"}
    kernels = [path for path in modules() if path.name.endswith("_numba_fns.py")]
    assert kernels
    for path in kernels:
        names = {n for n in imported_names(path) if not n.endswith("_numba_fns")}
        assert names <= allowed, f"{path.name} imports {sorted(names - allowed)}"


def test_source__modules_stay_readable() -> None:
    long = {path.name: n for path in modules() if (n := len(path.read_text().splitlines())) >= 800}
    assert not long
