"""Self-loops: one at each node, as PyTorch Geometric adds them; and never between two sets of nodes."""

import itertools
from typing import Any

import pytest
import torch
import torch_geometric.utils
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import gatv2.graph
import gatv2.graph.sort
from gatv2 import Graph, GraphAttentionLayer, GraphAttentionV2Layer
from gatv2.graph.graph import loops_at_first
from gatv2.graph.self_loops import add_self_loops
from gatv2.options import REDUCTIONS, Flow
from gatv2.testing import (
    BATCH_SHAPES,
    SIZES,
    assert_agrees,
    edge_indices,
    masks,
    value_and_gradients,
)

EYE = torch.eye(5, dtype=torch.bool).unsqueeze(-1)


@st.composite
def square_edges(draw: st.DrawFn) -> tuple[Tensor, int]:
    n_nodes = draw(st.sampled_from((0, *SIZES)))
    return draw(edge_indices(n_nodes, n_nodes)).long(), n_nodes


@given(drawn=square_edges())
def test_edges_are_those_of_pyg(drawn: tuple[Tensor, int]) -> None:
    edge_index, n_nodes = drawn
    theirs, _ = torch_geometric.utils.remove_self_loops(edge_index)
    theirs, _ = torch_geometric.utils.add_self_loops(theirs, num_nodes=n_nodes)
    graph = Graph.from_edge_index(edge_index, n_nodes)
    assert torch.equal(graph.add_self_loops().edge_index, theirs)
    turned = Graph.from_edge_index(edge_index, n_nodes, flow="source_to_target")
    assert torch.equal(turned.add_self_loops().edge_index.flip(0), theirs)


@given(data=st.data())
def test_are_as_if_sorted_with_the_edges(data: st.DataObject) -> None:
    n_nodes = data.draw(st.sampled_from((0, *SIZES))), data.draw(st.sampled_from((0, *SIZES)))
    graph = Graph.from_edge_index(data.draw(edge_indices(*n_nodes)), n_nodes)
    n_loops = min(n_nodes)
    merged = loops_at_first(graph, n_loops)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gatv2.graph.graph, "merge_loops", lambda *_: None)
        expected = loops_at_first(graph, n_loops)
    for name in ("query_ptr", "key_index", "query_index", "edge_id"):
        one, other = getattr(merged.graph, name), getattr(expected.graph, name)
        assert torch.equal(one, other)
        assert one.dtype == other.dtype
    assert torch.equal(merged.kept, expected.kept)
    assert torch.equal(merged.query, expected.query.long())


@pytest.mark.parametrize(
    "changes",
    [
        {"query_ptr": [0, 3, 2]},
        {"query_ptr": [0, 1, 3]},
        {"key_index": [0, 2]},
        {"key_index": [-1, 1]},
        {"edge_id": [0, 0]},
        {"edge_id": [0, 7]},
        {"edge_id": [-1, 1]},
    ],
)
def test_a_graph_that_has_been_written_to_is_told(changes: dict[str, list[int]]) -> None:
    graph = Graph.from_edge_index(torch.tensor([[0, 1], [0, 1]]), 2)
    for name, values in changes.items():
        getattr(graph, name).copy_(torch.tensor(values))
    with pytest.raises((ValueError, IndexError, RuntimeError)):
        graph.add_self_loops()


@given(drawn=square_edges())
def test_are_made_once(drawn: tuple[Tensor, int]) -> None:
    graph = Graph.from_edge_index(*drawn)
    with_loops = graph.add_self_loops()
    assert graph.add_self_loops() is with_loops
    again = with_loops.add_self_loops()
    assert torch.equal(again.edge_index, with_loops.edge_index)


def test_an_edge_index_is_prepared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def count(name: str) -> None:
        original = getattr(gatv2.graph.graph, name)

        def counted(*arguments: Any) -> Any:
            made.append(name)
            return original(*arguments)

        monkeypatch.setattr(gatv2.graph.graph, name, counted)

    for name in ("sort_edges", "sort_both_ways", "merge_loops"):
        count(name)
    layer, edge_index = GraphAttentionV2Layer(3, 8, 2, add_self_loops=True), EYE[..., 0].nonzero().T
    for _ in range(3):
        layer(torch.randn(5, 3), edge_index)
    assert made == ["sort_both_ways", "merge_loops"]


