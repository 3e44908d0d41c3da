"""Ingest and features on a real dask-gateway."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import scalebrain
from scalebrain.cluster.client import open_client
from scalebrain.errors import ConfigError
from tests.conftest import CONFIG, need
from tests.distributed.gateway import running_gateway
from tests.distributed.outputs import differing

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    need("dask_gateway", "dask_gateway_server")
    with running_gateway(tmp_path_factory.mktemp("gateway")) as url:
        yield url


@pytest.mark.slow
def test_run_study__on_a_gateway__equals_the_local_one(
    gateway: str, tree: Path, whole_study: Path, tmp_path: Path
):
    out = tmp_path / "out"
    with open_client(f"gateway:{gateway}", n_workers=2) as client:
        client.wait_for_workers(2, timeout=60)
        assert {address[:6] for address in client.nthreads()} == {"tls://"}
        scalebrain.run_study(tree, out, CONFIG, level="participant")
    assert differing(out, whole_study, only_ours=True) == []


def test_open_client__on_a_gateway__ends_its_cluster(gateway: str):
    from dask_gateway import Gateway

    with open_client(f"gateway:{gateway}") as client:  # as many workers as there is work
        assert client.submit(sum, [1, 2]).result() == 3
    asked = Gateway(gateway)
    try:
        assert asked.list_clusters() == []
    finally:
        asked.close()
        asked._asynchronous = True  # its finalizer would close it again, see cluster/gateway.py


def test_open_client__no_gateway__is_one_clear_error():
    need("dask_gateway")
    told = r"No dask-gateway answers at http://127.0.0.1:9"
    with pytest.raises(ConfigError, match=told), open_client("gateway:http://127.0.0.1:9"):
        pass
