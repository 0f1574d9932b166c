"""Our layers inside PyTorch Geometric: its containers, loaders, edge indices and explainers."""

import importlib
import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import Data, HeteroData
from torch_geometric.explain import AttentionExplainer, Explainer, Explanation
from torch_geometric.loader import NeighborLoader
from torch_geometric.nn.aggr import MaxAggregation, SumAggregation
from torch_geometric.utils import k_hop_subgraph

import gatv2.pyg
from gatv2 import Graph, GraphAttentionV2Layer
from gatv2.convert import from_pyg
from gatv2.testing import assert_agrees

N_NODES = 30
EDGE_INDEX = torch.randint(N_NODES, (2, 120), generator=torch.Generator().manual_seed(1))
TYPES = [("paper", "cites", "paper"), ("author", "writes", "paper"), ("paper", "of", "author")]


def drop_in(in_channels: Any, out_channels: int, **options: Any) -> Any:
    return gatv2.pyg.GATv2Conv(in_channels, out_channels, heads=2, **options).double()


def our_layer(in_channels: Any, out_channels: int, **options: Any) -> GraphAttentionV2Layer:
    conv = pyg.GATv2Conv(in_channels, out_channels, heads=2, **options).double()
    return from_pyg(conv)


MAKERS: list[Callable[..., Any]] = [our_layer, drop_in]


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Our layer, and their class with our kernels."""
    return request.param  # type: ignore[no-any-return]


def theirs_of(layer: Any) -> Any:
    """PyTorch Geometric's own layer with the same parameters."""
    if isinstance(layer, GraphAttentionV2Layer):
        return gatv2.convert.to_pyg(layer)
    conv = pyg.GATv2Conv(
        layer.in_channels, layer.out_channels, 2, add_self_loops=layer.add_self_loops
    )
    conv.double().load_state_dict(layer.state_dict())
    return conv


def test_sequential_and_data(make: Any) -> None:
    data: Any = Data(x=torch.randn(N_NODES, 3).double(), edge_index=EDGE_INDEX)
    one, two = make(3, 4), make(8, 2)
    steps = [(one, "x, edge_index -> x"), torch.nn.ELU(), (two, "x, edge_index -> x")]
    model = pyg.Sequential("x, edge_index", steps)
    hidden = torch.nn.functional.elu(theirs_of(one)(data.x, data.edge_index))
    assert_agrees(model(data.x, data.edge_index), theirs_of(two)(hidden, data.edge_index))


@pytest.mark.parametrize("sort_order", [None, "row", "col"])
def test_edge_index(make: Any, sort_order: str | None) -> None:
    layer, x = make(3, 4), torch.randn(N_NODES, 3).double()
    edge_index = EdgeIndex(EDGE_INDEX, sparse_size=(N_NODES, N_NODES))
    if sort_order is not None:
        edge_index = edge_index.sort_by(sort_order).values
    out = layer(x, edge_index)
    assert type(out) is Tensor
    assert_agrees(out, theirs_of(layer)(x, EDGE_INDEX))
    assert_agrees(layer(x, edge_index), out)


def neighbor_loader(data: Data) -> Iterator[tuple[Tensor, Tensor, int]]:
    pytest.importorskip("torch_sparse", reason="NeighborLoader needs pyg-lib or torch-sparse")
    for batch in NeighborLoader(data, num_neighbors=[-1, -1], batch_size=7):
        yield batch.n_id, batch.edge_index, batch.batch_size


def k_hop_subgraphs(data: Data) -> Iterator[tuple[Tensor, Tensor, int]]:
    """The same blocks, seeds first, without a compiled sampler."""
    for seeds in torch.arange(N_NODES).split(7):
        found, edges, _, _ = k_hop_subgraph(seeds, 2, data.edge_index, num_nodes=N_NODES)
        n_id = torch.cat((seeds, found[~torch.isin(found, seeds)]))
        position = torch.empty(N_NODES, dtype=torch.long)
        position[n_id] = torch.arange(len(n_id))
        yield n_id, position[edges], len(seeds)


