"""The fused kernels are PyTorch operators: checked, differentiated twice, transformed, exported."""

import subprocess
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from attention import as_vector, attention_over
from torch import Tensor
from torch.func import grad, jacrev, jvp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from gatv2 import Graph, GraphAttentionV2Layer, select_kernel
from gatv2.testing import assert_agrees

pytest.importorskip("numba")

N_QUERIES, N_KEYS, N_HEADS, N_HIDDEN = 5, 7, 3, 2
MASK = torch.rand(N_QUERIES, N_KEYS, 1, generator=torch.Generator().manual_seed(1)) < 0.5
HEAD_MASK = torch.rand(N_QUERIES, N_KEYS, 3, generator=torch.Generator().manual_seed(2)) < 0.5

PAIRS = [
    pytest.param(MASK, 0.0, False, False, id="plain"),
    pytest.param(MASK, 0.4, True, True, id="dropout-alpha-edges"),
    pytest.param(HEAD_MASK, 0.0, True, True, id="heads-alpha-edges"),
    pytest.param(HEAD_MASK, 0.4, False, True, id="heads-dropout-edges"),
    pytest.param(HEAD_MASK, 0.4, True, False, id="heads-dropout-alpha"),
]
"""Mask, dropout, with coefficients, with edge features: any two of them in all four ways."""


@pytest.fixture(params=["dense", "sparse"])
def backend(request: pytest.FixtureRequest) -> Any:
    """Both backends in turn."""
    return request.param


