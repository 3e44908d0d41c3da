"""The network: graph convolutions that share one adjacency over a batch, and the readout.

Parameters are those of torch-geometric's layers. Its message passing would gather every
edge of every subject; as all subjects have one graph, a batch is one sparse product.
"""

import warnings
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch_geometric.nn import ChebConv, GCNConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import get_laplacian

from scalebrain.graph.build import Graph

__all__ = ["Layer", "RegionalNetwork", "SharedChebConv", "SharedGCNConv"]

Layer = Literal["cheb", "gcn", "spectral"]


class _Propagate(torch.autograd.Function):
    """Symmetric sparse matrix times dense; the gradient is the same product."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, x: Tensor) -> Tensor:
        """Multiply."""
        ctx.matrix = matrix
        return matrix @ x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        """Multiply the gradient."""
        return None, ctx.matrix @ gradient


def _propagate(matrix: Tensor, x: Tensor) -> Tensor:
    """One propagation of (row, batch, channel) along a (row, row) matrix."""
    with torch.autocast(x.device.type, enabled=False):
        flat: Tensor = _Propagate.apply(matrix, x.float().reshape(x.shape[0], -1))
    return flat.reshape(x.shape)


def _sparse(index: Tensor, weight: Tensor, n: int) -> Tensor:
    """CSR matrix from weighted edges."""
    matrix = torch.sparse_coo_tensor(index, weight, (n, n), check_invariants=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return matrix.coalesce().to_sparse_csr()


class SharedChebConv(ChebConv):
    """torch-geometric's ChebConv for one graph shared by the batch."""

    def operator(self, edge_index: Tensor, n: int) -> Tensor:
        """Scaled Laplacian with largest eigenvalue 2: ``L - I``."""
        index, weight = get_laplacian(edge_index, normalization="sym", num_nodes=n)
        loops = index[0] == index[1]
        return _sparse(index, torch.where(loops, weight - 1, weight), n)

    def forward(self, x: Tensor, operator: Tensor) -> Tensor:
        """Filter ``x`` (row, batch, channel)."""
        before = x
        out: Tensor = self.lins[0](x)
        if len(self.lins) > 1:
            now = _propagate(operator, x)
            out = out + self.lins[1](now)
            for lin in self.lins[2:]:
                before, now = now, 2 * _propagate(operator, now) - before
                out = out + lin(now)
        return out if self.bias is None else out + self.bias


class SharedGCNConv(GCNConv):
    """torch-geometric's GCNConv for one graph shared by the batch."""

    def operator(self, edge_index: Tensor, n: int) -> Tensor:
        """Adjacency with self-loops, normalized by degrees."""
        index, weight = gcn_norm(edge_index, num_nodes=n)
        return _sparse(index, weight, n)

    def forward(self, x: Tensor, operator: Tensor) -> Tensor:
        """Filter ``x`` (row, batch, channel)."""
        out: Tensor = _propagate(operator, self.lin(x))
        return out if self.bias is None else out + self.bias


class RegionalNetwork(nn.Module):
    """All regional ages of a batch in one pass; a region sees its own nodes alone.

    Parameters
    ----------
    graph
        Graph.
    n_features
        Features a node.
    layer
        ``cheb`` two Chebyshev convolutions of order 3, ``gcn`` two first-order
        convolutions, ``spectral`` one convolution on the normalized Laplacian with 30
        filters and max-pooling of neighbors two by two.
    channels
        Filters of a ``cheb`` or ``gcn`` layer.

    Notes
    -----
    Convolution weights are shared by the regions, the readout is each region's own: the
    mean over its nodes, plus a weight for every node and filter, plus a linear path from
    the features.
    """

    def __init__(self, graph: Graph, n_features: int, *, layer: Layer, channels: int = 16) -> None:
        super().__init__()
        self.layer = layer
        kind = SharedGCNConv if layer == "gcn" else SharedChebConv
        order = {} if layer == "gcn" else {"K": 2 if layer == "spectral" else 3}
        widths = [n_features, 30] if layer == "spectral" else [n_features, channels, channels]
        self.convolutions = nn.ModuleList(kind(a, b, **order) for a, b in pairwise(widths))
        rows, n = torch.from_numpy(graph.rows), len(graph.rows)
        edges = torch.from_numpy(graph.row_edges)
        operator = next(iter(self.convolutions)).operator(edges, n)  # type: ignore[operator]
        region = torch.from_numpy(graph.region_of_row)
        n_regions = len(graph.regions)
        pooled = torch.from_numpy(graph.pairs) if layer == "spectral" else torch.arange(n)
        out_region = torch.zeros(int(pooled.max()) + 1, dtype=torch.long)
        out_region[pooled] = region
        self._constants = {"operator": operator, "rows": rows, "pooled": pooled}
        self._constants["region"] = out_region
        self._constants["size"] = torch.bincount(out_region, minlength=n_regions).float()
        self._constants["in_region"] = region
        self._constants["in_size"] = torch.bincount(region, minlength=n_regions).float()
        self._constants["sum"] = nn.functional.one_hot(out_region, n_regions).T.float()
        self._constants["in_sum"] = nn.functional.one_hot(region, n_regions).T.float()
        width = widths[-1]
        self.mean_weight = nn.Parameter(torch.zeros(n_regions, width + n_features))
        self.node_weight = nn.Parameter(torch.zeros(len(out_region), width))
        self.skip_weight = nn.Parameter(torch.zeros(n, n_features))
        self.bias = nn.Parameter(torch.zeros(n_regions))

    def _apply(self, fn: Any, recurse: bool = True) -> "RegionalNetwork":
        """Move the constants of the graph with the parameters."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = self.bias.device
        self._constants = {k: v.to(device) for k, v in self._constants.items()}
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Standardized ages (batch, region) of features (batch, row, feature)."""
        c = self._constants
        h = x.transpose(0, 1)
        inputs = h
        for convolution in self.convolutions:
            h = nn.functional.leaky_relu(convolution(h, c["operator"]), 0.2)
        if self.layer == "spectral":
            index = c["pooled"][:, None, None].expand_as(h)
            shape = (len(c["region"]), *h.shape[1:])
            h = h.new_zeros(shape).scatter_reduce(0, index, h, "amax", include_self=False)
        h = h.float()

        def by_region(values: Tensor, member: Tensor) -> Tensor:
            return (member @ values.reshape(len(values), -1)).reshape(-1, *values.shape[1:])

        mean = by_region(h, c["sum"]) / c["size"][:, None, None]
        mean_in = by_region(inputs, c["in_sum"]) / c["in_size"][:, None, None]
        both = torch.cat([mean, mean_in], dim=-1)
        out = (both * self.mean_weight[:, None]).sum(-1)
        out = out + by_region((h * self.node_weight[:, None]).sum(-1), c["sum"])
        out = out + by_region((inputs * self.skip_weight[:, None]).sum(-1), c["in_sum"])
        return (out + self.bias[:, None]).T