@pytest.mark.filterwarnings("ignore:Using 'NeighborSampler' without a 'pyg-lib'")
@pytest.mark.parametrize("sample", [neighbor_loader, k_hop_subgraphs])
def test_sampled_blocks(make: Any, sample: Any) -> None:
    """With all neighbours sampled, two layers give the seeds what they have on the whole graph."""
    data = Data(x=torch.randn(N_NODES, 3).double(), edge_index=EDGE_INDEX, num_nodes=N_NODES)
    one, two = make(3, 4, add_self_loops=False), make(8, 2, add_self_loops=False)
    expected = two(one(data.x, EDGE_INDEX).relu(), EDGE_INDEX)
    for n_id, edge_index, n_seeds in sample(data):
        h = one(data.x[n_id], edge_index).relu()
        out = two(h, edge_index)[:n_seeds]
        assert_agrees(out, expected[n_id[:n_seeds]])
        # a bipartite block: the seeds, and all the nodes that they read
        block = edge_index[:, edge_index[1] < n_seeds]
        assert_agrees(two((h, h[:n_seeds]), block), out)


def hetero_data() -> Any:
    torch.manual_seed(2)
    data = HeteroData()
    sizes = {"paper": 9, "author": 5}
    for name, n_nodes in sizes.items():
        data[name].x = torch.randn(n_nodes, 3).double()
    for source, relation, target in TYPES:
        rows = [torch.randint(sizes[name], (20,)) for name in (source, target)]
        data[source, relation, target].edge_index = torch.stack(rows)
    return data


def test_hetero_conv(make: Any) -> None:
    data = hetero_data()
    layers = {kind: make((3, 3), 4, add_self_loops=False) for kind in TYPES}
    ours = pyg.HeteroConv(layers)(data.x_dict, data.edge_index_dict)
    theirs = pyg.HeteroConv({kind: theirs_of(layer) for kind, layer in layers.items()})
    expected = theirs(data.x_dict, data.edge_index_dict)
    for name in ("paper", "author"):
        assert_agrees(ours[name], expected[name])


class TwoLayers(torch.nn.Module):
    def __init__(self, conv: Any) -> None:
        super().__init__()
        self.one = conv((-1, -1), 4, heads=2, add_self_loops=False)
        self.two = conv((-1, -1), 2, heads=2, add_self_loops=False)

    def forward(self, x: Any, edge_index: Any) -> Any:
        return self.two(self.one(x, edge_index).relu(), edge_index)


def test_to_hetero() -> None:
    """It asks for PyTorch Geometric's base class, so it takes `gatv2.pyg.GATv2Conv`."""
    data = hetero_data()
    results = []
    state = None
    for conv in (pyg.GATv2Conv, gatv2.pyg.GATv2Conv):
        model = pyg.to_hetero(TwoLayers(conv), data.metadata()).double()
        model(data.x_dict, data.edge_index_dict)  # sizes become known
        state = model.state_dict() if state is None else state
        model.load_state_dict(state)
        results.append(model(data.x_dict, data.edge_index_dict))
    for name in ("paper", "author"):
        assert_agrees(results[1][name], results[0][name])


class Homogeneous(torch.nn.Module):
    def __init__(self, conv: Any) -> None:
        super().__init__()
        self.one = conv(3, 4, heads=2, add_self_loops=False)
        self.two = conv(8, 2, heads=2, add_self_loops=False)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.two(self.one(x, edge_index).relu(), edge_index)
        return out


def explain(model: torch.nn.Module, x: Tensor) -> Explanation:
    explainer = Explainer(
        model,
        algorithm=AttentionExplainer(),
        explanation_type="model",
        edge_mask_type="object",
        model_config={
            "mode": "multiclass_classification",
            "task_level": "node",
            "return_type": "raw",
        },
    )
    return explainer(x, EDGE_INDEX)