def random_features(*batch_shape: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Query, key and attn."""
    query = torch.randn(*batch_shape, N_QUERIES, N_HEADS, N_HIDDEN, dtype=dtype)
    key = torch.randn(*batch_shape, N_KEYS, N_HEADS, N_HIDDEN, dtype=dtype)
    return [query, key, torch.randn(N_HEADS, N_HIDDEN, dtype=dtype)]


def random_edges(backend: str, mask: Tensor, *batch_shape: int) -> list[Tensor]:
    """Edge features and their projection; without a mask of heads a bias of the scores, too."""
    rows = mask.shape[:2] if backend == "dense" else (int(mask.any(-1).sum()),)
    x = torch.randn(*batch_shape, *rows, 4, dtype=torch.float64)
    bias = torch.randn(*batch_shape, *rows, N_HEADS, dtype=torch.float64)
    projection = torch.randn(N_HEADS, N_HIDDEN, 4, dtype=torch.float64)
    return [x, projection, bias][: 3 if mask.shape[-1] == 1 else 2]


def adjacency_of(
    backend: str, mask: Tensor, has_edge_features: bool = False
) -> list[Tensor | None]:
    """The operator's tensors of a mask."""
    if backend == "dense":
        return [mask]
    graph = Graph.from_mask(mask)
    edge_id = graph.edge_id if has_edge_features else None
    return [graph.query_ptr, graph.key_index, *graph.by_key, graph.head_mask, edge_id, None, None]


# PyTorch's own, in newer versions: opcheck reads what it has just computed
@pytest.mark.filterwarnings(
    r"ignore:The \.grad attribute of a Tensor that is not a leaf:UserWarning"
)
@pytest.mark.parametrize(("mask", "dropout", "with_alpha", "with_edges"), PAIRS)
def test_opcheck(
    backend: str, mask: Tensor, dropout: float, with_alpha: bool, with_edges: bool
) -> None:
    tensors = [*random_features(2), *(random_edges(backend, mask, 2) if with_edges else ())]
    features: list[Tensor | None] = [x.requires_grad_() for x in tensors]
    features += [None] * (6 - len(features))
    adjacency = adjacency_of(backend, mask, with_edges)
    seed = torch.tensor(3) if dropout else None
    options = (seed, 1, 0, 0.2, dropout, with_alpha, features[-1] is not None)
    operator = getattr(torch.ops.gatv2, f"{backend}_attention").default
    torch.library.opcheck(operator, (*features, *adjacency, *options))
    out, lse, alpha = operator(*features, *adjacency, *options)
    d_out, d_lse = torch.randn_like(out), torch.randn_like(lse)
    d_alpha = torch.randn_like(alpha) if with_alpha else None
    gradient = getattr(torch.ops.gatv2, f"{backend}_attention_backward").default
    d_out, d_lse = d_out.requires_grad_(), d_lse.masked_fill(lse.isinf(), 0.0).requires_grad_()
    arguments = (d_out, d_lse, d_alpha, lse.detach(), *features, *adjacency, *options)
    torch.library.opcheck(gradient, arguments)


def test_any_two_options_meet_in_every_way() -> None:
    cases = [
        (parameters.values[0] is MASK, *map(bool, parameters.values[1:])) for parameters in PAIRS
    ]
    for one, other in combinations(zip(*cases, strict=True), 2):
        assert len(set(zip(one, other, strict=True))) == 4


def function_of(backend: Any, kernel: str, mask: Tensor = HEAD_MASK) -> Any:
    """Attention as a function of the features, with coefficients and dropout, as one vector."""
    options = {"dropout": 0.3, "seed": 9, "return_attention": True}
    return as_vector(attention_over(mask, backend=backend, kernel=kernel, **options))


def test_gradgradcheck(backend: str) -> None:
    features = [x.requires_grad_() for x in random_features(2)]
    function = function_of(backend, "numba", MASK)
    assert torch.autograd.gradcheck(function, features, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, features, fast_mode=True)


def test_second_order_equals_the_reference(backend: str) -> None:
    features = random_features(2)
    weights = torch.randn(function_of(backend, "torch")(*features).shape, dtype=torch.float64)

    def second_order(kernel: str) -> Any:
        def penalty(*features: Tensor) -> Tensor:
            loss = lambda *x: (function_of(backend, kernel)(*x) * weights).sum()  # noqa: E731
            gradients = grad(loss, argnums=(0, 1, 2))(*features)
            return torch.stack([g.square().sum() for g in gradients]).sum()

        return grad(penalty, argnums=(0, 1, 2))(*features)

    for actual, exact in zip(second_order("numba"), second_order("torch"), strict=True):
        assert_agrees(actual, exact)


def test_jacobians(backend: str) -> None:
    features = random_features()
    jacobians = [
        jacrev(function_of(backend, kernel), argnums=(0, 1, 2))(*features)
        for kernel in ("numba", "torch")
    ]
    for actual, exact in zip(*jacobians, strict=True):
        assert_agrees(actual, exact)


@pytest.mark.parametrize("in_dims", [(0, 0, None), (0, None, None), (None, 1, 0), (None, None, 0)])
def test_vmap(backend: str, in_dims: Any) -> None:
    """Of values, and of gradients sample by sample, which do not mix."""
    features = [
        x if dim is None else torch.randn(*x.shape[:dim], 4, *x.shape[dim:], dtype=x.dtype)
        for x, dim in zip(random_features(2), in_dims, strict=True)
    ]
    for kernel in ("numba", "torch"):
        function = function_of(backend, kernel)
        loss = lambda *x: function(*x).square().sum()  # noqa: B023, E731
        results = [
            vmap(function, in_dims)(*features),
            *vmap(grad(loss, argnums=(0, 1, 2)), in_dims)(*features),
            *grad(lambda *x: vmap(function, in_dims)(*x).square().sum(), argnums=(0, 2))(*features),  # noqa: B023
        ]
        if kernel == "numba":
            fused = results
    for actual, exact in zip(fused, results, strict=True):
        assert_agrees(actual, exact)


def test_nested_vmap(backend: str) -> None:
    features = random_features(2, 3)
    in_dims = (0, 0, None)
    results = [
        vmap(vmap(grad(lambda *x: f(*x).sin().sum(), argnums=(0, 2)), in_dims), in_dims)(*features)  # noqa: B023
        for f in (function_of(backend, "numba"), function_of(backend, "torch"))
    ]
    for actual, exact in zip(*results, strict=True):
        assert_agrees(actual, exact)


class _Record(TorchDispatchMode):
    """The names of the operators of ours that are called."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "gatv2":
            self.names.add(func._schema.name)
        return func(*args, **(kwargs or {}))


def test_first_order_is_fused_under_every_transform(backend: str) -> None:
    """`torch.func.grad` always asks for a graph of the gradient, and still gets the fused one."""
    features = random_features()
    loss: Callable[..., Tensor] = lambda *x: function_of(backend, "auto")(*x).sum()  # noqa: E731
    leaves = [x.clone().requires_grad_() for x in features]
    ways: tuple[Callable[[], Any], ...] = (
        lambda: grad(loss)(*features),
        lambda: torch.autograd.grad(loss(*leaves), leaves),
        lambda: torch.autograd.grad(loss(*leaves), leaves, create_graph=True),
        lambda: vmap(grad(loss), (0, None, None))(features[0][None], *features[1:]),
    )
    for way in ways:
        with _Record() as record:
            way()
        name = f"gatv2::{backend}_attention"
        assert record.names == {name, f"{name}_backward"}


def test_past_the_dispatcher_the_bits_are_the_same(backend: str) -> None:
    leaves = [x.requires_grad_() for x in random_features()]
    function = function_of(backend, "numba")
    cotangent = torch.randn_like(function(*leaves))

    def results() -> list[Tensor]:
        out = function(*leaves)
        return [out, *torch.autograd.grad(out, leaves, cotangent, retain_graph=True)]

    plain = results()
    with _Record() as record:
        seen = results()
    assert len(record.names) == 2
    for a, b in zip(plain, seen, strict=True):
        assert torch.equal(a, b)
    cotangents = torch.randn(2, *cotangent.shape, dtype=cotangent.dtype)
    out = function(*leaves)
    batched = torch.autograd.grad(out, leaves, cotangents, is_grads_batched=True, retain_graph=True)
    for i, one in enumerate(cotangents):
        alone = torch.autograd.grad(out, leaves, one, retain_graph=True)
        for a, b in zip(alone, batched, strict=True):
            assert_agrees(b[i], a)


def test_what_is_written_to_before_backward_is_noticed(backend: str) -> None:
    query, key, attn = random_features()
    mask = MASK.clone()
    adjacency: Any = mask if backend == "dense" else Graph.from_mask(mask)
    out = attention_over(adjacency, kernel="numba")(query.requires_grad_(), key, attn)
    written = mask if backend == "dense" else adjacency.key_index
    written.copy_(written.clone())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_forward_mode_goes_to_the_reference(backend: str) -> None:
    features = random_features()
    tangents = tuple(torch.randn_like(x) for x in features)
    actual = jvp(function_of(backend, "auto"), tuple(features), tangents)
    exact = jvp(function_of(backend, "torch"), tuple(features), tangents)
    for a, e in zip(actual, exact, strict=True):
        assert torch.equal(a, e)
    with pytest.raises(ValueError, match=r"forward-mode.*kernel='torch' serves every call"):
        jvp(function_of(backend, "numba"), tuple(features), tangents)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(features[0], tangents[0])
        adjacency = MASK if backend == "dense" else Graph.from_mask(MASK)
        selection = select_kernel(dual, features[1], features[2], adjacency)
        assert selection.kernel.name == "torch"
        assert "forward-mode" in selection.rejected["numba"][0]


def test_an_operator_refuses_dual_tensors(backend: str) -> None:
    """Called by itself; with nothing but public names of PyTorch, it drops the tangent."""
    query, *others = random_features()
    operator = getattr(torch.ops.gatv2, f"{backend}_attention")
    options = (None, 1, 0, 0.2, 0.0, False, False)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(query, torch.ones_like(query))
        with pytest.raises(NotImplementedError, match="forward mode AD"):
            operator(dual, *others, *[None] * 3, *adjacency_of(backend, MASK), *options)


def test_unsupported_inputs_are_told(backend: str) -> None:
    adjacency: Any = MASK if backend == "dense" else Graph.from_mask(MASK)
    query, key, attn = (x.to("meta") for x in random_features())
    selection = select_kernel(query, key, attn, adjacency)
    assert selection.kernel.name == "torch"
    assert "runs on the CPU only, and the features are on meta" in selection.rejected["numba"][0]


def layer_and_inputs(backend: Any) -> tuple[GraphAttentionV2Layer, Tensor, Tensor]:
    """A layer, features, and the form of a graph that it can be traced with."""
    layer = GraphAttentionV2Layer(4, 6, 3, dropout=0.0, backend=backend)
    mask = torch.rand(5, 5, 1) < 0.6
    return layer, torch.randn(5, 4), mask if backend == "dense" else mask[..., 0].nonzero().T


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_training_step_is_fused(backend: str, dynamic: bool) -> None:
    layer, h, adj_mat = layer_and_inputs(backend)
    cotangent = torch.randn(5, 6)
    expected = torch.autograd.grad(layer(h, adj_mat), list(layer.parameters()), cotangent)
    torch._dynamo.reset()
    step = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    actual = torch.autograd.grad(step(h, adj_mat), list(layer.parameters()), cotangent)
    for a, e in zip(actual, expected, strict=True):
        assert_agrees(a, e.double(), e)


def test_exported_program_runs_in_a_fresh_process(backend: str, tmp_path: Path) -> None:
    layer, h, adj_mat = layer_and_inputs(backend)
    program = torch.export.export(layer, (h, adj_mat))
    names = {str(node.target) for node in program.graph.nodes}
    assert f"gatv2.{backend}_attention.default" in names
    torch.export.save(program, tmp_path / "program.pt2")
    torch.save((h, adj_mat, layer(h, adj_mat)), tmp_path / "data.pt")
    code = (
        "import gatv2.functional, torch\n"
        f"h, adj_mat, expected = torch.load({str(tmp_path / 'data.pt')!r})\n"
        f"program = torch.export.load({str(tmp_path / 'program.pt2')!r}).module()\n"
        "torch.testing.assert_close(program(h, adj_mat), expected)\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
