"""Sparse matrices: `gatv2.pyg.GATv2Conv` reads what PyTorch Geometric reads, and refuses the rest."""

from collections.abc import Callable
from itertools import product
from typing import Any, cast

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor

import gatv2.pyg
from gatv2 import Graph, gatv2_attention
from gatv2.graph.kept import _kept
from gatv2.testing import assert_agrees

N_NODES = 5
# targets and sources; a loop, an entry of value 0, and an edge that is there twice
ROWS = torch.tensor([[0, 0, 1, 2, 2, 4], [1, 3, 1, 0, 0, 2]])


def csr(rows: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    """Compressed rows as they are: `to_sparse_csr` would merge parallel entries."""
    pointers = torch.searchsorted(rows[0].contiguous(), torch.arange(size[0] + 1))
    return torch.sparse_csr_tensor(
        pointers, rows[1], values, (*size, *values.shape[1:]), check_invariants=False
    )


def coo(rows: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    return torch.sparse_coo_tensor(rows, values, (*size, *values.shape[1:]), is_coalesced=True)


def uncoalesced(rows: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    return torch.sparse_coo_tensor(rows, values, (*size, *values.shape[1:]))


def csc(rows: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    by_column = rows[1].argsort(stable=True)
    transposed = csr(rows.flip(0)[:, by_column], values[by_column], size[::-1])
    return torch.sparse_csc_tensor(
        transposed.crow_indices(),
        transposed.col_indices(),
        transposed.values(),
        (*size, *values.shape[1:]),
        check_invariants=False,
    )


def layers(in_channels: Any = 3, **options: Any) -> tuple[Any, Any]:
    """PyTorch Geometric's layer, and ours with its parameters."""
    theirs = pyg.GATv2Conv(in_channels, 4, heads=2, **options).double()
    ours = gatv2.pyg.GATv2Conv(in_channels, 4, heads=2, **options).double()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def outcome(conv: Any, *inputs: Any) -> Any:
    """The result, or None where the layer refuses its inputs."""
    try:
        return conv(*inputs)
    except (AssertionError, AttributeError, NotImplementedError, RuntimeError, ValueError):
        return None


MATRICES = {"csr": csr, "coo": coo, "uncoalesced": uncoalesced, "csc": csc}


@pytest.mark.parametrize("form", MATRICES)
def test_every_matrix_is_read_or_refused_as_pyg_does(form: str) -> None:
    """Values of one number and of a vector, with edge features and loops, and without."""
    make, size = MATRICES[form], (N_NODES, N_NODES)
    x = torch.randn(N_NODES, 3).double()
    n_read = 0
    values = [torch.tensor([1.0, 2.0, 1.0, 0.0, 3.0, 0.5]), torch.randn(6, 2), torch.randn(6, 3)]
    fills = ("mean", "add", "max", 0.5, torch.ones(2).double())
    options = product(values, (None, 1, 2), (False, True), fills, (None, torch.randn(6, 2)))
    for value, edge_dim, loops, fill_value, edge_attr in options:
        if not loops and not isinstance(fill_value, float):
            continue  # the values of loops that there are not
        theirs, ours = layers(edge_dim=edge_dim, add_self_loops=loops, fill_value=fill_value)
        given = None if edge_attr is None else edge_attr.double()
        # one matrix each, as PyTorch Geometric marks those that it is given as coalesced
        matrices = [make(ROWS, value.double(), size) for _ in range(2)]
        expected, actual = (
            outcome(conv, x, matrix, given)
            for conv, matrix in zip((theirs, ours), matrices, strict=True)
        )
        assert (actual is None) == (expected is None), (edge_dim, loops, fill_value, value.shape)
        if expected is not None:
            assert_agrees(actual, expected)
            n_read += 1
    assert n_read > 0 or form == "csc"  # which their sparse softmax does not read


@pytest.mark.parametrize("form", ["csr", "coo"])
@pytest.mark.parametrize("loops", [False, True])
def test_two_sides(form: str, loops: bool) -> None:
    """The matrix of a sampled block, which holds edge features, or numbers."""
    rows, x = torch.tensor([[0, 0, 1, 1], [0, 3, 2, 2]]), torch.randn(4, 3).double()
    for values, edge_dim in ((torch.randn(4, 2).double(), 2), (torch.ones(4).double(), None)):
        theirs, ours = layers((3, 3), edge_dim=edge_dim, add_self_loops=loops)
        matrix = MATRICES[form](rows, values, (2, 4))
        expected, actual = (outcome(conv, (x, x[:2]), matrix) for conv in (theirs, ours))
        assert (actual is None) == (expected is None)
        if expected is not None:
            assert_agrees(actual, expected)


def test_what_is_refused() -> None:
    x = torch.randn(N_NODES, 3).double()
    matrix = csr(ROWS, torch.ones(6).double(), (N_NODES, N_NODES))
    _, ours = layers(flow="target_to_source", add_self_loops=False)
    with pytest.raises(ValueError, match="is invalid for message propagation"):
        ours(x, matrix)
    _, ours = layers(add_self_loops=False)
    with pytest.raises(ValueError, match=r"must have shape \(targets, sources\)=\(4, 4\)"):
        ours(x[:4], matrix)


@pytest.mark.parametrize("make", [csr, coo], ids=["csr", "coo"])
def test_its_graph_is_made_once(make: Any) -> None:
    _, ours = layers()
    x = torch.randn(N_NODES, 3, dtype=torch.float64)
    rows, size = ROWS[:, [0, 1, 2, 3, 5]], (N_NODES, N_NODES)
    matrix, other = (make(part, torch.ones(part.shape[1]), size) for part in (rows, rows[:, 1:]))
    graphs = []
    for each in (matrix, other, matrix):
        ours(x, each)
        graphs += [cast(Graph, made) for _, made in _kept[id(each)].readings.values()]
    first, of_other, again = graphs
    assert first is again
    assert (first.n_edges, of_other.n_edges) == (N_NODES * 2 - 1, N_NODES * 2 - 2)


@pytest.mark.parametrize("is_ours_first", [False, True])
def test_each_convention_has_a_graph_of_its_own(is_ours_first: bool) -> None:
    """An entry of value 0 is an edge in PyTorch Geometric, and none in a mask; loops are an option."""
    x = torch.randn(N_NODES, 3, dtype=torch.float64)
    rows, size = ROWS[:, [0, 1, 2, 3, 5]], (N_NODES, N_NODES)
    matrix = coo(rows, torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0]), size)
    _, with_loops = layers()
    _, without = layers(add_self_loops=False)
    calls: list[Callable[[Tensor], Any]] = [
        lambda matrix: without(x, matrix),
        lambda matrix: with_loops(x, matrix),
        lambda matrix: gatv2_attention(x[:, None], x[:, None], x[:1], matrix),
    ]
    for call in calls[::-1] if is_ours_first else calls:
        assert_agrees(call(matrix), call(matrix.clone()))
    graphs = [cast(Graph, made) for _, made in _kept[id(matrix)].readings.values()]
    assert len({graph.n_edges for graph in graphs}) == 3
