"""Layer-wise inference: one layer over all nodes, in blocks of queries, and then the next layer."""

from collections.abc import Callable

import torch
from torch import Tensor

from gatv2.base import GraphAttention, NodeFeatures, Projected
from gatv2.graph import Graph
from gatv2.graph.adjacency import Sizes, all_pairs, as_adjacency, common_batch_shape
from gatv2.graph.edge_features import as_backend_reads, broadcast_batch, is_mask
from gatv2.graph.edge_inputs import given_of_edges
from gatv2.graph.edges import changed
from gatv2.graph.self_loops import add_self_loops
from gatv2.options import check_sizes
from gatv2.sparse_features import project, take_rows
from gatv2.torch_internals import refuse_mapped

BLOCK_SIZE = 65_536


@torch.no_grad()
def apply_in_blocks(
    layer: GraphAttention,
    h: NodeFeatures,
    adj_mat: object,
    *,
    edge_features: Tensor | None = None,
    score_bias: Tensor | None = None,
    activation: Callable[[Tensor], Tensor] | None = None,
    block_size: int = BLOCK_SIZE,
) -> Tensor:
    """What a layer gives in evaluation, without gradients, a block of queries at a time.

    All keys are projected once. Beside its arguments and its result the function holds these keys,
    `n_keys * n_heads * n_hidden` numbers, and what belongs to one block: queries, the layer's output and
    that of the activation. (A fused kernel that has to pad its heads to whole SIMD vectors holds the
    padded keys, too.) So a stack of layers, one call after another, never holds more than one layer's
    activations.

    Args:
        layer: a layer in evaluation mode.
        h: features of the nodes, as :meth:`gatv2.GraphAttentionV2Layer.forward` takes them; they may be
            memory-mapped.
        adj_mat: the graph, in any form that the layer reads, but for batches of masks.
        edge_features: features of each edge, for a layer with `edge_dim`, laid out as `adj_mat`.
        score_bias: what is added to the scores, laid out as `adj_mat`.
        activation: what comes between layers, applied to each block of rows.
        block_size: number of queries in a block.

    Returns:
        `[*batch, n_queries, out_features]`.

    Raises:
        TypeError: `layer` is none of ours.
        RuntimeError: the layer is in training mode.
        ValueError: `block_size` is not positive, the graph is a batch of masks, or the activation does
            not leave each row its own.

    Example:
        Two layers, each over the whole graph before the next begins:

        >>> from gatv2 import GraphAttentionV2Layer
        >>> one = GraphAttentionV2Layer(16, 8, n_heads=2).eval()
        >>> two = GraphAttentionV2Layer(8, 3, n_heads=1).eval()
        >>> x, edge_index = torch.randn(20, 16), torch.randint(20, (2, 60))
        >>> h = apply_in_blocks(one, x, edge_index, activation=torch.relu, block_size=7)
        >>> out = apply_in_blocks(two, h, edge_index, block_size=7)
        >>> torch.allclose(out, two(one(x, edge_index).relu(), edge_index), atol=1e-6)
        True

    Source: the layer-wise inference of PyTorch Geometric's `BasicGNN.inference`, without its loader.
    """
    if not isinstance(layer, GraphAttention):
        raise TypeError(
            "`layer` must be a GraphAttentionV2Layer or a GraphAttentionLayer; got "
            f"{type(layer).__name__}: convert a layer of another library with `gatv2.convert`, call "
            "`inference` of a model, and apply what needs no graph to all rows"
        )
    if layer.training:
        raise RuntimeError("inference has no dropout: call `.eval()` on the model first")
    check_sizes(block_size=block_size)
    h_query, h_key = layer.as_pair(h)
    layer.check_edge_features(edge_features)
    layer.check_score_bias(score_bias, h_query)
    if adj_mat is None:
        adj_mat = all_pairs((h_query.shape[-2], h_key.shape[-2]), score_bias, layer.flow)
    given = given_of_edges(edge_features, score_bias)
    graph, given = _prepare(layer, h_query, h_key, adj_mat, given)
    heads = (layer.n_heads, layer.n_hidden)
    key = project(layer.linear_r, h_key).unflatten(-1, heads)
    is_same = layer.share_weights and h_key is h_query
    result = None
    for start in range(0, max(graph.n_queries, 1), block_size):
        rows = slice(start, min(start + block_size, graph.n_queries))
        own = take_rows(h_query, rows)
        query = (
            key[..., rows, :, :] if is_same else project(layer.linear_l, own).unflatten(-1, heads)
        )
        part, of_part = _take_queries(graph, rows, given)
        bias = of_part.get("score_bias")
        inputs = Projected(
            query,
            key,
            part,
            of_part.get("edge_features"),
            None if bias is None else bias.to(key.dtype),
            "target_to_source",
        )
        # in one expression, so that the heads are given up as soon as they are joined
        out = layer.join(layer.attend(inputs, return_attention=False, seed=None)[0], own)
        out = out if activation is None else _activated(out, activation)
        if result is None:
            result = out.new_empty(*out.shape[:-2], graph.n_queries, out.shape[-1])
        result[..., rows, :] = out
    assert result is not None
    return result


