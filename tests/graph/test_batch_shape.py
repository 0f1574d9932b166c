"""A batch of masks stays a batch as a `Graph`, whatever its dimensions, and of one or none too."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gatv2 import GATv2, Graph, GraphAttentionV2Layer, gatv2_attention
from gatv2.dispatch import Kernel
from gatv2.locality import reorder
from gatv2.testing import assert_agrees

SHAPES = [(), (1,), (2,), (0,), (1, 1), (2, 3), (0, 3)]
N, DTYPE = 5, torch.float64


def random_mask(shape: tuple[int, ...], n_heads: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    return torch.rand(*shape, N, N, n_heads, generator=generator) < 0.5


def features_of_edges(x: Tensor, mask: Tensor) -> Tensor:
    """Features that are laid out as a mask, in the order of the mask's list of edges."""
    return x[mask.any(-1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_graph_of_masks_attends_as_they_do(shape: tuple[int, ...], kernel: Kernel) -> None:
    generator = torch.Generator().manual_seed(0)
    mask = random_mask(shape)
    graph = Graph.from_mask(mask)
    assert graph.batch_dims == shape
    query, key = (torch.randn(*shape, N, 2, 3, generator=generator, dtype=DTYPE) for _ in range(2))
    attn, projection = (
        torch.randn(*size, generator=generator, dtype=DTYPE) for size in ((2, 3), (2, 3, 4))
    )
    x = torch.randn(*shape, N, N, 4, generator=generator, dtype=DTYPE)
    results = []
    for form, edge_features in ((mask, x), (graph, features_of_edges(x, mask))):
        out, alpha = gatv2_attention(
            *(query, key, attn, form),
            edge_features=edge_features,
            edge_projection=projection,
            backend=kernel.backend,
            kernel=kernel.name,
            dropout=0.3,
            seed=4,
            return_attention=True,
        )
        assert alpha.ndim == (2 if kernel.backend == "sparse" else len(shape) + 3)
        results.append((out, alpha))
    for actual, expected in zip(results[1], results[0], strict=True):
        assert actual.shape == expected.shape
        assert_agrees(actual, expected)


@pytest.mark.parametrize(("shape", "loops"), list(product(SHAPES, (False, True))))
def test_features_without_a_batch_get_that_of_the_graph(
    shape: tuple[int, ...], loops: bool
) -> None:
    layer = GraphAttentionV2Layer(3, 4, 2, add_self_loops=loops, dtype=DTYPE).eval()
    mask, h = random_mask(shape), torch.randn(N, 3, dtype=DTYPE)
    out = layer(h, Graph.from_mask(mask))
    assert out.shape == (*shape, N, 4)
    assert_agrees(out, layer(h, mask))


@pytest.mark.parametrize("shape", SHAPES)
def test_so_they_do_in_a_stack(shape: tuple[int, ...]) -> None:
    model = GATv2(3, 4, 2, n_heads=2, out_heads=2, dtype=DTYPE).eval()
    mask, h = random_mask(shape), torch.randn(N, 3, dtype=DTYPE)
    out = model(h, Graph.from_mask(mask))
    assert out.shape == (*shape, N, 2)
    assert_agrees(out, model(h, mask))


def test_its_dimensions_are_those_of_the_features() -> None:
    layer = GraphAttentionV2Layer(3, 4, 2, dtype=DTYPE).eval()
    for shape, other in (((2, 3), (3, 2)), ((2, 3), (5,)), ((1,), (4,)), ((0,), (2,))):
        graph = Graph.from_mask(random_mask(shape))
        with pytest.raises(
            ValueError, match=r"the graph is a batch of .* graphs, but the features"
        ):
            layer(torch.randn(*other, N, 3, dtype=DTYPE), graph)
    by_hand = replace(Graph.from_mask(random_mask((6,))), batch_shape=None)
    h = torch.randn(2, 3, N, 3, dtype=DTYPE)
    flat = layer(h.flatten(0, 1), Graph.from_mask(random_mask((2, 3)).flatten(0, 1)))
    assert_agrees(layer(h, Graph.from_mask(random_mask((2, 3)))), flat.unflatten(0, (2, 3)))
    assert layer(h, by_hand).shape == (2, 3, N, 4)
    for wrong in ((5,), [6], (2.0, 3), (-2, -3), (-1, 1, -6)):
        with pytest.raises(ValueError, match="`batch_shape` must be"):
            replace(by_hand, batch_shape=wrong).check()  # type: ignore[arg-type]


def test_a_file_has_no_negative_sizes(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    replace(Graph.from_mask(random_mask((6,))), batch_shape=(-2, -3)).save(tmp_path / "graph")
    with pytest.raises(ValueError, match="`batch_shape` must be of sizes that are not negative"):
        Graph.load(tmp_path / "graph")


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_kept(shape: tuple[int, ...], tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    graph = Graph.from_mask(random_mask(shape))
    graph.save(tmp_path / "graph")
    kept = [
        Graph.load(tmp_path / "graph"),
        graph.to("cpu"),
        graph.coalesce(),
        graph.add_self_loops(),
    ]
    if graph.n_blocks == 1:
        kept.append(reorder(graph).graph)
    for other in kept:
        assert other.batch_dims == shape
    if 0 not in shape:
        assert torch.equal(graph.to_mask(), random_mask(shape))
