import pytest

import scalebrain
from tests.phantom import write_tree


@pytest.fixture(scope="session")
def bids_tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("features") / "bids")


@pytest.fixture(scope="session")
def store(bids_tree):
    return scalebrain.ingest(bids_tree, bids_tree.parent / "cohort.zarr")


@pytest.fixture
def ds(store):
    return scalebrain.open_store(store)