def test_attention_explainer() -> None:
    """From `gatv2.pyg.GATv2Conv`, as from PyTorch Geometric's; ours returns what it explains with."""
    x = torch.randn(N_NODES, 3).double()
    theirs = Homogeneous(pyg.GATv2Conv).double()
    ours = Homogeneous(gatv2.pyg.GATv2Conv).double()
    ours.load_state_dict(theirs.state_dict())
    expected: Any = explain(theirs, x).edge_mask
    actual: Any = explain(ours, x).edge_mask
    assert_agrees(actual, expected)
    hidden, one = from_pyg(theirs.one)(x, EDGE_INDEX, return_attention=True)
    _, two = from_pyg(theirs.two)(hidden.relu(), EDGE_INDEX, return_attention=True)
    by_hand: Any = Explanation(edge_mask=torch.cat((one, two), dim=-1).amax(-1))
    assert_agrees(by_hand.edge_mask, expected)
    # the layer works on as before
    assert_agrees(ours(x, EDGE_INDEX), theirs(x, EDGE_INDEX))


def test_gnn_explainer_after_a_layer_of_theirs() -> None:
    """Which has PyTorch Geometric compile its own `propagate`; ours must not explain by that one."""
    script = """
import torch, torch_geometric.nn as pyg
from torch_geometric.explain import Explainer, GNNExplainer
from gatv2.pyg import GATv2Conv
torch.manual_seed(0)
x, edge_index = torch.randn(9, 3).double(), torch.randint(9, (2, 30))
theirs = pyg.GATv2Conv(3, 4, heads=2).double()
ours = GATv2Conv(3, 4, heads=2).double()
ours.load_state_dict(theirs.state_dict())
masks = []
for conv in (theirs, ours):
    explainer = Explainer(
        conv,
        algorithm=GNNExplainer(epochs=3),
        explanation_type="model",
        node_mask_type="attributes",
        edge_mask_type="object",
        model_config=dict(mode="regression", task_level="node", return_type="raw"),
    )
    torch.manual_seed(1)
    masks.append(explainer(x, edge_index).edge_mask)
torch.testing.assert_close(masks[1], masks[0], rtol=0, atol=1e-10)
assert masks[0].std() > 0
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("layout", ["csr", "coo", "torch_sparse"])
def test_adj_t_is_read_as_pyg_reads_it(layout: str) -> None:
    """A sparse matrix's rows are targets: the class takes it as it is, the layer its transpose."""
    torch_sparse = pytest.importorskip("torch_sparse")
    edge_index = EDGE_INDEX.unique(dim=1)
    x = torch.randn(N_NODES, 3).double()
    conv: Any = drop_in(3, 4, add_self_loops=False)
    expected = theirs_of(conv)(x, edge_index)
    ones = torch.ones(edge_index.shape[1]).double()
    size = (N_NODES, N_NODES)
    if layout == "torch_sparse":
        adj_t = torch_sparse.SparseTensor(row=edge_index[1], col=edge_index[0], sparse_sizes=size)
    else:
        coo = torch.sparse_coo_tensor(edge_index.flip(0), ones, size).coalesce()
        adj_t = coo if layout == "coo" else coo.to_sparse_csr()
    assert_agrees(conv(x, adj_t), expected)
    assert_agrees(from_pyg(conv)(x, adj_t.t()), expected)


@pytest.mark.parametrize("options", [{}, {"edge_dim": 2}, {"edge_dim": 2, "fill_value": "max"}])
def test_blocks_with_self_loops(make: Any, options: Any) -> None:
    """Targets are the first of the sources, and have self-loops; as many as there are on both sides."""
    layer = make(3, 4, **options)
    conv: Any = pyg.GATv2Conv(3, 4, heads=2, **options).double()
    if isinstance(layer, GraphAttentionV2Layer):
        conv = gatv2.convert.to_pyg(layer)
    else:
        conv.load_state_dict(layer.state_dict())
    x = torch.randn(4, 3).double()
    edge_index = torch.tensor([[2, 3, 1, 0, 3], [0, 0, 0, 1, 1]])
    edge_attr = torch.randn(5, 2).double() if options else None
    expected, (their_edges, their_alpha) = conv(
        (x, x[:2]), edge_index, edge_attr, return_attention_weights=True
    )
    if isinstance(layer, GraphAttentionV2Layer):
        out, alpha = layer((x, x[:2]), edge_index, edge_features=edge_attr, return_attention=True)
    else:
        out, (edges, alpha) = layer(
            (x, x[:2]), edge_index, edge_attr, return_attention_weights=True
        )
        assert torch.equal(edges, their_edges)
    assert_agrees(out, expected)
    assert_agrees(alpha, their_alpha)
    if not options:  # more targets than sources; theirs can't reduce features there
        assert_agrees(layer((x[:2], x), edge_index.flip(0)), conv((x[:2], x), edge_index.flip(0)))