def _activated(out: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """What an activation makes of rows, for each of them a row: fewer would be spread over a block."""
    activated = activation(out)
    if activated.ndim != out.ndim or activated.shape[:-1] != out.shape[:-1]:
        raise ValueError(
            "`activation` must make a row of each row; it made "
            f"{tuple(activated.shape)} of {tuple(out.shape)}"
        )
    return activated


def _prepare(
    layer: GraphAttention,
    h_query: Tensor,
    h_key: Tensor,
    adj_mat: object,
    given: dict[str, Tensor],
) -> tuple[Graph, dict[str, Tensor]]:
    """The whole graph, sorted, with the self-loops that the layer adds; and what edges have, by name."""
    batch_shape = common_batch_shape(adj_mat, h_query.shape[:-2])
    for name, values in given.items():
        batch_shape = broadcast_batch(values, adj_mat, batch_shape, name)
    sides = h_query.shape[-2], h_key.shape[-2]
    sizes = Sizes(*sides, layer.n_heads, batch_shape, h_query.device)
    graph = as_adjacency(adj_mat, sizes, flow=layer.flow, backend="sparse")
    assert isinstance(graph, Graph)
    refuse_mapped(graph.key_index, "call the layer itself, which vmap goes over")
    if graph.n_blocks != 1:
        raise ValueError(
            f"the graph is a batch of {graph.n_blocks} masks, which is not taken apart in blocks of "
            "queries: call the model itself, or pass one list of edges"
        )
    laid_out_as = adj_mat if is_mask(adj_mat) else graph
    given = {
        name: as_backend_reads(values, laid_out_as, graph, sizes, layer.flow, name)
        for name, values in given.items()
    }
    if not layer.add_self_loops:
        return graph, given
    filling = {"edge_features": layer.fill_value, "score_bias": layer.loop_bias}
    is_block = layer.is_block(adj_mat, sizes)
    filled = {
        name: add_self_loops(
            graph, values, filling[name], is_block=is_block, is_bias=name == "score_bias"
        )[1]
        for name, values in given.items()
    }
    with_loops, _ = add_self_loops(graph, is_block=is_block)
    assert isinstance(with_loops, Graph)
    return with_loops, {name: values for name, values in filled.items() if values is not None}


def _take_queries(
    graph: Graph, rows: slice, given: dict[str, Tensor]
) -> tuple[Graph, dict[str, Tensor]]:
    """The part of a graph that some queries read, over all keys, and what its edges have."""
    ptr = graph.query_ptr[rows.start : rows.stop + 1]
    edges = slice(int(ptr[0]), int(ptr[-1]))
    edge_id = graph.edge_id[edges]
    part = changed(
        graph,
        query_ptr=ptr - ptr[0],
        key_index=graph.key_index[edges],
        query_index=graph.query_index[edges] - rows.start,
        edge_id=torch.arange(len(edge_id), dtype=edge_id.dtype, device=edge_id.device),
        head_mask=None if graph.head_mask is None else graph.head_mask[edges],
        query_id=None if graph.query_id is None else graph.query_id[rows],
    )
    return part, {name: values.index_select(-2, edge_id) for name, values in given.items()}