@given(mask=masks(5, 5), data=st.data())
def test_every_form_has_them(mask: Tensor, data: st.DataObject) -> None:
    layer_class: Any = data.draw(st.sampled_from((GraphAttentionV2Layer, GraphAttentionLayer)))
    options: Any = {"dtype": torch.float64, "dropout": 0.4}
    plain = layer_class(3, 8, 2, **options)
    h = torch.randn(5, 3).double()
    expected = plain(h, mask | EYE, seed=1)
    for flow in ("target_to_source", "source_to_target"):
        layer = layer_class(3, 8, 2, add_self_loops=True, flow=flow, **options)
        layer.load_state_dict(plain.state_dict())
        turned = mask if flow == "target_to_source" else mask.transpose(0, 1)
        edge_index = turned.squeeze(-1).nonzero().T
        forms = (turned, turned.squeeze(-1), edge_index, turned.squeeze(-1).float().to_sparse())
        graph = Graph.from_mask(turned, flow=flow)
        for form in (*forms, graph, graph.add_self_loops()):
            for backend in ("auto", "dense", "sparse"):
                layer.backend = backend
                assert_agrees(layer(h, form, seed=1), expected)


@pytest.mark.parametrize("backend", ["dense", "sparse"])
@given(data=st.data())
def test_masks_keep_heads_and_batches(backend: Any, data: st.DataObject) -> None:
    batch_shape = data.draw(st.sampled_from(BATCH_SHAPES))
    mask = data.draw(masks(5, 5, data.draw(st.sampled_from((1, 2))), batch_shape))
    plain = GraphAttentionV2Layer(3, 8, 2, backend="dense", dtype=torch.float64).eval()
    layer = GraphAttentionV2Layer(
        3, 8, 2, add_self_loops=True, backend=backend, dtype=torch.float64
    ).eval()
    layer.load_state_dict(plain.state_dict())
    for features in (torch.randn(5, 3).double(), torch.randn(*batch_shape, 5, 3).double()):
        assert_agrees(layer(features, mask), plain(features, mask | EYE))
    blocks = Graph.from_mask(mask).add_self_loops().to_mask()
    assert torch.equal(blocks.view(*mask.shape), mask | EYE)


def test_coefficients_follow_the_edges_of_the_graph() -> None:
    edge_index = torch.tensor([[0, 1, 3, 1, 0], [1, 1, 2, 0, 2]])
    layer = GraphAttentionV2Layer(3, 8, 2, add_self_loops=True).eval()
    _, alpha = layer(torch.randn(4, 3), edge_index, return_attention=True)
    query = Graph.from_edge_index(edge_index, 4).add_self_loops().edge_index[0]
    assert query.tolist() == [0, 3, 1, 0, 0, 1, 2, 3]
    total = torch.zeros(4, 2).index_add(0, query, alpha)
    torch.testing.assert_close(total, torch.ones(4, 2))
    assert torch.equal(alpha[6], torch.ones(2))  # node 2 attends to itself alone
    assert layer.attention_scores(torch.randn(4, 3), edge_index).shape == alpha.shape


@given(drawn=square_edges(), fill=st.sampled_from((0.5, *REDUCTIONS)), data=st.data())
def test_features_are_those_of_pyg(
    drawn: tuple[Tensor, int], fill: Any, data: st.DataObject
) -> None:
    """PyG reduces over the edges that point to a node: our queries, with its flow."""
    edge_index, n_nodes = drawn
    batch_shape = data.draw(st.sampled_from(BATCH_SHAPES))
    features = torch.randn(*batch_shape, edge_index.shape[1], 3).double()
    graph = Graph.from_edge_index(edge_index, n_nodes, flow="source_to_target")
    with_loops, filled = add_self_loops(graph, features, fill)
    assert with_loops is graph.add_self_loops()
    assert filled is not None
    for one in itertools.product(*map(range, batch_shape)):
        kept, theirs = torch_geometric.utils.remove_self_loops(edge_index, features[one])
        _, expected = torch_geometric.utils.add_self_loops(kept, theirs, fill, n_nodes)
        assert_agrees(filled[one], expected)


