"""A layer whose projections are plain is one function of autograd's, and the same as one of many."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from at_once import is_at_once
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from gatv2 import Graph, GraphAttentionV2Layer

N_NODES, N_FEATURES, N_OUT, N_HEADS = 9, 6, 8, 2

pytestmark = pytest.mark.skipif(
    pytest.importorskip("gatv2.numba.available").FAILURE is not None, reason="needs Numba"
)


def make(**options: Any) -> GraphAttentionV2Layer:
    torch.manual_seed(0)
    options = {"dropout": 0.0, **options}
    return GraphAttentionV2Layer(N_FEATURES, N_OUT, N_HEADS, **options)


def edges() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(N_NODES, (2, 30), generator=generator)


def features(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(N_NODES, N_FEATURES, dtype=dtype, requires_grad=True)


@contextmanager
def separately(layer: GraphAttentionV2Layer) -> Iterator[None]:
    """A hook that does nothing: projections are called by themselves."""
    handle = layer.linear_l.register_forward_hook(lambda *_: None)
    yield
    handle.remove()


def gradients(
    layer: GraphAttentionV2Layer, h: Any, graph: Any, edge_features: Tensor | None = None
) -> tuple[Tensor, ...]:
    out = layer(h, graph, edge_features=edge_features, seed=3)
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out.dtype)
    inputs = [*(h if isinstance(h, tuple) else (h,)), *layer.parameters()]
    if edge_features is not None:
        inputs.append(edge_features)
    wanted = [x for x in inputs if x.requires_grad]
    return out, *torch.autograd.grad(out, wanted, cotangent)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("prepares", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": True, "dropout": 0.4},
        {"bias": "projections", "is_concat": False},
        {"share_weights": True, "residual": True},
        {"share_weights": True, "bias": True, "flow": "source_to_target"},
        {"add_self_loops": True, "share_weights": True, "residual": True, "is_concat": False},
        {"add_self_loops": True, "dropout": 0.4, "flow": "source_to_target"},
    ],
)
def test_same_bits(dtype: torch.dtype, prepares: bool, options: dict[str, Any]) -> None:
    layer, h = make(dtype=dtype, **options), features(dtype)
    flow = options.get("flow", "target_to_source")
    graph = Graph.from_edge_index(edges(), N_NODES, flow=flow) if prepares else edges()
    with separately(layer):
        expected = gradients(layer, h, graph)
    assert not is_at_once(expected[0])
    for _ in range(2):  # also of a kind of call that has been served
        actual = gradients(layer, h, graph)
        assert is_at_once(actual[0])
        for a, e in zip(actual, expected, strict=True):
            assert torch.equal(a, e)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("wants_gradient", [False, True])
@pytest.mark.parametrize("prepares", [False, True])
@pytest.mark.parametrize("fill_value", [None, 0.5, "mean", "max"])
def test_edge_features(
    dtype: torch.dtype, wants_gradient: bool, prepares: bool, fill_value: Any
) -> None:
    loops = {} if fill_value is None else {"add_self_loops": True, "fill_value": fill_value}
    layer, h = make(edge_dim=3, dropout=0.4, dtype=dtype, **loops), features(dtype)
    edge_features = torch.randn(30, 3, dtype=dtype, requires_grad=wants_gradient)
    graph = Graph.from_edge_index(edges(), N_NODES) if prepares else edges()
    with separately(layer):
        expected = gradients(layer, h, graph, edge_features)
    assert not is_at_once(expected[0])
    for _ in range(2):
        actual = gradients(layer, h, graph, edge_features)
        assert is_at_once(actual[0])
        for a, e in zip(actual, expected, strict=True):
            assert torch.equal(a, e)
    with pytest.raises(ValueError, match="30"):
        layer(h, graph, edge_features=edge_features[1:])


@pytest.mark.parametrize("share_weights", [False, True])
def test_pairs(share_weights: bool) -> None:
    layer = make(share_weights=share_weights)
    h = features(), torch.randn(5, N_FEATURES, requires_grad=True)
    graph = edges() % torch.tensor([[N_NODES], [5]])
    with separately(layer):
        expected = gradients(layer, h, graph)
    actual = gradients(layer, h, graph)
    assert is_at_once(actual[0])
    assert not is_at_once(expected[0])
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("frozen", [("linear_l",), ("linear_r", "attn"), ("attn",), ("h",)])
def test_what_is_frozen_gets_no_gradient(frozen: tuple[str, ...]) -> None:
    layer, h = make(bias=True), features()
    h.requires_grad_("h" not in frozen)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(name.split(".")[0] not in frozen)
    with separately(layer):
        expected = gradients(layer, h, edges())
    actual = gradients(layer, h, edges())
    assert is_at_once(actual[0])
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e)


@pytest.mark.parametrize("edge_dim", [None, 2])
def test_derivatives_of_any_order(edge_dim: int | None) -> None:
    layer, h = make(bias=True, dtype=torch.float64, edge_dim=edge_dim), features(torch.float64)
    graph = Graph.from_edge_index(edges()[:, :12], N_NODES)
    names = [name for name, _ in layer.named_parameters()]
    of_edges = [] if edge_dim is None else [torch.randn(12, 2, dtype=h.dtype, requires_grad=True)]

    def attend(h: Tensor, *rest: Tensor) -> Tensor:
        named = dict(zip(names, rest, strict=False))
        options = {} if edge_dim is None else {"edge_features": rest[-1]}
        out: Tensor = torch.func.functional_call(layer, named, (h, graph), options)
        return out

    inputs = h, *layer.parameters(), *of_edges
    assert is_at_once(attend(*inputs))
    assert torch.autograd.gradcheck(attend, inputs)
    assert torch.autograd.gradgradcheck(attend, inputs)


def test_many_cotangents_at_once() -> None:
    layer, h = make(dtype=torch.float64), features(torch.float64)
    out = layer(h, edges())
    assert is_at_once(out)
    cotangents = torch.randn(3, *out.shape, dtype=out.dtype)
    inputs = h, *layer.parameters()
    batched = torch.autograd.grad(out, inputs, cotangents, is_grads_batched=True, retain_graph=True)
    single = [torch.autograd.grad(out, inputs, each, retain_graph=True) for each in cotangents]
    for actual, expected in zip(batched, map(torch.stack, zip(*single, strict=True)), strict=True):
        torch.testing.assert_close(actual, expected)


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def _of_all_modules(layer: GraphAttentionV2Layer, seen: list[object]) -> Callable[[], None]:
    hook = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    return hook.remove


def _replaced(layer: GraphAttentionV2Layer, seen: list[object]) -> Callable[[], None]:
    doubled = Doubled(N_FEATURES, N_OUT, bias=False)
    doubled.register_full_backward_hook(lambda *_: seen.append(doubled))
    layer.linear_r = doubled
    return lambda: None


def _by_itself(layer: GraphAttentionV2Layer, seen: list[object]) -> Callable[[], None]:
    forward = layer.linear_l.forward

    def and_note_it(x: Tensor) -> Tensor:
        seen.append(x)
        return forward(x)

    vars(layer.linear_l)["forward"] = and_note_it
    return lambda: None


@pytest.mark.parametrize("change", [_of_all_modules, _replaced, _by_itself])
def test_who_wants_to_see_projections_does(change: Callable[..., Callable[[], None]]) -> None:
    layer, h, seen = make(), features(), []  # type: ignore[var-annotated]
    assert is_at_once(layer(h, edges()))
    undo = change(layer, seen)
    out = layer(h, edges())
    out.backward(torch.randn_like(out))
    undo()
    assert not is_at_once(out)
    assert seen


def test_modes_see_each_operation_once() -> None:
    layer, h = make(), features()
    layer(h, edges())
    with FlopCounterMode(display=False) as counter:
        layer(h, edges())
    products = 2 * 2 * N_NODES * N_FEATURES * N_OUT
    assert counter.get_total_flops() == products


@pytest.mark.parametrize(
    "case",
    [
        lambda layer, h: layer(h, edges(), return_attention=True)[0],
        lambda layer, h: layer(h.expand(2, *h.shape), edges()),
        lambda layer, h: layer(h, torch.ones(N_NODES, N_NODES, 1, dtype=torch.bool)),
        lambda layer, h: make(add_self_loops=True)(h, torch.ones(N_NODES, N_NODES, 1)),
        lambda layer, h: make(add_self_loops=True, flow="source_to_target")(
            (h, h[:5]), edges() % torch.tensor([[N_NODES], [5]])
        ),
        lambda layer, h: make(kernel="torch")(h, edges()),
        lambda layer, h: make(backend="dense")(h, edges().unique(dim=1)),
    ],
)
def test_elsewhere_functions_stay_apart(case: Callable[..., Tensor]) -> None:
    out = case(make(), features())
    assert not is_at_once(out)
    out.backward(torch.randn_like(out))


def test_under_autocast() -> None:
    layer, h = make(), features()
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(h, edges())
    assert out.dtype == torch.bfloat16
    assert not is_at_once(out)


@pytest.mark.parametrize("is_concat", [False, True])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode: Callable[[], Any], is_concat: bool) -> None:
    layer, h = make(is_concat=is_concat, bias=True), features()
    expected = layer(h, edges())
    for _ in range(2):
        with mode():
            out = layer(h, edges())
        assert torch.equal(out, expected)
        assert not out.requires_grad


def test_the_result_may_be_written_to() -> None:
    layer, h = make(), features()
    out = layer(h, edges())
    assert is_at_once(out)
    expected = torch.autograd.grad(layer(h, edges()).mul(2).sin().sum(), h)
    assert torch.equal(*torch.autograd.grad(out.mul_(2).sin().sum(), h), *expected)


def test_a_write_between_the_passes_is_seen() -> None:
    layer, h = make(), features()
    out = layer(h, edges())
    with torch.no_grad():
        h.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward(torch.randn_like(out))


@pytest.mark.parametrize("has_loops", [False, True])
def test_errors_are_those_of_separate_calls(has_loops: bool) -> None:
    layer, h = make(add_self_loops=has_loops), features()
    graph = Graph.from_edge_index(edges(), N_NODES + 1)
    with pytest.raises(ValueError, match=str(N_NODES + 1)):
        layer(h, graph)
    backwards = make(add_self_loops=has_loops, flow="source_to_target")
    with pytest.raises(ValueError, match="backwards"):
        backwards(h, Graph.from_edge_index(edges(), N_NODES))
    with pytest.raises(IndexError, match="query"):
        layer(h, torch.tensor([[0, N_NODES], [0, 0]]))
    layer.linear_l = nn.Linear(N_FEATURES, N_OUT + 2, bias=False)
    with pytest.raises(ValueError, match="must give 2 heads"):
        layer(h, edges())


@pytest.mark.parametrize("prepares", [False, True])
def test_one_seed_is_drawn(prepares: bool) -> None:
    layer, h = make(dropout=0.5), features()
    graph = Graph.from_edge_index(edges(), N_NODES) if prepares else edges()

    def drawn() -> tuple[Tensor, Tensor]:
        torch.manual_seed(5)
        return layer(h, graph), torch.rand(1)

    with separately(layer):
        expected, after = drawn()
    for _ in range(3):
        actual, then = drawn()
        assert is_at_once(actual)
        assert torch.equal(actual, expected)
        assert torch.equal(then, after)


def test_a_checkpoint_drops_alike() -> None:
    layer, h = make(dropout=0.5), features()
    for use_reentrant in (False, True):
        torch.manual_seed(3)
        expected = torch.autograd.grad(layer(h, edges()).square().sum(), layer.linear_l.weight)
        torch.manual_seed(3)
        out = checkpoint(layer, h, edges(), use_reentrant=use_reentrant)
        layer.zero_grad()
        out.square().sum().backward()
        torch.testing.assert_close((layer.linear_l.weight.grad,), expected)


class Twice(GraphAttentionV2Layer):
    def attend(self, inputs: Any, **options: Any) -> Any:
        heads, alpha = super().attend(inputs, **options)
        return 2 * heads, alpha


def test_what_a_user_overrides_is_called() -> None:
    torch.manual_seed(0)
    layer, h = Twice(N_FEATURES, N_OUT, N_HEADS, dropout=0.0), features()
    expected = make()(h, edges())
    torch.testing.assert_close(layer(h, edges()), 2 * expected)
    plain = make()
    attend = plain.attend
    vars(plain)["attend"] = lambda inputs, **options: (2 * attend(inputs, **options)[0], None)
    torch.testing.assert_close(plain(h, edges()), 2 * expected)
    joins = make()
    vars(joins)["join"] = lambda heads, h_query: heads.sum(-2)
    assert joins(h, edges()).shape == (N_NODES, N_OUT // N_HEADS)


def test_a_layer_with_edge_features_asks_for_them() -> None:
    with pytest.raises((TypeError, ValueError), match="edge_features"):
        make(edge_dim=3)(features(), edges())


def test_attn_of_another_shape_is_refused() -> None:
    layer = make()
    layer.attn = nn.Parameter(layer.attn.detach().reshape(-1, 2))
    with pytest.raises(ValueError, match="attn"):
        layer(features(), edges())


def test_a_replaced_shared_projection_is_that_of_both_sides() -> None:
    layer, h = make(share_weights=True), features()
    layer.linear_l = nn.Linear(N_FEATURES, N_OUT, bias=False)
    with separately(layer):
        expected = layer(h, edges())
    actual = layer(h, edges())
    assert is_at_once(actual)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("name", ["linear_l", "linear_r", "linear_e"])
@pytest.mark.parametrize("n_columns", [1, 6])
def test_weights_set_between_the_passes_do_not_count(name: str, n_columns: int) -> None:
    layer, h = make(edge_dim=6), features()
    edge_features = torch.randn(30, 6, requires_grad=True)
    out = layer(h, edges(), edge_features=edge_features).square().sum()
    wanted = h, edge_features, layer.attn
    expected = torch.autograd.grad(out, wanted, retain_graph=True)
    weight = getattr(layer, name).weight
    weight.data = torch.ones(weight.shape[0], n_columns)
    for actual, e in zip(torch.autograd.grad(out, wanted), expected, strict=True):
        assert torch.equal(actual, e)


def _as_buffer(linear: nn.Linear, value: Tensor) -> None:
    del linear.bias
    linear.register_buffer("bias", value)


def _as_attribute(linear: nn.Linear, value: Tensor) -> None:
    linear._parameters.pop("bias")
    linear.bias = value  # type: ignore[assignment]


def _past_the_module(linear: nn.Linear, value: Tensor) -> None:
    object.__setattr__(linear, "bias", value)


@pytest.mark.parametrize("give", [_as_buffer, _as_attribute, _past_the_module])
@pytest.mark.parametrize("name", ["linear_l", "linear_r", "linear_e"])
def test_a_bias_that_is_no_parameter_counts(
    give: Callable[[nn.Linear, Tensor], None], name: str
) -> None:
    layer, h, edge_features = make(edge_dim=3), features(), torch.randn(30, 3)
    before = layer(h, edges(), edge_features=edge_features)
    give(getattr(layer, name), torch.randn(N_OUT))
    out = layer(h, edges(), edge_features=edge_features)
    assert not is_at_once(out)
    assert not torch.allclose(out, before)


def test_what_is_set_past_the_module_counts() -> None:
    layer, h = make(), features()
    for owner, name in ((layer, "attn"), (layer.linear_l, "weight")):
        before = layer(h, edges())
        object.__setattr__(owner, name, torch.randn_like(getattr(owner, name)))
        assert not torch.allclose(layer(h, edges()), before)


def test_a_module_of_edges_set_past_the_module_counts() -> None:
    layer, h = make(edge_dim=3), features()
    x = torch.randn(edges().shape[1], 3)
    before = layer(h, edges(), edge_features=x)
    own = nn.Linear(3, layer.linear_l.out_features, bias=False)
    object.__setattr__(layer, "linear_e", own)
    assert not torch.allclose(layer(h, edges(), edge_features=x), before)
    object.__setattr__(layer, "linear_e", None)
    with pytest.raises(ValueError, match="edge_dim"):
        layer(h, edges(), edge_features=x)


def test_a_module_of_edges_is_not_asked_for_its_truth() -> None:
    class Wrapped(nn.Linear):
        def __len__(self) -> int:
            raise TypeError

    layer, h = make(edge_dim=3), features()
    layer.linear_e = Wrapped(3, layer.linear_l.out_features, bias=False)
    x = torch.randn(edges().shape[1], 3)
    assert layer(h, edges(), edge_features=x).isfinite().all()


@pytest.mark.parametrize("sizes", [(0, 0), (0, 3), (3, 0)])
def test_no_nodes(sizes: tuple[int, int]) -> None:
    layer = make()
    n_queries, n_keys = sizes
    h = torch.randn(n_queries, N_FEATURES, requires_grad=True), torch.randn(n_keys, N_FEATURES)
    out = layer(h, torch.empty(2, 0, dtype=torch.long))
    assert is_at_once(out)
    out.backward(torch.randn_like(out))
    assert layer.linear_l.weight.grad is not None
    assert not layer.linear_l.weight.grad.any()


def test_what_no_gradient_needs_may_be_written_to() -> None:
    layer = make()
    layer.linear_l.requires_grad_(False)
    layer.linear_r.requires_grad_(False)
    h = features()
    x = h + 0
    out = layer(x, edges())
    with torch.no_grad():
        x.zero_()
    out.backward(torch.randn_like(out))
    layer, h = make(), features().detach()
    out = layer(h, edges())
    with torch.no_grad():
        layer.linear_l.weight.zero_()
    out.backward(torch.randn_like(out))


def test_a_patched_class_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, h, seen = make(), features(), []
    forward = nn.Linear.forward

    def and_note_it(linear: nn.Linear, x: Tensor) -> Tensor:
        seen.append(linear)
        return forward(linear, x)

    monkeypatch.setattr(nn.Linear, "forward", and_note_it)
    assert not is_at_once(layer(h, edges()))
    assert len(seen) == 2


def test_a_compiler_traces_the_graph_once() -> None:
    layer, h = make(), features()
    n_sorts = []

    def count(module: torch.fx.GraphModule, _inputs: Any) -> Callable[..., Any]:
        n_sorts.append(sum("sort" in str(node.target) for node in module.graph.nodes))
        return module.forward

    torch.compile(layer, backend=count)(h, edges())
    alone = separately(layer)
    torch._dynamo.reset()
    with alone:
        torch.compile(layer, backend=count)(h, edges())
    assert sum(n_sorts[: len(n_sorts) // 2]) == sum(n_sorts[len(n_sorts) // 2 :])


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_checkpoint_may_be_looked_at(dropout: float) -> None:
    layer, h = make(dropout=dropout), features()
    layer(h, edges())
    torch.manual_seed(3)
    expected = torch.autograd.grad(layer(h, edges()).square().sum(), h)
    torch.manual_seed(3)
    out = checkpoint(layer, h, edges(), use_reentrant=False)
    assert isinstance(out, Tensor)
    with FlopCounterMode(display=False):
        out.square().sum().backward()
    assert h.grad is not None
    torch.testing.assert_close((h.grad,), expected)


def test_a_bias_of_another_shape_is_left_to_its_module() -> None:
    layer, h = make(bias=True), features()
    layer.linear_r.bias = nn.Parameter(torch.randn(N_NODES, N_OUT))
    out = layer(h, edges())
    assert not is_at_once(out)
    out.backward(torch.randn_like(out))


def test_a_wider_bias_widens_the_result() -> None:
    layer, h, graph = make(), features(), edges()
    without = layer(h, graph)
    layer.bias = nn.Parameter(torch.rand(3, N_NODES, N_OUT))
    out = layer(h, graph)
    assert is_at_once(out)
    assert torch.equal(out, without + layer.bias)


@pytest.mark.filterwarnings("ignore")  # of PyTorch's own, about gradients of what is no leaf
@pytest.mark.parametrize("is_biased", [False, True])
def test_compiled_autograd_reads_the_functions(is_biased: bool) -> None:
    """Also where they stay apart, as with a bias of the scores."""
    torch.compiler.reset()
    layer, h = make(dtype=torch.float64), features(torch.float64)
    score_bias = torch.randn(30, N_HEADS, dtype=torch.float64) if is_biased else None
    cotangent = torch.randn(N_NODES, N_OUT, dtype=torch.float64)

    def gradients(context: AbstractContextManager[object]) -> list[Tensor | None]:
        inputs = [h, *layer.parameters()]
        for x in inputs:
            x.grad = None
        loss = (layer(h, edges(), score_bias=score_bias) * cotangent).sum()
        with context:
            loss.backward()
        return [x.grad for x in inputs]

    expected = gradients(nullcontext())
    compiled = torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager"))
    torch.testing.assert_close(gradients(compiled), expected, rtol=0, atol=1e-10)
