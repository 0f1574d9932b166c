"""Dropout's mask is a function of seed and position: the same in every backend, and Philox's own."""

from typing import Any

import pytest
import torch
from attention import by
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gatv2 import Graph, GraphAttentionV2Layer, gatv2_attention
from gatv2.dispatch import Kernel
from gatv2.random import keep_mask, philox_4x32_10
from gatv2.testing import edge_indices

# kat_vectors of the authors' library, Random123: counter, key, answer
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


def words(text: str) -> Any:
    return tuple(torch.tensor(int(word, 16)) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, answer: str) -> None:
    result = philox_4x32_10(words(counter), words(key))
    assert " ".join(f"{int(word):08x}" for word in result) == answer


def test_compiled_code_draws_the_same() -> None:
    """Sizes above the width of vectors, and a scalar word, which compilers treat in different ways."""
    zero, seed = torch.tensor(0), torch.tensor(1)
    query, key = torch.arange(50).unsqueeze(-1), torch.arange(50)

    def draw(query: Tensor, key: Tensor, seed: Tensor) -> Tensor:
        return keep_mask(seed, 0.5, query, key, 5, multiplicity=zero, batch=zero)

    compiled = torch.compile(draw, fullgraph=True)
    assert torch.equal(compiled(query, key, seed), draw(query, key, seed))


def kept(kernel: Kernel, graph: Graph, n_heads: int, dropout: float, seed: int) -> Tensor:
    """Which edges a kernel keeps, read off its gradients: `[n_edges, n_heads]`.

    Every edge has one query of its own score; d out_i / d value_j is not zero where (i, j) is kept.
    """
    n_queries, n_keys = graph.n_queries, graph.n_keys
    identity = torch.eye(n_keys, dtype=torch.float64)
    value = identity[:, None, :].expand(n_keys, n_heads, n_keys)
    query = torch.zeros(n_queries, n_heads, n_keys, dtype=torch.float64)
    attn = torch.zeros(n_heads, n_keys, dtype=torch.float64)
    out: Tensor = gatv2_attention(
        query,
        value,
        attn,
        graph,
        dropout=dropout,
        seed=seed,
        **by(kernel),
    )
    query_index, key_index = graph.edge_index
    return out.transpose(1, 2)[query_index, key_index] > 0


@given(
    data=st.data(),
    n_heads=st.sampled_from((1, 3, 4, 5, 8)),
    seed=st.integers(-(2**63), 2**63 - 1),
    dropout=st.sampled_from((0.1, 0.5, 0.9)),
)
def test_every_kernel_drops_what_philox_says(
    kernel: Kernel, data: st.DataObject, n_heads: int, seed: int, dropout: float
) -> None:
    edge_index = torch.unique(data.draw(edge_indices(6, 9)), dim=1).long()
    graph = Graph.from_edge_index(edge_index, (6, 9))
    zero = torch.tensor(0)
    expected = keep_mask(
        torch.tensor(seed),
        dropout,
        edge_index[0],
        edge_index[1],
        n_heads,
        multiplicity=zero,
        batch=zero,
    )
    assert torch.equal(kept(kernel, graph, n_heads, dropout, seed), expected)


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.6, 0.9])
def test_the_share_of_dropped_edges(dropout: float) -> None:
    """Within five standard deviations, over all, and for each head and each query."""
    n_queries, n_keys, n_heads = 200, 250, 8
    zero = torch.tensor(0)
    keep = keep_mask(
        torch.tensor(123),
        dropout,
        torch.arange(n_queries)[:, None],
        torch.arange(n_keys),
        n_heads,
        multiplicity=zero,
        batch=zero,
    ).double()
    for dims in ((0, 1, 2), (0, 1), (1, 2), (0, 2)):
        share = 1 - keep.mean(dims)
        deviation = (dropout * (1 - dropout) / (keep.numel() / share.numel())) ** 0.5
        assert ((share - dropout).abs() < 5 * deviation).all()


@pytest.mark.many_edges
def test_what_is_kept_is_scaled(kernel: Kernel) -> None:
    """The mean over many queries that are the same is the output without dropout."""
    n_same = 500
    mask = torch.rand(5, 6, 1) < 0.7
    query, key, attn = torch.randn(5, 2, 3), torch.randn(6, 2, 3), torch.randn(2, 3)
    options: dict[str, Any] = by(kernel)
    expected = gatv2_attention(query, key, attn, mask, **options)
    queries, masks = query.repeat(n_same, 1, 1), mask.repeat(n_same, 1, 1)
    out = gatv2_attention(queries, key, attn, masks, dropout=0.4, seed=3, **options)
    outs = out.unflatten(0, (n_same, 5))
    standard_error = outs.std(0) / n_same**0.5
    assert ((outs.mean(0) - expected).abs() <= 5.5 * standard_error + 1e-6).all()


def test_elements_of_a_batch_drop_different_edges(kernel: Kernel) -> None:
    mask = torch.ones(20, 20, 1, dtype=torch.bool)
    h = torch.randn(20, 2, 3).expand(2, -1, -1, -1)
    options: dict[str, Any] = {
        **by(kernel),
        "dropout": 0.5,
        "seed": 1,
    }
    out = gatv2_attention(h, h, torch.randn(2, 3), mask, **options)
    assert not torch.equal(out[0], out[1])


@pytest.mark.parametrize("backend", ["dense", "sparse"])
def test_seeds_come_from_pytorch_and_only_in_training(backend: Any) -> None:
    layer = GraphAttentionV2Layer(3, 4, 2, dropout=0.5, backend=backend)
    h, mask = torch.randn(9, 3), torch.ones(9, 9, 1, dtype=torch.bool)
    torch.manual_seed(3)
    first, second = layer(h, mask), layer(h, mask)
    torch.manual_seed(3)
    assert torch.equal(layer(h, mask), first)
    assert not torch.equal(first, second)
    state = torch.get_rng_state()
    layer.eval()
    assert torch.equal(layer(h, mask), layer(h, mask))
    assert torch.equal(torch.get_rng_state(), state)
