"""The network: graph convolutions that share one adjacency over a batch, and the readout.

Parameters are those of torch-geometric's layers. Its message passing would gather every
edge of every subject; as all subjects have one graph, a batch is one sparse product.
"""

import threading
import warnings
from itertools import pairwise
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from scalebrain.graph.build import Graph

with warnings.catch_warnings():
    # In a notebook tqdm, which it imports, asks for widgets that nothing here shows.
    warnings.filterwarnings("ignore", message="IProgress not found")
    from torch_geometric.nn import ChebConv, GCNConv
    from torch_geometric.nn.conv.gcn_conv import gcn_norm
    from torch_geometric.utils import get_laplacian

__all__ = ["Layer", "RegionalNetwork", "SharedChebConv", "SharedGCNConv", "seeded_network"]

Layer = Literal["cheb", "gcn", "spectral"]

_BUILDING = threading.Lock()


class _Propagate(torch.autograd.Function):
    """Symmetric sparse matrix times dense, ``scale A x - less``; the gradient is the same."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, x: Tensor, scale: float, less: Tensor | None) -> Tensor:
        """Multiply."""
        ctx.matrix, ctx.scale, ctx.has_less = matrix, scale, less is not None
        return _product(matrix, x, scale, less)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None, Tensor | None]:
        """Multiply the gradient."""
        back = _product(ctx.matrix, gradient.contiguous(), ctx.scale, None)
        return None, back, None, -gradient if ctx.has_less else None


def _product(matrix: Tensor, x: Tensor, scale: float, less: Tensor | None) -> Tensor:
    """``scale A x - less``, without a temporary."""
    if less is None:
        return matrix @ x if scale == 1 else scale * (matrix @ x)
    return torch.addmm(less, matrix, x, beta=-1, alpha=scale)


def _propagate(matrix: Tensor, x: Tensor, scale: float = 1.0, less: Tensor | None = None) -> Tensor:
    """One propagation of (row, batch, channel) along a (row, row) matrix."""
    with torch.autocast(x.device.type, enabled=False):
        flat, minus = x.float().reshape(len(x), -1), less
        if less is not None:
            minus = less.float().reshape(len(less), -1)
        out: Tensor = _Propagate.apply(matrix, flat, scale, minus)
    return out.reshape(x.shape)


def _sparse(index: Tensor, weight: Tensor, n: int) -> Tensor:
    """CSR matrix from weighted edges."""
    matrix = torch.sparse_coo_tensor(index, weight, (n, n), check_invariants=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return matrix.coalesce().to_sparse_csr()


class _Filter(torch.autograd.Function):
    """Chebyshev filter of (row, batch, channel): one node of the autograd graph instead of many."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, x: Tensor, bias: Tensor, *weights: Tensor) -> Tensor:
        """``sum_k T_k(A) x W_k' + bias`` (row batch, channel); ``T_k = 2 A T_(k-1) - T_(k-2)``."""
        terms = [x.reshape(-1, x.shape[-1])]
        wide = x.reshape(len(x), -1)
        out = torch.addmm(bias, terms[0], weights[0].T)
        before, now = wide, wide
        for k, weight in enumerate(weights[1:]):
            if k == 0:
                now = matrix @ wide
            else:
                before, now = now, torch.addmm(before, matrix, now, beta=-1, alpha=2)
            terms.append(now.view(-1, x.shape[-1]))
            out.addmm_(terms[-1], weight.T)
        if any(ctx.needs_input_grad):
            ctx.matrix, ctx.shape = matrix, x.shape
            ctx.save_for_backward(*terms, *weights)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of ``x``, the bias and the weights; the matrix is symmetric."""
        saved = ctx.saved_tensors
        n = len(saved) // 2
        terms, weights = saved[:n], saved[n:]
        g = gradient.contiguous()
        # the narrower factor first: the other way round the product is six times as slow
        narrow = terms[0].shape[1] < g.shape[1]
        of_weights = [(term.T @ g).T if narrow else g.T @ term for term in terms]
        of_x = None
        if ctx.needs_input_grad[1]:
            wide = [(g @ weight).view(ctx.shape[0], -1) for weight in weights]
            for k in range(n - 1, 1, -1):  # the recursion, backwards
                wide[k - 1].addmm_(ctx.matrix, wide[k], alpha=2)
                wide[k - 2].sub_(wide[k])
            of_x = wide[0].addmm_(ctx.matrix, wide[1]).view(ctx.shape)
        return None, of_x, g.sum(0), *of_weights


class SharedChebConv(ChebConv):
    """torch-geometric's ChebConv for one graph shared by the batch."""

    def operator(self, edge_index: Tensor, n: int) -> Tensor:
        """Scaled Laplacian with largest eigenvalue 2: ``L - I``."""
        index, weight = get_laplacian(edge_index, normalization="sym", num_nodes=n)
        loops = index[0] == index[1]
        return _sparse(index, torch.where(loops, weight - 1, weight), n)

    def forward(self, x: Tensor, operator: Tensor) -> Tensor:
        """Filter ``x`` (row, batch, channel)."""
        if not torch.is_autocast_enabled(x.device.type):
            weights = [lin.weight for lin in self.lins]
            flat = cast(Tensor, _Filter.apply(operator, x, self.bias, *weights))
            return flat.view(*x.shape[:2], -1)
        before, now = x, x
        out: Tensor = nn.functional.linear(x, self.lins[0].weight, self.bias)
        for k, lin in enumerate(self.lins[1:]):
            if k == 0:
                now = _propagate(operator, x)
            else:
                before, now = now, _propagate(operator, now, 2.0, before)
            out = out + lin(now)
        return out


