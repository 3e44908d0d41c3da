"""What docs/security.md promises and no other test shows."""

import ast
import json
import os
import pickle
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import dask
import numpy as np
import psutil
import pytest
import xarray as xr
import yaml

import scalebrain
from scalebrain.cluster.client import open_client
from scalebrain.errors import ModelFileError, ScalebrainError
from scalebrain.io.marked_yaml import read_yaml
from tests.distributed.s3 import (
    ACCESS_KEY,
    SECRET_KEY,
    create_bucket,
    moto_server,
    require,
    s3_environment,
)
from tests.phantom import write_tree

#: Calls that run what a file says, and modules that exist for it.
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}
UNSAFE_MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
UNSAFE_ATTRIBUTES = {"torch.load", "np.load", "numpy.load", "pd.read_pickle", "yaml.load"}


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.mark,)


@pytest.fixture
def modules(repository: Path) -> dict[str, ast.Module]:
    return {
        str(path.relative_to(repository)): ast.parse(path.read_text())
        for path in (repository / "scalebrain").rglob("*.py")
    }


def test_code__reads_no_format_that_can_run_code(modules: dict[str, ast.Module]) -> None:
    found = []
    for name, tree in modules.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                used = {alias.name.partition(".")[0] for alias in node.names} & UNSAFE_MODULES
            elif isinstance(node, ast.ImportFrom):
                used = {(node.module or "").partition(".")[0]} & UNSAFE_MODULES
            elif isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                used = {called} & (UNSAFE_CALLS | UNSAFE_ATTRIBUTES)
                used |= {k.arg for k in node.keywords if k.arg == "allow_pickle"}
                used |= {k.arg for k in node.keywords if k.arg == "shell"}
            else:
                continue
            found += [f"{name}:{node.lineno}: {one}" for one in used]
    assert not found


def test_code__takes_named_variables_of_the_environment_alone(
    modules: dict[str, ast.Module],
) -> None:
    """Nothing lists the environment, so nothing can write what it holds into a log or a file."""
    found = []
    for name, tree in modules.items():
        parents = {c: node for node in ast.walk(tree) for c in ast.iter_child_nodes(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "os.environ":
                parent = parents[node]
                is_lookup = isinstance(parent, ast.Subscript | ast.Compare) or (
                    isinstance(parent, ast.Attribute) and parent.attr in ("get", "setdefault")
                )
                if not is_lookup:
                    found.append(f"{name}:{node.lineno}")
    assert not found


def test_load__a_model_that_is_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    content = pickle.dumps(Bomb(mark))
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("weights.safetensors", "model.json", "model.pkl", "model.pt"):
        (folder / name).write_bytes(content)
    with pytest.raises(ModelFileError):
        scalebrain.BrainAgeModel.load(folder)
    assert not mark.exists()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("security")
    scalebrain.ingest(write_tree(folder / "bids", n=18), folder / "c.zarr")
    return folder / "c.zarr"


@pytest.mark.parametrize("version", ["2", "3"])
def test_open_store__a_codec_that_unpickles_is_not_run(
    store: Path, tmp_path: Path, version: str
) -> None:
    """Zarr 2 has a codec of pickles: an array that asks for it is left out or refused."""
    mark = tmp_path / "mark"
    copy = Path(shutil.copytree(store, tmp_path / "c.zarr"))
    array = copy / "age"
    if version == "2":
        shutil.rmtree(array)
        array.mkdir()
        described = {
            "zarr_format": 2,
            "shape": [1],
            "chunks": [1],
            "dtype": "|O",
            "compressor": None,
            "fill_value": None,
            "order": "C",
            "filters": [{"id": "pickle", "protocol": 5}],
        }
        (array / ".zarray").write_text(json.dumps(described))
        (array / ".zattrs").write_text(json.dumps({"_ARRAY_DIMENSIONS": ["subject"]}))
        (array / "0").write_bytes(pickle.dumps([Bomb(mark)]))
    else:
        described = json.loads((array / "zarr.json").read_text())
        described["codecs"] = [{"name": "numcodecs.pickle", "configuration": {}}]
        (array / "zarr.json").write_text(json.dumps(described))
        for chunk in [path for path in (array / "c").rglob("*") if path.is_file()]:
            chunk.write_bytes(pickle.dumps(Bomb(mark)))
    try:
        ds = scalebrain.open_store(copy)
        assert "age" not in ds.variables
    except (ScalebrainError, ValueError, KeyError, TypeError):
        pass
    assert not mark.exists()


def test_read_yaml__no_tag_makes_an_object(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    text = f"seed: !!python/object/apply:pathlib.Path.touch [!!python/name:pathlib.Path '{mark}']"
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(ScalebrainError):
        read_yaml(tmp_path / "study.yaml")
    with pytest.raises(yaml.YAMLError):
        yaml.safe_load(text)
    assert not mark.exists()


def test_open_client__everything_listens_on_loopback() -> None:
    with open_client(n_workers=1) as client:
        assert client is not None
        assert client.submit(sum, [1, 2]).result() == 3
        me = psutil.Process()
        listening = {
            connection.laddr.ip
            for process in (me, *me.children(recursive=True))
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        assert client.dashboard_link.startswith("http://127.0.0.1:")
    assert listening <= {"127.0.0.1", "::1"}
    assert "127.0.0.1" in listening


@pytest.fixture(scope="module")
def bucket(store: Path) -> Iterator[str]:
    """Url of the store in a bucket whose keys are in the environment alone."""
    require("moto", "obstore")
    with moto_server() as endpoint, pytest.MonkeyPatch.context() as patch:
        create_bucket(endpoint, "security")
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in s3_environment(endpoint).items():
            patch.setenv(name, value)
        url = "s3://security/c.zarr"
        with dask.config.set(scheduler="threads"):
            scalebrain.ingest(store.parent / "bids", url)
        yield url


def test_graph__of_a_store_in_a_bucket_holds_no_credentials(bucket: str) -> None:
    ds = scalebrain.open_store(bucket)
    lazy = xr.merge(
        [scalebrain.node_features(ds), scalebrain.lesion_load(ds)],
        join="exact",
        compat="equals",
        combine_attrs="drop_conflicts",
    )
    for one in (ds, lazy):
        graph = dask.base.collections_to_expr(one).__dask_graph__()
        content = cloudpickle.dumps(graph)
        assert b"security/c.zarr" in content
        shown = "".join([repr(one), one._repr_html_(), str(graph), str(one.attrs)]).encode()
        for secret in (ACCESS_KEY, SECRET_KEY):
            assert secret.encode() not in content
            assert secret.encode() not in shown
    assert np.isfinite(lazy["node_features"].isel(subject=0).compute()).any()


def test_export__of_a_store_in_a_bucket_holds_no_credentials(bucket: str, tmp_path: Path) -> None:
    scalebrain.export_bids(scalebrain.open_store(bucket), tmp_path / "out")
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes()
        assert SECRET_KEY.encode() not in content
        assert ACCESS_KEY.encode() not in content


def test_page__names_tests_that_exist(repository: Path) -> None:
    text = (repository / "docs" / "security.md").read_text()
    sources = [path.read_text() for path in (repository / "tests").rglob("*.py")]
    named = set(re.findall(r"`(test_\w+)`", text))
    assert len(named) > 25
    assert not {name for name in named if not any(f"def {name}(" in s for s in sources)}
    for path in re.findall(r"`(tests/[\w/]+\.py)`", text):
        assert (repository / path).is_file(), path