@given(mask=masks(5, 5), fill=st.sampled_from((0.5, torch.randn(3).double(), *REDUCTIONS)))
def test_features_of_a_mask_are_those_of_its_edges(mask: Tensor, fill: Any) -> None:
    features = torch.randn(2, 5, 5, 3).double()
    beside = torch.where(mask, features, torch.nan)  # what stands beside an edge is not read
    query, key = edge_index = mask.squeeze(-1).nonzero().T
    h, cotangent = torch.randn(5, 3).double(), torch.randn(2, 5, 8).double()

    def result(flow: Flow, form: Tensor, x: Tensor) -> list[Tensor]:
        torch.manual_seed(0)
        layer = GraphAttentionV2Layer(
            *(3, 8, 2, True, 0.0),
            edge_dim=3,
            fill_value=fill,
            add_self_loops=True,
            flow=flow,
            dtype=torch.float64,
        )
        return value_and_gradients(lambda h, x: layer(h, form, edge_features=x), (h, x), cotangent)

    flows: tuple[Flow, ...] = ("target_to_source", "source_to_target")
    for flow in flows:
        expected, _, of_edges = result(flow, edge_index, features[:, query, key])
        for x in (features, beside):
            actual, _, of_mask = result(flow, mask, x)
            assert_agrees(actual, expected)
            assert_agrees(of_mask[:, query, key], of_edges)


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("lowered", [torch.bfloat16, torch.float16], ids=str)
def test_features_of_any_precision_under_autocast(lowered: torch.dtype, given: torch.dtype) -> None:
    """They are converted as they are without self-loops."""
    layer = GraphAttentionV2Layer(3, 4, 2, edge_dim=2, add_self_loops=True).eval()
    h, edges, x = torch.randn(5, 3), torch.tensor([[0, 1, 3, 3], [1, 2, 0, 3]]), torch.randn(4, 2)
    expected = layer(h, edges, edge_features=x)
    with torch.autocast("cpu", lowered):
        actual = layer(h, edges, edge_features=x.to(given))
    torch.testing.assert_close(actual.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("fill_value", ["min", "max"])
def test_equal_extremes_share_a_gradient(fill_value: Any) -> None:
    """Among themselves alone: zero is a value like any other, over edges as over a mask."""
    graph, mask = Graph.from_edge_index(torch.tensor([[0, 0], [1, 2]]), 3), torch.zeros(3, 3, 1) > 0
    mask[0, 1:] = True
    for extreme in (0.0, 1.0):
        x = torch.full((2, 1), extreme, dtype=torch.float64, requires_grad=True)
        pairs = torch.zeros(3, 3, 1, dtype=torch.float64).index_put(
            (torch.tensor([0, 0]), torch.tensor([1, 2])), x
        )
        for adjacency, features in ((graph, x), (mask, pairs)):
            filled = add_self_loops(adjacency, features, fill_value)[1]
            assert filled is not None
            loop = filled[2, 0] if adjacency is graph else filled[0, 0, 0]
            assert torch.autograd.grad(loop, x)[0].tolist() == [[0.5], [0.5]]


def test_what_fills_self_loops_may_be_learned() -> None:
    """A parameter keeps its value when those of the layer are drawn, and has a gradient."""
    fill_value, loop_bias = nn.Parameter(torch.tensor([2.0, 3.0])), nn.Parameter(torch.ones(4))
    layer = GraphAttentionV2Layer(
        3, 8, 4, edge_dim=2, add_self_loops=True, fill_value=fill_value, loop_bias=loop_bias
    )
    layer.reset_parameters()
    assert fill_value.tolist() == [2, 3]
    assert loop_bias.tolist() == [1, 1, 1, 1]
    out = layer(
        torch.randn(3, 3),
        torch.tensor([[0, 1], [1, 2]]),
        edge_features=torch.randn(2, 2),
        score_bias=torch.zeros(2, 4),
    )
    for gradient in torch.autograd.grad(out.square().sum(), (fill_value, loop_bias)):
        assert gradient.any()


def test_wrong_fill_values_and_features() -> None:
    with pytest.raises(ValueError, match="`fill_value` must be a number, a tensor or one of"):
        GraphAttentionV2Layer(3, 8, 2, edge_dim=3, fill_value="median")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="the name of a reduction; got NoneType"):
        GraphAttentionV2Layer(3, 8, 2, edge_dim=3, fill_value=None)  # type: ignore[arg-type]
    layer = GraphAttentionV2Layer(3, 8, 2, edge_dim=3, add_self_loops=True)
    edge_index = torch.tensor([[0, 1], [1, 2]])
    with pytest.raises(ValueError, match="`edge_features` must have 2 as dimension -2"):
        layer(torch.randn(3, 3), edge_index, edge_features=torch.randn(5, 3))
    mask = torch.ones(3, 3, 1)
    with pytest.raises(ValueError, match="`edge_features` must have 3 as dimension -3"):
        layer(torch.randn(3, 3), mask, edge_features=torch.randn(5, 3))


