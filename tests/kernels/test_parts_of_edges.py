"""Many edges are worked off in parts, over queries and over keys: same gradients, less memory."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gatv2 import Graph, gatv2_attention

pytest.importorskip("numba")

from gatv2.numba import gradients, scratch, threads
from gatv2.numba import parts as numba_parts

N_QUERIES, N_KEYS, N_EDGES = 160, 90, 6000


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many parts each backward pass had; as large graphs have them."""
    found: list[int] = []
    cut = gradients.Gradients._parts

    def noted(*arguments: Any) -> Any:
        result = cut(*arguments)
        found.append(len(result))
        return result

    monkeypatch.setattr(gradients.Gradients, "_parts", noted)
    monkeypatch.setattr(threads, "_CHUNK_WORK", 1 << 11)
    monkeypatch.setattr(numba_parts, "PART_BYTES", 1 << 14)
    monkeypatch.setattr(numba_parts, "_LEAST_CHUNKS", 3)
    return found


def edges(dtype: torch.dtype = torch.int64) -> Tensor:
    """Queries and keys of very different degrees, some of none."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.rand(N_EDGES, generator=generator) for _ in range(2))
    query, key = (query.square() * 0.9 * N_QUERIES).long(), (key.square() * 0.9 * N_KEYS).long()
    return torch.stack((query, key)).to(dtype)


def inputs(shape: tuple[int, int], dtype: torch.dtype, edge_dim: int | None) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)

    def randn(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=dtype).requires_grad_()

    features = {
        "query": randn(N_QUERIES, *shape),
        "key": randn(N_KEYS, *shape),
        "attn": randn(*shape),
    }
    if edge_dim is not None:
        features["edge_features"] = randn(N_EDGES, edge_dim)
        features["edge_projection"] = randn(*shape, edge_dim)
    return features


def gradients_of(graph: Any, given: dict[str, Any], **options: Any) -> tuple[Tensor, ...]:
    out = gatv2_attention(graph=graph, **given, **options)
    generator = torch.Generator().manual_seed(2)
    cotangent = torch.randn(out.shape, generator=generator, dtype=out.dtype)
    return torch.autograd.grad(out, list(given.values()), cotangent)


@pytest.mark.parametrize("shape", [(8, 8), (3, 5), (1, 130)])
@pytest.mark.parametrize("edge_dim", [None, 3])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_parts_give_the_gradients_of_the_whole(
    shape: tuple[int, int],
    edge_dim: int | None,
    dropout: float,
    parts: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = inputs(shape, torch.float64, edge_dim)
    graph = Graph.from_edge_index(edges(), (N_QUERIES, N_KEYS))
    found = gradients_of(graph, given, dropout=dropout, seed=3)
    monkeypatch.setattr(numba_parts, "PART_BYTES", 1 << 60)
    expected = gradients_of(graph, given, dropout=dropout, seed=3)
    assert parts[0] > 4
    assert parts[1] == 1
    for actual, e in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, e, rtol=1e-12, atol=1e-12)
        assert e.abs().max() > 1


def test_other_dtypes_and_masks(parts: list[int]) -> None:
    """Of features, of edges, and with heads that do not use all edges."""
    whole = Graph.from_edge_index(edges(), (N_QUERIES, N_KEYS))
    head_mask = torch.rand(N_EDGES, 4, generator=torch.Generator().manual_seed(4)) > 0.3
    masked = replace(whole, head_mask=head_mask)
    masked.check()
    for graph in (whole, masked, edges(torch.int32)):
        given = inputs((4, 16), torch.float32, None)
        found = gradients_of(graph, given)
        expected = gradients_of(graph, given, kernel="torch")
        for actual, e in zip(found, expected, strict=True):
            torch.testing.assert_close(actual, e, rtol=1e-4, atol=1e-4)
    assert min(parts) > 4


def test_same_bits_on_any_number_of_threads(parts: list[int]) -> None:
    given, n_threads = inputs((8, 8), torch.float32, 3), torch.get_num_threads()
    graph = Graph.from_edge_index(edges(), (N_QUERIES, N_KEYS))
    results = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(gradients_of(graph, given))
    finally:
        torch.set_num_threads(n_threads)
    assert min(parts) > 4
    for other in results[1:]:
        for actual, expected in zip(other, results[0], strict=True):
            assert torch.equal(actual, expected)


def test_scratch_is_that_of_a_part(parts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    enter = scratch.Scratch.__enter__

    def noted(self: scratch.Scratch) -> Any:
        memory = enter(self)
        taken.append(memory.size)
        return memory

    monkeypatch.setattr(scratch.Scratch, "__enter__", noted)
    given = inputs((8, 8), torch.float32, None)
    graph = Graph.from_edge_index(edges(), (N_QUERIES, N_KEYS))
    gradients_of(graph, given)
    monkeypatch.setattr(numba_parts, "PART_BYTES", 1 << 60)
    gradients_of(graph, given)
    of_parts, of_whole = taken
    assert of_whole == N_EDGES * (2 * 8 * 4 + 8)
    assert of_parts < 2 * of_whole / parts[0]


def test_few_edges_are_left_whole(parts: list[int]) -> None:
    """Of a key: then to add to its gradient once a part takes longer than is saved."""
    graph = Graph.from_edge_index(edges() % 3, (N_QUERIES, 4000))
    given = inputs((8, 8), torch.float32, None)
    given["key"] = torch.randn(4000, 8, 8, requires_grad=True)
    gradients_of(graph, given)
    graph = Graph.from_edge_index(edges(), (N_QUERIES, N_KEYS))
    query, key, attn = inputs((8, 8), torch.float32, None).values()
    out = gatv2_attention(query.expand(2, *query.shape), key.expand(2, *key.shape), attn, graph)
    out.backward(torch.randn_like(out))
    assert parts == [1, 1]


def test_an_order_of_other_edges_is_refused(parts: list[int]) -> None:
    """Before anything is written where it says; and `check` has it made anew."""
    graph, other = (
        Graph.from_edge_index(x, (N_QUERIES, N_KEYS))
        for x in (edges(), edges().flip(0) % torch.tensor([[N_QUERIES], [N_KEYS]]))
    )
    given = inputs((8, 8), torch.float64, None)
    gradients_of(graph, given)
    for name in ("query_ptr", "key_index", "query_index", "edge_id"):
        getattr(graph, name).numpy()[:] = getattr(other, name).numpy()  # nobody counts that
    with pytest.raises(ValueError, match="by_key"):
        gradients_of(graph, given)
    graph.check()
    for actual, e in zip(gradients_of(graph, given), gradients_of(other, given), strict=True):
        assert torch.equal(actual, e)
    graph.by_key.edge.copy_(graph.by_key.edge.flip(0))
    with pytest.raises(ValueError, match="by_key"):
        gradients_of(graph, given)
    assert min(parts) > 1