class SharedGCNConv(GCNConv):
    """torch-geometric's GCNConv for one graph shared by the batch."""

    def operator(self, edge_index: Tensor, n: int) -> Tensor:
        """Adjacency with self-loops, normalized by degrees."""
        index, weight = gcn_norm(edge_index, num_nodes=n)
        return _sparse(index, weight, n)

    def forward(self, x: Tensor, operator: Tensor) -> Tensor:
        """Filter ``x`` (row, batch, channel)."""
        if self.in_channels < self.out_channels:  # along the edges goes what is narrower
            return nn.functional.linear(_propagate(operator, x), self.lin.weight, self.bias)
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
        n = len(graph.rows)
        edges = torch.from_numpy(graph.row_edges)
        operator = next(iter(self.convolutions)).operator(edges, n)  # type: ignore[operator]
        region = torch.from_numpy(graph.region_of_row)
        n_regions = len(graph.regions)
        pooled = torch.from_numpy(graph.pairs) if layer == "spectral" else torch.arange(n)
        out_region = torch.zeros(int(pooled.max()) + 1, dtype=torch.long)
        out_region[pooled] = region
        self._constants: dict[str, Tensor] = {"operator": operator, "pooled": pooled}
        #: Rows of every region, which lie together, after and before the pooling.
        self.sizes: list[int] = torch.bincount(out_region, minlength=n_regions).tolist()
        self.in_sizes: list[int] = torch.bincount(region, minlength=n_regions).tolist()
        width = widths[-1]
        self.mean_weight = nn.Parameter(torch.zeros(n_regions, width + n_features))
        self.node_weight = nn.Parameter(torch.zeros(len(out_region), width))
        self.skip_weight = nn.Parameter(torch.zeros(n, n_features))
        self.bias = nn.Parameter(torch.zeros(n_regions))

    @property
    def operator(self) -> Tensor:
        """Sparse (row, row) matrix that the convolutions share."""
        return self._constants["operator"]

    def _apply(self, fn: Any, recurse: bool = True) -> "RegionalNetwork":
        """Move the constants of the graph with the parameters."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = self.bias.device
        self._constants = {k: v.to(device) for k, v in self._constants.items()}
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Standardized ages (batch, region) of features (batch, row, feature)."""
        c = self._constants
        h = x.transpose(0, 1).contiguous()
        inputs = h
        for convolution in self.convolutions:
            h = convolution(h, c["operator"])
            h = nn.functional.leaky_relu(h, 0.2, inplace=not torch.is_grad_enabled())
        if self.layer == "spectral":
            index = c["pooled"][:, None, None].expand_as(h)
            shape = (sum(self.sizes), *h.shape[1:])
            h = h.new_zeros(shape).scatter_reduce(0, index, h, "amax", include_self=False)
        width = self.node_weight.shape[1]
        # a mean over a region is a sum with weights of its own, so one sum does for all
        mean, mean_in = self.mean_weight[:, :width], self.mean_weight[:, width:]
        weight = self.node_weight + _spread(mean, self.sizes)
        weight_in = self.skip_weight + _spread(mean_in, self.in_sizes)
        out = (h.float() * weight[:, None]).sum(-1)
        out_in = (inputs * weight_in[:, None]).sum(-1)
        if self.sizes == self.in_sizes:
            total = _by_region(out + out_in, self.sizes)
        else:
            total = _by_region(out, self.sizes) + _by_region(out_in, self.in_sizes)
        return (total + self.bias[:, None]).T


def seeded_network(
    graph: Graph, n_features: int, *, layer: Layer, channels: int, seed: int = 0
) -> RegionalNetwork:
    """Make a network with first weights from a seed, one thread at a time.

    Layers draw from the generator of the whole process; it is left as it was found.

    Parameters
    ----------
    graph, n_features, layer, channels
        As for :class:`RegionalNetwork`.
    seed
        Seed.

    Returns
    -------
    RegionalNetwork
        Network, on the processor.
    """
    with _BUILDING, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not those of the GPUs
        return RegionalNetwork(graph, n_features, layer=layer, channels=channels)


def _spread(values: Tensor, sizes: list[int]) -> Tensor:
    """Values (region, channel) over the rows of each region, divided by their number."""
    return torch.cat([(one / n).expand(n, -1) for one, n in zip(values, sizes, strict=True)])


def _by_region(values: Tensor, sizes: list[int]) -> Tensor:
    """Sum values (row, batch) over the rows of each region."""
    return torch.stack([part.sum(0) for part in values.split(sizes)])
