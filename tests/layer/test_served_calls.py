"""A graph that has served a call, or another one that has, serves and refuses as if none had."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import gatv2.functional
from gatv2 import Graph, GraphAttentionV2Layer, dispatch, gatv2_attention
from gatv2.graph import served
from gatv2.graph.edges import changed
from gatv2.graph.served import MOST_KINDS, MOST_MANNERS

Call = dict[str, Any]
N_NODES = 5


def fresh_graph() -> Graph:
    edge_index = torch.tensor([[0, 0, 1, 2, 4], [1, 2, 2, 0, 4]])
    return Graph.from_edge_index(edge_index, N_NODES)


def good_call() -> Call:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(N_NODES, 2, 4, generator=generator) for _ in range(2))
    attn = torch.randn(2, 4, generator=generator)
    return {"query": query, "key": key, "attn": attn, "negative_slope": 1.0, "dropout": 0.0}


def of_edges() -> Call:
    """What edges have in a call: features, their projection, and a bias of the scores."""
    generator = torch.Generator().manual_seed(1)
    features, projection, bias = (
        torch.randn(size, generator=generator) for size in ((N_NODES, 3), (2, 4, 3), (N_NODES, 1))
    )
    return {"edge_features": features, "edge_projection": projection, "score_bias": bias}


def served_graph() -> Graph:
    graph = fresh_graph()
    gatv2_attention(graph=graph, **good_call())
    gatv2_attention(graph=graph, **good_call(), **of_edges())
    assert len(vars(graph)["_served"]) == 2
    return graph


def unknown_graph() -> Graph:
    """A graph that has served nothing, as nothing has been served."""
    served._chosen.clear()
    return fresh_graph()


def graph_like_another() -> Graph:
    """A graph that has served nothing, where another one has."""
    unknown_graph()
    served_graph()
    assert len(served._chosen) == 2
    return fresh_graph()


KNOWN = {"graph": served_graph, "manner": graph_like_another}
"""What makes a graph of whose calls something is known."""


def with_argument(name: str, value: object) -> Callable[[Call], Call]:
    return lambda call: {**call, name: value}


def with_tensor(name: str, change: Callable[[Tensor], object]) -> Callable[[Call], Call]:
    return lambda call: {**call, name: change(call[name])}


BAD = {
    "no tensor": with_tensor("query", Tensor.numpy),
    "another dtype": with_tensor("key", Tensor.double),
    "integers": lambda call: {
        name: value.long() if isinstance(value, Tensor) else value for name, value in call.items()
    },
    "other heads": with_tensor("attn", lambda attn: attn[:1]),
    "another device": with_tensor("key", lambda key: key.to("meta")),
    "too many queries": with_tensor("query", lambda query: torch.cat((query, query))),
    "no slope": with_argument("negative_slope", None),
    "an infinite slope": with_argument("negative_slope", float("inf")),
    "too much dropout": with_argument("dropout", 1.0),
    "the other flow": with_argument("flow", "source_to_target"),
    "no flow": with_argument("flow", "up"),
    "no backend": with_argument("backend", "spares"),
    "no kernel": with_argument("kernel", "nunba"),
    "a list of kernels": with_argument("kernel", ["numba"]),
    "a list of flows": with_argument("flow", ["source_to_target"]),
    "a kernel for GPUs": with_argument("kernel", "triton"),
    "no seed": lambda call: {**call, "dropout": 0.5, "seed": "7"},
    "edge features alone": with_argument("edge_features", torch.zeros(N_NODES, 3)),
    "a bias of other heads": with_argument("score_bias", torch.zeros(N_NODES, 3)),
    "a bias of too few edges": lambda call: {
        **call,
        **of_edges(),
        "score_bias": torch.zeros(1, 1),
    },
    "edge features of too many edges": lambda call: {
        **call,
        **of_edges(),
        "edge_features": torch.zeros(N_NODES + 1, 3),
    },
    "sparse edge features": lambda call: {
        **call,
        **of_edges(),
        "edge_features": of_edges()["edge_features"].to_sparse(),
    },
}


@pytest.mark.parametrize("known", KNOWN.values(), ids=KNOWN)
@pytest.mark.parametrize("spoil", BAD.values(), ids=BAD)
def test_what_an_unknown_graph_refuses_is_refused(
    spoil: Callable[[Call], Call], known: Callable[[], Graph]
) -> None:
    call = spoil(good_call())
    with pytest.raises((TypeError, ValueError)) as expected:
        gatv2_attention(graph=unknown_graph(), **call)
    with pytest.raises(expected.type) as got:
        gatv2_attention(graph=known(), **call)
    assert str(got.value) == str(expected.value)


SWAPPED: dict[str, Callable[[Graph], None]] = {
    "more queries": lambda graph: graph.query_ptr.set_(torch.zeros(9, dtype=torch.int32)),  # type: ignore[call-overload]
    "more keys": lambda graph: object.__setattr__(graph, "n_keys", 9),
    "the other flow": lambda graph: object.__setattr__(graph, "flow", "source_to_target"),
    "a mask of other heads": lambda graph: object.__setattr__(
        graph, "head_mask", torch.ones(N_NODES, 3, dtype=torch.bool)
    ),
}


@pytest.mark.parametrize("swap", SWAPPED.values(), ids=SWAPPED)
def test_a_graph_whose_form_has_changed_is_looked_at(swap: Callable[[Graph], None]) -> None:
    known, fresh = served_graph(), fresh_graph()
    swap(known)
    swap(fresh)
    outcomes = []
    for graph in (fresh, known):
        try:
            outcomes.append(str(gatv2_attention(graph=graph, **good_call())))
        except ValueError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


def call_with_everything() -> Call:
    """All that a call over edges may read of a graph."""
    features = {
        name: value.requires_grad_() if isinstance(value, Tensor) else value
        for name, value in {**good_call(), **of_edges()}.items()
    }
    return {**features, "dropout": 0.5, "seed": 3, "return_attention": True}


def graph_with_everything() -> Graph:
    """A graph with numbers of nodes of its own, and with a mask of heads that lies in columns."""
    graph = replace(
        fresh_graph(),
        head_mask=torch.tensor([[1, 1], [1, 0], [0, 1], [1, 1], [1, 1]], dtype=torch.bool)
        .T.contiguous()
        .T,
        query_id=torch.arange(N_NODES) + 7,
        key_id=torch.arange(N_NODES) + 9,
    )
    graph.check()
    return graph


def outcome(graph: Graph, **options: Any) -> list[Tensor]:
    """Results and gradients of a call of graphs that may have served it before."""
    call = {**call_with_everything(), **options}
    if graph.head_mask is not None:
        del call["score_bias"]  # without it, kernels read the mask itself
    results = gatv2_attention(graph=graph, **call)
    leaves = [x for x in call.values() if isinstance(x, Tensor)]
    return [*results, *torch.autograd.grad(sum(x.sin().sum() for x in results), leaves)]


def lead_elsewhere(graph: Graph) -> None:
    """The same numbers of edges, to other keys."""
    keys = (graph.key_index + 2) % N_NODES
    order = torch.argsort(graph.query_index.long() * N_NODES + keys, stable=True)
    graph.key_index.copy_(keys[order])


WRITTEN: dict[str, Callable[[Graph], object]] = {
    "other keys": lead_elsewhere,
    "elsewhere in memory": lambda graph: [
        x.share_memory_() for x in (*graph.by_key, *vars(graph).values()) if isinstance(x, Tensor)
    ],
    "another mask of heads": lambda graph: (
        graph.head_mask is None or graph.head_mask.logical_not_()
    ),
    "other numbers of edges": lambda graph: graph.edge_id.copy_(graph.edge_id.flip(0)),
    "other memory for the numbers of edges": lambda graph: setattr(
        graph.edge_id, "data", graph.edge_id.flip(0)
    ),
    "other numbers of queries": lambda graph: setattr(
        graph.query_id, "data", torch.arange(N_NODES) + 50
    ),
}


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("write", WRITTEN.values(), ids=WRITTEN)
def test_what_is_written_to_a_graph_is_read(
    write: Callable[[Graph], object], has_bias: bool
) -> None:
    graph, fresh = graph_with_everything(), graph_with_everything()
    if has_bias:
        graph, fresh = (changed(x, head_mask=None) for x in (graph, fresh))
    for _ in range(2):
        outcome(graph)
    write(graph)
    write(fresh)
    expected = outcome(fresh, kernel="torch")
    for actual, e in zip(outcome(graph), expected, strict=True):
        torch.testing.assert_close(actual, e)


@pytest.mark.parametrize("kernel", ["auto", "torch"])
@pytest.mark.parametrize("backend", ["sparse", "dense"])
def test_a_graph_that_an_operation_has_spoiled_is_refused(backend: Any, kernel: str) -> None:
    graph, options = fresh_graph(), {"backend": backend, "kernel": kernel}
    for _ in range(2):
        gatv2_attention(graph=graph, **good_call(), **options)
    graph.key_index.fill_(N_NODES)
    for _ in range(2):
        with pytest.raises(ValueError, match="`key_index` must lie in"):
            gatv2_attention(graph=graph, **good_call(), **options)


def test_memory_may_move_before_backward() -> None:
    graph, expected = graph_with_everything(), outcome(graph_with_everything())
    call = call_with_everything()
    del call["score_bias"]
    results = gatv2_attention(graph=graph, **call)
    WRITTEN["elsewhere in memory"](graph)
    leaves = [x for x in call.values() if isinstance(x, Tensor)]
    gradients = torch.autograd.grad(sum(x.sin().sum() for x in results), leaves)
    torch.testing.assert_close([*results, *gradients], expected)


def test_other_kernels_are_chosen_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = served_graph()
    plain = tuple(kernel for kernel in dispatch.KERNELS if kernel.name == "torch")
    monkeypatch.setattr(dispatch, "KERNELS", plain)
    with torch.autograd.profiler.profile() as profile:
        gatv2_attention(graph=graph, **good_call())
    assert not any("gatv2" in event.name for event in profile.function_events)
    out = gatv2_attention(graph=graph, **good_call())
    torch.testing.assert_close(out, gatv2_attention(graph=graph, **good_call(), kernel="torch"))
    kernel, *_ = vars(graph)["_served"].values()
    assert kernel == (plain, plain[0].attention)


GOOD: dict[str, Callable[[Call], Call]] = {
    "the same": lambda call: call,
    "another slope": with_argument("negative_slope", 0.2),
    "dropout": lambda call: {**call, "dropout": 0.5, "seed": 3},
    "coefficients": with_argument("return_attention", True),
    "the log-sum-exp": with_argument("return_lse", True),
    "a mask": with_argument("backend", "dense"),
    "plain operations": with_argument("kernel", "torch"),
    "a bias": with_argument("score_bias", torch.arange(5.0).unsqueeze(-1)),
    "edge features and a bias": lambda call: {**call, **of_edges()},
    "edge features of a batch": lambda call: {
        **call,
        **of_edges(),
        "edge_features": torch.stack((of_edges()["edge_features"],) * 2),
    },
    "float64": lambda call: {
        name: value.double() if isinstance(value, Tensor) else value for name, value in call.items()
    },
}


@pytest.mark.parametrize("known", KNOWN.values(), ids=KNOWN)
@pytest.mark.parametrize("change", GOOD.values(), ids=GOOD)
def test_what_an_unknown_graph_computes_is_computed(
    change: Callable[[Call], Call], known: Callable[[], Graph]
) -> None:
    call = change(good_call())
    expected = gatv2_attention(graph=unknown_graph(), **call)
    torch.testing.assert_close(gatv2_attention(graph=known(), **call), expected, rtol=0, atol=0)


def test_graphs_of_other_sizes_are_served_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    graph_like_another()

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("chosen once more")

    monkeypatch.setattr(gatv2.functional, "select_kernel", refuse)
    for n_nodes in (3, 8):
        call = good_call()
        for name in ("query", "key"):
            call[name] = call[name].repeat(2, 1, 1)[:n_nodes]
        edge_index = torch.tensor([[0, 1, 2, 2], [0, 2, 1, 0]])
        out = gatv2_attention(graph=edge_index, **call)
        graph = Graph.from_edge_index(edge_index, n_nodes)
        torch.testing.assert_close(gatv2_attention(graph=graph, **call), out, rtol=0, atol=0)
    with pytest.raises(AssertionError, match="chosen once more"):
        gatv2_attention(graph=fresh_graph(), **{**good_call(), "negative_slope": 0.3})


UNLIKE: dict[str, Callable[[], Graph]] = {
    "fewer queries": lambda: Graph.from_edge_index(torch.tensor([[0], [1]]), (4, N_NODES)),
    "fewer keys": lambda: Graph.from_edge_index(torch.tensor([[0], [1]]), (N_NODES, 4)),
    "the other flow": lambda: Graph.from_edge_index(
        torch.tensor([[0], [1]]), N_NODES, flow="source_to_target"
    ),
    "a mask of heads": lambda: Graph.from_mask(
        torch.eye(N_NODES).bool().unsqueeze(-1).expand(-1, -1, 3)
    ),
    "a batch": lambda: Graph.from_mask(torch.eye(N_NODES).bool().expand(1, -1, -1).unsqueeze(-1)),
    "by hand": lambda: replace(fresh_graph(), n_keys=4),
}


@pytest.mark.parametrize("make", UNLIKE.values(), ids=UNLIKE)
def test_a_graph_unlike_those_that_were_served_is_looked_at(make: Callable[[], Graph]) -> None:
    def outcome_of(graph: Graph) -> str:
        try:
            return str(gatv2_attention(graph=graph, **good_call()))
        except ValueError as error:
            return str(error)

    unknown_graph()
    expected = outcome_of(make())
    graph_like_another()
    assert outcome_of(make()) == expected


def test_few_manners_are_remembered() -> None:
    for step in range(2 * MOST_MANNERS):
        gatv2_attention(graph=fresh_graph(), **{**good_call(), "negative_slope": step / 100})
        assert 1 <= len(served._chosen) <= MOST_MANNERS


SHORTENED: dict[str, tuple[str, Call]] = {
    "edges": ("key_index", {}),
    "numbers of edges": ("edge_id", of_edges()),
    "numbers of queries": ("query_id", {"dropout": 0.5, "seed": 1}),
    "numbers of keys": ("key_id", {"dropout": 0.5, "seed": 1}),
}


@pytest.mark.parametrize(("name", "options"), SHORTENED.values(), ids=SHORTENED)
def test_a_graph_that_has_been_shortened_is_refused(name: str, options: Call) -> None:
    graph = graph_with_everything()
    outcome(graph)
    tensor = getattr(graph, name)
    tensor.data = tensor[:2].clone()
    with pytest.raises(ValueError, match="not a graph"):
        gatv2_attention(graph=graph, **{**good_call(), **options})


def test_a_graph_of_other_edges_has_another_order_of_keys() -> None:
    graph, other = fresh_graph(), Graph.from_edge_index(torch.tensor([[0, 3], [1, 2]]), N_NODES)
    query = good_call()["query"].requires_grad_()
    gatv2_attention(graph=graph, **{**good_call(), "query": query})
    for name in ("query_ptr", "key_index", "query_index", "edge_id"):
        getattr(graph, name).data = getattr(other, name).clone()
    assert graph.by_key.edge.shape == (5,)
    call = {**good_call(), "query": query}
    expected = gatv2_attention(graph=other, **call)
    out = gatv2_attention(graph=graph, **call)
    cotangent = torch.randn(out.shape)
    assert torch.equal(out, expected)
    assert torch.equal(
        *torch.autograd.grad(out, query, cotangent),
        *torch.autograd.grad(expected, query, cotangent),
    )


def test_a_kernel_that_looks_at_sizes_is_asked_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = next(kernel for kernel in dispatch.KERNELS if kernel.name == "torch")

    def unsupported(query: Tensor, *_: Tensor) -> list[str]:
        return ["too many nodes"] if query.shape[0] > 4 else []

    small = dispatch.Kernel("small", "sparse", plain.attention, unsupported)
    monkeypatch.setattr(dispatch, "KERNELS", (small, *dispatch.KERNELS))
    call = {**good_call(), "kernel": "small"}
    for name in ("query", "key"):
        call[name] = call[name][:3]
    gatv2_attention(graph=torch.tensor([[0, 1], [1, 2]]), **call)
    with pytest.raises(ValueError, match="too many nodes"):
        gatv2_attention(graph=fresh_graph(), **{**good_call(), "kernel": "small"})


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_transforms_see_the_call() -> None:
    graph, call = served_graph(), good_call()
    query = call.pop("query")

    def attend(query: Tensor, graph: Graph) -> Tensor:
        return gatv2_attention(query, graph=graph, **call)

    for transform in (
        lambda f: torch.func.jvp(f, (query,), (query.cos(),)),
        lambda f: torch.func.vjp(f, query)[1](query.cos()),
        lambda f: torch.vmap(f)(torch.stack((query, query.cos()))[:1]),
        lambda f: torch.func.jacrev(f)(query),
    ):
        of_served, of_fresh = (
            transform(lambda query, graph=graph: attend(query, graph))
            for graph in (graph, fresh_graph())
        )
        torch.testing.assert_close(of_served, of_fresh, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match=r"torch\.jit\.trace keeps"):
        torch.jit.trace(lambda query: attend(query, graph), query)


def test_it_remembers_few_calls_and_hands_none_on() -> None:
    graph = served_graph()
    for step in range(3 * MOST_KINDS):
        gatv2_attention(graph=graph, **{**good_call(), "dropout": step / 100}, seed=step)
        assert 1 <= len(vars(graph)["_served"]) <= MOST_KINDS
    assert "_served" not in graph.__getstate__()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_layer_in_a_traced_function_is_refused_before_it_projects() -> None:
    layer, graph = GraphAttentionV2Layer(3, 4, 2), served_graph()
    with pytest.raises(RuntimeError, match=r"torch\.jit\.trace keeps"):
        torch.jit.trace(lambda h: layer(h, graph), torch.randn(N_NODES, 3))


def test_a_projection_of_another_width_is_named() -> None:
    layer = GraphAttentionV2Layer(3, 4, 2)
    layer.linear_r = torch.nn.Linear(3, 7)
    with pytest.raises(ValueError, match="`linear_r` must give 2 heads of 2 features, 4 together"):
        layer(torch.randn(N_NODES, 3), served_graph())