class Doubled(gatv2.pyg.GATv2Conv):
    def message(self, x_j: Tensor, alpha: Tensor) -> Tensor:
        return 2 * x_j * alpha.unsqueeze(-1)


def test_another_aggregation_and_other_messages_are_kept() -> None:
    x = torch.randn(N_NODES, 3).double()
    for aggr in ("max", "mean", "sum", ["add", "max"]):
        ours = drop_in(3, 4, aggr=aggr, bias=False)
        theirs = pyg.GATv2Conv(3, 4, heads=2, aggr=aggr, bias=False).double()
        theirs.load_state_dict(ours.state_dict())
        assert_agrees(ours(x, EDGE_INDEX), theirs(x, EDGE_INDEX))
    doubled = Doubled(3, 4, heads=2, bias=False).double()
    plain = drop_in(3, 4, bias=False)
    plain.load_state_dict(doubled.state_dict())
    assert_agrees(doubled(x, EDGE_INDEX), 2 * plain(x, EDGE_INDEX))
    with pytest.raises(ValueError, match=r"Doubled has \['message'\] of its own"):
        from_pyg(doubled)


class DoubledAtOnce(gatv2.pyg.GATv2Conv):
    def propagate(self, *args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = 2 * super().propagate(*args, **kwargs)
        return out


class DoubledCoefficients(gatv2.pyg.GATv2Conv):
    def edge_updater(self, *args: Any, **kwargs: Any) -> Tensor:
        alpha: Tensor = 2 * super().edge_updater(*args, **kwargs)
        return alpha


def with_message(conv: Any) -> Any:
    conv.message = lambda x_j, alpha: 2 * x_j * alpha.unsqueeze(-1)
    return conv


def with_propagate(conv: Any) -> Any:
    propagate = conv.propagate
    conv.propagate = lambda *args, **kwargs: 2 * propagate(*args, **kwargs)
    return conv


@pytest.mark.parametrize(
    ("make_doubled", "name"),
    [
        (lambda: DoubledAtOnce(3, 4, heads=2, bias=False), "propagate"),
        (lambda: DoubledCoefficients(3, 4, heads=2, bias=False), "edge_updater"),
        (lambda: with_message(drop_in(3, 4, bias=False)), "message"),
        (lambda: with_propagate(drop_in(3, 4, bias=False)), "propagate"),
    ],
    ids=["propagate", "edge_updater", "message of one layer", "propagate of one layer"],
)
def test_what_calls_for_messages_is_kept(make_doubled: Any, name: str) -> None:
    """Of a subclass and of one layer; a class that has none of its own has our kernels."""
    x, doubled = torch.randn(N_NODES, 3).double(), make_doubled().double()
    plain = drop_in(3, 4, bias=False)
    plain.load_state_dict(doubled.state_dict())
    assert not plain._needs_messages()
    assert_agrees(doubled(x, EDGE_INDEX), 2 * plain(x, EDGE_INDEX))
    with pytest.raises(ValueError, match=rf"has \['{name}'\] of its own"):
        from_pyg(doubled)


def test_an_aggregation_that_is_put_in_or_listened_to() -> None:
    """What sums is the layer's `aggr_module`, whatever name it was made with."""
    x, ours = torch.randn(N_NODES, 3).double(), drop_in(3, 4, aggr=SumAggregation())
    assert not ours._needs_messages()
    theirs = theirs_of(ours)
    assert_agrees(ours(x, EDGE_INDEX), theirs(x, EDGE_INDEX))
    seen: list[Any] = []
    handle = ours.aggr_module.register_forward_hook(lambda module, args, out: seen.append(out))
    out = ours(x, EDGE_INDEX)
    handle.remove()
    assert_agrees(out, seen[0].flatten(1) + ours.bias)
    for conv in (ours, theirs):
        conv.aggr_module = MaxAggregation()
    assert_agrees(ours(x, EDGE_INDEX), theirs(x, EDGE_INDEX))
    with pytest.raises(ValueError, match=r"`conv` has aggr=MaxAggregation\(\)"):
        from_pyg(ours)


@pytest.mark.parametrize("flow", ["source_to_target", "target_to_source"])
def test_a_graph_where_messages_are_needed(flow: str) -> None:
    """It goes to the base class as its edge index, by the checks that our kernels have."""
    x, edge_attr = torch.randn(N_NODES, 3).double(), torch.randn(120, 2).double()
    options: Any = {"aggr": "max", "edge_dim": 2, "fill_value": 2.0, "flow": flow}
    graph = Graph.from_edge_index(EDGE_INDEX, N_NODES, flow=flow)  # type: ignore[arg-type]
    for add_self_loops in (False, True):
        conv = drop_in(3, 4, **options, add_self_loops=add_self_loops)
        out, (edges, alpha) = conv(x, graph, edge_attr, return_attention_weights=True)
        expected = conv(x, EDGE_INDEX, edge_attr, return_attention_weights=True)
        assert_agrees(out, expected[0])
        assert torch.equal(edges, expected[1][0])
        assert_agrees(alpha, expected[1][1])
    with pytest.raises(ValueError, match=r"has 30 queries and 30 keys, but the features have 31"):
        conv(torch.randn(N_NODES + 1, 3).double(), graph, edge_attr)
    if flow == "source_to_target":
        with pytest.raises(ValueError, match="flow"):
            conv(x, Graph.from_edge_index(EDGE_INDEX, N_NODES), edge_attr)
    masked = Graph.from_mask(torch.rand(N_NODES, N_NODES, 2) < 0.5, flow=flow)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a graph with a `head_mask` has no messages"):
        conv(x, masked)


def test_a_module_that_is_read_again() -> None:
    """As an interactive session reads it; layers that there are, and their checkpoints, stay good."""
    x, old = torch.randn(N_NODES, 3).double(), drop_in(3, 4)
    module = importlib.reload(gatv2.pyg)
    new = module.GATv2Conv(3, 4, heads=2).double()
    new.load_state_dict(old.state_dict())
    assert_agrees(new(x, EDGE_INDEX), old(x, EDGE_INDEX))
    assert_agrees(from_pyg(new)(x, EDGE_INDEX), from_pyg(old)(x, EDGE_INDEX))


def test_checkpoints_of_weights_only() -> None:
    x, layer = torch.randn(N_NODES, 3).double(), our_layer(3, 4)
    file = io.BytesIO()
    torch.save({"state": layer.state_dict(), "layer": layer}, file)
    file.seek(0)
    with torch.serialization.safe_globals([GraphAttentionV2Layer, torch.nn.Linear]):
        loaded = torch.load(file, weights_only=True)
    assert torch.equal(loaded["layer"](x, EDGE_INDEX), layer(x, EDGE_INDEX))
    other = our_layer(3, 4)
    other.load_state_dict(loaded["state"])
    assert torch.equal(other(x, EDGE_INDEX), layer(x, EDGE_INDEX))


Untyped: Any = GraphAttentionV2Layer  # for calls that a type checker refuses


def untyped() -> Any:
    return our_layer(3, 4)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: Untyped(in_channels=3), "'in_channels': here it is in_features"),
        (lambda: Untyped(3, 8, heads=2), "'heads': here it is n_heads"),
        (lambda: Untyped(3, 8, 2, concat=True), "'concat': here it is is_concat"),
        (lambda: untyped()(None, None, edge_attr=0), "'edge_attr': here it is edge_features"),
        (lambda: untyped()(x=0), "'x': here it is h"),
        (
            lambda: untyped()(None, None, return_attention_weights=True),
            "'return_attention_weights': here it is return_attention",
        ),
        (lambda: Untyped(3, 8, 2, other=1), "has no argument 'other': it has ('in_f"),
    ],
)
def test_names_of_their_arguments(call: Any, text: str) -> None:
    with pytest.raises(TypeError) as raised:
        call()
    assert text in str(raised.value)
    assert str(raised.value).startswith("GraphAttentionV2Layer has no argument")


