import pytest

from tests.phantom import write_tree


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path / "bids")