def test_two_sets_of_nodes_have_none() -> None:
    layer = GraphAttentionV2Layer(3, 8, 2, add_self_loops=True)
    h = torch.randn(2, 3), torch.randn(5, 3)
    mask = torch.ones(2, 5, 1, dtype=torch.bool)
    for form in (mask, mask.squeeze(-1).nonzero().T, Graph.from_mask(mask)):
        with pytest.raises(ValueError, match="2 queries and 5 keys has no self-loops to add"):
            layer(h, form)


@pytest.mark.parametrize("adj_mat", [torch.ones(4, 4, 1) > 0, torch.tensor([[0], [1]])])
def test_a_fill_value_of_another_size(adj_mat: Tensor) -> None:
    layer = GraphAttentionV2Layer(
        3, 4, 2, edge_dim=2, add_self_loops=True, fill_value=torch.ones(3)
    )
    features = torch.zeros(*((4, 4, 2) if adj_mat.ndim == 3 else (1, 2)))
    with pytest.raises(ValueError, match=r"`fill_value` must be a number or have shape \(2,\)"):
        layer(torch.randn(4, 3), adj_mat, edge_features=features)


@pytest.mark.parametrize("fill_value", ["min", "max", "mean", "mul", 1.0])
def test_a_mask_without_nodes(fill_value: Any) -> None:
    layer = GraphAttentionV2Layer(3, 4, 2, edge_dim=2, add_self_loops=True, fill_value=fill_value)
    no_mask = torch.zeros(0, 0, 1, dtype=torch.bool)
    assert layer(torch.randn(0, 3), no_mask, edge_features=torch.randn(0, 0, 2)).shape == (0, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fill_value", REDUCTIONS)
def test_reductions_of_a_hub_are_rounded_once(dtype: torch.dtype, fill_value: Any) -> None:
    """A count in half precision stops at 256 or 2048, and so does a sum."""
    n_nodes = 5001
    key = torch.arange(1, n_nodes)
    graph = Graph.from_edge_index(torch.stack((torch.zeros_like(key), key)), n_nodes)
    values = 1 + torch.randn(n_nodes - 1, 2, generator=torch.Generator().manual_seed(0)) / 1000
    mask = graph.to_mask()
    for adjacency, features in ((graph, values.to(dtype)), (mask, None)):
        if features is None:
            features = torch.zeros(n_nodes, n_nodes, 2, dtype=dtype)
            features[0, 1:] = values.to(dtype)
        exact = add_self_loops(adjacency, features.double(), fill_value)[1]
        actual = add_self_loops(adjacency, features, fill_value)[1]
        assert exact is not None
        assert actual is not None
        at = (n_nodes - 1,) if adjacency is graph else (0, 0)
        assert torch.equal(actual[at], exact[at].to(dtype))


@pytest.mark.parametrize("form", ["mask", "graph"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_fill_value_is_rounded_to_the_dtype_of_the_features_alone(
    form: str, dtype: torch.dtype
) -> None:
    mask, features = torch.zeros(2, 2, 1, dtype=torch.bool), torch.zeros(2, 2, 1, dtype=dtype)
    if form == "mask":
        filled = add_self_loops(mask, features, 0.7)[1]
    else:
        filled = add_self_loops(Graph.from_mask(mask), features[mask.any(-1)], 0.7)[1]
    assert filled is not None
    assert torch.equal(filled[filled != 0], torch.full((2,), 0.7, dtype=dtype))


@given(
    data=st.data(),
    how=st.sampled_from(["mean", "sum", "add", 0.5]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    n_features=st.integers(0, 20),
)
def test_compiled_features_are_those_of_operations(
    data: st.DataObject, how: Any, dtype: torch.dtype, n_features: int
) -> None:
    n_nodes = data.draw(st.sampled_from((0, *SIZES))), data.draw(st.sampled_from((0, *SIZES)))
    graph = Graph.from_edge_index(data.draw(edge_indices(*n_nodes)), n_nodes)
    features = torch.randn(graph.n_edges, n_features, dtype=dtype)
    _, compiled = add_self_loops(graph, features, how, is_block=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gatv2.graph.self_loops, "fill_features", lambda *_: None)
        _, expected = add_self_loops(graph, features, how, is_block=True)
    assert compiled is not None
    assert expected is not None
    torch.testing.assert_close(compiled, expected)
    n_kept = graph.n_edges - int((graph.query_index == graph.key_index).sum())
    assert torch.equal(compiled[:n_kept], expected[:n_kept])


def test_compiled_features_have_the_same_bits_on_any_threads() -> None:
    generator = torch.Generator().manual_seed(0)
    edge_index = torch.randint(5000, (2, 60_000), generator=generator)
    graph, features = Graph.from_edge_index(edge_index, 5000), torch.randn(60_000, 16)
    results = []
    n_threads = torch.get_num_threads()
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            results.append(add_self_loops(graph, features, "mean"))
    finally:
        torch.set_num_threads(n_threads)
    one, two, five = (filled for _, filled in results if filled is not None)
    assert torch.equal(one, two)
    assert torch.equal(one, five)


def test_loops_of_a_graph_that_was_written_to_read_no_foreign_memory() -> None:
    graph = Graph.from_edge_index(torch.tensor([[0, 1, 2], [1, 2, 0]]), 3)
    graph.self_loops.kept[1] = 1 << 40
    with pytest.raises(IndexError):
        add_self_loops(graph, torch.ones(3, 2), "mean")


@pytest.mark.parametrize("pointer", [-5, 5, 1 << 30])
def test_pointers_of_loops_that_were_written_to_read_no_foreign_memory(pointer: int) -> None:
    graph = Graph.from_edge_index(torch.tensor([[0, 1, 2], [1, 2, 0]]), 3)
    features = torch.arange(6.0).view(3, 2)
    _, expected = add_self_loops(graph, features, "mean")
    graph.self_loops.graph.query_ptr[1] = pointer
    _, actual = add_self_loops(graph, features, "mean")
    assert actual is not None
    assert expected is not None
    assert torch.equal(actual, expected)


def test_features_of_loops_may_wait_to_be_negated() -> None:
    graph = Graph.from_edge_index(torch.tensor([[0, 1], [1, 1]]), 2)
    given = torch.tensor([1j, 2j]).conj().imag
    assert given.is_neg()
    _, filled = add_self_loops(graph, torch.ones(2, 2), given)
    assert filled is not None
    assert torch.equal(filled, torch.tensor([[1.0, 1], [-1, -2], [-1, -2]]))