@pytest.mark.parametrize("flow", ["source_to_target", "target_to_source"])
@pytest.mark.parametrize("add_self_loops", [False, True])
def test_coefficients_come_with_the_edges_of_theirs(add_self_loops: bool, flow: str) -> None:
    """In the dtype and the class of the list that was given, where that is all of them."""
    x, conv = (
        torch.randn(N_NODES, 3).double(),
        drop_in(3, 4, add_self_loops=add_self_loops, flow=flow),
    )
    theirs = pyg.GATv2Conv(3, 4, heads=2, add_self_loops=add_self_loops, flow=flow).double()
    for edges in (EDGE_INDEX.int(), EdgeIndex(EDGE_INDEX, sparse_size=(N_NODES, N_NODES))):
        _, (ours, _) = conv(x, edges, return_attention_weights=True)
        _, (expected, _) = theirs(x, edges, return_attention_weights=True)
        assert torch.equal(ours, expected)
        assert ours.dtype == expected.dtype
        if not add_self_loops:
            assert ours is edges


def test_errors_have_their_names() -> None:
    """Of edge features, by the name of the argument that was given, before anything is computed."""
    x, attr = torch.randn(N_NODES, 3).double(), torch.randn(120, 2).double()
    adj_t = torch.sparse_coo_tensor(EDGE_INDEX.flip(0), attr[:, 0], (N_NODES, N_NODES)).coalesce()
    for add_self_loops in (False, True):
        conv = drop_in(3, 4, edge_dim=2, add_self_loops=add_self_loops)
        for wrong in (attr[1:], attr[:, :1], attr[:, 0], attr.unsqueeze(1)):
            with pytest.raises(
                ValueError, match=r"`edge_attr` must have .*=120, edge_dim=2\); got"
            ):
                conv(x, EDGE_INDEX, wrong)
    with pytest.raises(
        ValueError, match=r"`edge_attr` must have shape \(n_edges=\d+, edge_dim=2\)"
    ):
        drop_in(3, 4, edge_dim=2, add_self_loops=False)(x, adj_t, attr[:7])
    kinds: list[tuple[Any, str]] = [
        (attr.numpy(), "must be a torch.Tensor; got ndarray: convert it with"),
        (attr.tolist(), "must be a torch.Tensor; got list: convert it with"),
        (attr.to_sparse(), "must be a dense tensor; got one of layout torch.sparse_coo"),
        (attr + 0j, "must hold real numbers; got torch.complex128"),
        (attr.to("meta"), "is on meta and `att` is on cpu"),
    ]
    for given, text in kinds:
        for add_self_loops in (False, True):
            conv = drop_in(3, 4, edge_dim=2, add_self_loops=add_self_loops)
            with pytest.raises((TypeError, ValueError), match=f"`edge_attr` {text}"):
                conv(x, EDGE_INDEX, given)
    lazy = drop_in(3, 4, edge_dim=-1)
    with pytest.raises(ValueError, match=r"\(n_edges=120, edge_dim\); got \(119, 2\)"):
        lazy(x, EDGE_INDEX, attr[1:])
    assert lazy(x, EDGE_INDEX, attr).shape == (N_NODES, 8)
    with pytest.raises(ValueError, match=r"`fill_value` must be .*got 'median'"):
        drop_in(3, 4, edge_dim=2, fill_value="median")(x, EDGE_INDEX, attr)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"of sources must have shape \(n_nodes, n_features\)"):
        drop_in(3, 4)(torch.randn(2, 5, 3).double(), EDGE_INDEX)
    with pytest.raises(TypeError, match=r"`x\[1\]` must be a torch.Tensor, .*; got NoneType"):
        drop_in((3, 3), 4)((torch.randn(5, 3).double(), None), EDGE_INDEX)
    with pytest.raises(ValueError, match="came to a layer without `edge_dim`"):
        drop_in(3, 4, add_self_loops=False)(
            torch.randn(N_NODES, 3).double(), EDGE_INDEX, torch.randn(120, 4).double()
        )
    with pytest.raises(ValueError, match="does not work on a bipartite graph"):
        gatv2.pyg.GATv2Conv((3, 5), 4, flow="target_to_source")
