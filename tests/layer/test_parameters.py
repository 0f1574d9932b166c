"""A layer is an `nn.Module` like any other."""

import copy
import functools
import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gatv2 import GATv2, Graph, GraphAttentionLayer, GraphAttentionV2Layer
from gatv2.testing import assert_agrees, masks

LAYERS = [GraphAttentionV2Layer, GraphAttentionLayer]
EDGE_INDEX = torch.tensor([[0, 0, 1, 3], [1, 2, 2, 3]])


@pytest.fixture(params=LAYERS, ids=lambda layer: layer.__name__)
def layer_class(request: pytest.FixtureRequest) -> Any:
    """Both layers in turn."""
    return request.param


def test_state_dict_names(layer_class: Any) -> None:
    vectors = list(layer_class.attention_vectors)
    names = [*vectors, "linear_l.weight", "linear_r.weight"]
    for share_weights in (False, True):
        layer = layer_class(3, 8, 2, share_weights=share_weights)
        assert list(layer.state_dict()) == names
        assert (layer.linear_l is layer.linear_r) == share_weights
        n_matrices = 1 if share_weights else 2
        assert len(list(layer.parameters())) == n_matrices + len(vectors)


@pytest.mark.parametrize("share_weights", [False, True])
@pytest.mark.parametrize("is_concat", [False, True])
def test_copies_compute_the_same(layer_class: Any, is_concat: bool, share_weights: bool) -> None:
    layer = layer_class(3, 8, 2, is_concat, share_weights=share_weights, backend="sparse")
    h = torch.randn(4, 3)
    expected = layer(h, EDGE_INDEX, seed=1)
    fresh = layer_class(3, 8, 2, is_concat, share_weights=share_weights, backend="sparse")
    assert not torch.equal(fresh(h, EDGE_INDEX, seed=1), expected)
    fresh.load_state_dict(layer.state_dict())
    saved = io.BytesIO()
    torch.save(layer.state_dict(), saved)
    saved.seek(0)
    loaded = layer_class(3, 8, 2, is_concat, share_weights=share_weights, backend="sparse")
    loaded.load_state_dict(torch.load(saved, weights_only=True))
    copies = (fresh, loaded, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)))
    for other in copies:
        assert (other.linear_l is other.linear_r) == share_weights
        assert repr(other) == repr(layer)
        assert torch.equal(other(h, EDGE_INDEX, seed=1), expected)


@torch.no_grad()
def test_conversion_of_dtype(layer_class: Any) -> None:
    layer = layer_class(3, 8, 2)
    h = torch.randn(4, 3)
    exact = copy.deepcopy(layer).double()(h.double(), EDGE_INDEX, seed=1)
    assert exact.dtype == torch.float64
    for dtype, allowed in ((torch.float32, 1e-6), (torch.bfloat16, 0.05), (torch.float16, 0.01)):
        converted = copy.deepcopy(layer).to(dtype)
        assert {p.dtype for p in converted.parameters()} == {dtype}
        out = converted(h.to(dtype), EDGE_INDEX, seed=1)
        assert out.dtype == dtype
        assert float((out.double() - exact).abs().max()) < allowed * float(exact.abs().max())
    made = layer_class(3, 8, 2, dtype=torch.float64, device="cpu")
    assert {p.dtype for p in made.parameters()} == {torch.float64}


def test_skipped_initialisation(layer_class: Any) -> None:
    """PyTorch wants `device` among the names of a constructor's arguments."""
    skip_init: Any = torch.nn.utils.skip_init
    one = skip_init(layer_class, 3, 8, 2, dtype=torch.float64)
    model = skip_init(GATv2, 3, 8, 7, layer=layer_class, dtype=torch.float64)
    for module in (one, model):
        assert {(p.dtype, p.device.type) for p in module.parameters()} == {(torch.float64, "cpu")}
        module.reset_parameters()
        assert module.eval()(torch.randn(4, 3).double(), EDGE_INDEX).isfinite().all()


def test_meta_device(layer_class: Any) -> None:
    layer = layer_class(3, 8, 2, device="meta")
    assert all(p.is_meta for p in layer.parameters())
    layer.to_empty(device="cpu").reset_parameters()
    assert layer(torch.randn(4, 3), EDGE_INDEX).isfinite().all()


@pytest.mark.parametrize("form", ["edge index", "graph", "mask"])
def test_meta_tensors_tell_shapes(layer_class: Any, form: str) -> None:
    graph: Any = EDGE_INDEX.to("meta")
    if form == "graph":
        graph = Graph.from_edge_index(EDGE_INDEX, 4).to("meta")
    elif form == "mask":
        graph = torch.ones(4, 4, 1, dtype=torch.bool, device="meta")
    layer = layer_class(3, 8, 2, bias=True, residual=True, device="meta")
    out = layer(torch.randn(4, 3, device="meta"), graph)
    out.sum().backward()
    assert out.is_meta
    assert out.shape == (4, 8)
    assert all(p.grad is not None and p.grad.shape == p.shape for p in layer.parameters())


def test_sizes_that_the_first_input_tells(layer_class: Any) -> None:
    """As `torch.nn.LazyLinear`: for one set of nodes, a pair, and what is loaded."""
    torch.manual_seed(1)
    lazy = layer_class(-1, 8, 2, bias=True, residual=True)
    assert lazy.in_features == -1
    h = torch.randn(4, 3)
    lazy(h, EDGE_INDEX)
    assert lazy.in_features == 3
    assert {type(module) for module in lazy.children()} == {torch.nn.Linear}
    bound = (6 / (8 + 3)) ** 0.5
    assert 0.6 * bound < float(lazy.linear_l.weight.detach().abs().max()) <= bound
    assert (lazy.linear_l.bias == 0).all()
    known = layer_class(3, 8, 2, bias=True, residual=True)
    known.load_state_dict(lazy.state_dict())
    expected = lazy(h, EDGE_INDEX, seed=1)
    assert torch.equal(known(h, EDGE_INDEX, seed=1), expected)
    loaded = copy.deepcopy(layer_class(-1, 8, 2, bias=True, residual=True))
    loaded.load_state_dict(lazy.state_dict())
    assert torch.equal(loaded(h, EDGE_INDEX, seed=1), expected)

    pair = layer_class((-1, -1), 8, 2, share_weights=False)
    pair((torch.randn(4, 3), torch.randn(4, 5)), EDGE_INDEX)
    assert pair.in_features == (3, 5)
    shared = layer_class(-1, 8, 2, share_weights=True)
    shared(h, EDGE_INDEX)
    assert shared.linear_l is shared.linear_r


@pytest.mark.parametrize("share_weights", [False, True])
def test_one_that_waits_for_its_sizes_is_compiled(layer_class: Any, share_weights: bool) -> None:
    """As `nn.LazyLinear` is: the first call tells it the sizes."""
    torch.compiler.reset()
    options: Any = {"share_weights": share_weights, "dropout": 0.0, "dtype": torch.float64}
    lazy = layer_class(-1, 8, 2, bias=True, residual=True, **options)
    compiled: Any = torch.compile(lazy, fullgraph=True, backend="aot_eager")
    h, d_out = torch.randn(4, 3).double(), torch.randn(4, 8).double()
    for _ in range(2):
        compiled(h, EDGE_INDEX).backward(d_out)
        gradients = [p.grad for p in lazy.parameters()]
        assert lazy.in_features == 3
        expected = lazy(h, EDGE_INDEX)
        assert_agrees(compiled(h, EDGE_INDEX), expected)
        wanted = torch.autograd.grad(expected, list(lazy.parameters()), d_out)
        for gradient, of_eager in zip(gradients, wanted, strict=True):
            assert gradient is not None
            assert_agrees(gradient, of_eager)
        lazy.zero_grad()
    with pytest.raises(ValueError, match="in_features=3"):
        lazy(torch.randn(4, 5).double(), EDGE_INDEX)


@pytest.fixture
def group_of_one(tmp_path: Path) -> Iterator[None]:
    """A process group, without which there is no FSDP."""
    url = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=url, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["edges", "edge features", "mask", "sparse features"])
def test_memory_of_parameters_may_go_and_come_back(form: str, dtype: torch.dtype) -> None:
    """As FSDP has it, which holds a layer's parameters only while they are used."""
    edge_dim = 5 if form == "edge features" else None
    layer = GraphAttentionV2Layer(3, 8, 2, edge_dim=edge_dim, bias=True, residual=True, dtype=dtype)
    h = torch.randn(4, 3, dtype=dtype)
    x = None if edge_dim is None else torch.randn(4, edge_dim, dtype=dtype)
    graph = EDGE_INDEX
    if form == "mask":
        graph = torch.eye(4, dtype=torch.bool).unsqueeze(-1)
    out = layer(h.to_sparse() if form == "sparse features" else h, graph, edge_features=x)
    for parameter in layer.parameters():
        storage = parameter.untyped_storage()
        n_bytes, held = storage.nbytes(), storage.clone()
        storage.resize_(0)
        storage.resize_(n_bytes)
        storage.copy_(held)
    out.sum().backward()
    assert all(p.untyped_storage().resizable() for p in layer.parameters())


@pytest.mark.parametrize("backend", ["dense", "sparse"])
def test_parametrized_weights(layer_class: Any, backend: Any) -> None:
    """A layer reads its weights where `torch.nn.utils.parametrize` puts them."""
    layer = layer_class(3, 8, 2, share_weights=False, backend=backend, dtype=torch.float64).eval()
    h = torch.randn(4, 3).double()
    expected = layer(h, EDGE_INDEX)
    for name in ("linear_l", "linear_r"):
        torch.nn.utils.parametrizations.weight_norm(getattr(layer, name))
    assert_agrees(layer(h, EDGE_INDEX), expected)
    layer(h, EDGE_INDEX).backward(torch.randn(4, 8).double())
    assert all(p.grad is not None and p.grad.any() for p in layer.parameters())

    class Half(torch.nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight / 2

    for name in layer.attention_vectors:
        torch.nn.utils.parametrize.register_parametrization(layer, name, Half())
    halved = layer_class(3, 8, 2, share_weights=False, backend=backend, dtype=torch.float64).eval()
    with torch.no_grad():
        for name in ("linear_l.weight", "linear_r.weight", *layer.attention_vectors):
            halved.get_parameter(name).copy_(_attribute(layer, name))
    assert_agrees(layer(h, EDGE_INDEX), halved(h, EDGE_INDEX))


def _attribute(layer: Any, name: str) -> Tensor:
    tensor: Tensor = functools.reduce(getattr, name.split("."), layer)
    return tensor


def test_reset_parameters_draws_glorot(layer_class: Any) -> None:
    layer = layer_class(30, 80, 2)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    torch.manual_seed(1)
    layer.reset_parameters()
    first = {name: p.detach().clone() for name, p in layer.named_parameters()}
    for name, parameter in first.items():
        assert not torch.equal(parameter, before[name])
        bound = (6 / sum(parameter.shape)) ** 0.5
        assert 0.9 * bound < float(parameter.abs().max()) <= bound
    torch.manual_seed(1)
    layer.reset_parameters()
    assert all(torch.equal(p, first[name]) for name, p in layer.named_parameters())


def test_extra_repr_names_every_option() -> None:
    layer = GraphAttentionV2Layer(3, 8, 2, False, 0.5, 0.1, True, backend="dense", kernel="torch")
    assert repr(layer).startswith(
        "GraphAttentionV2Layer(\n  3, 8, n_heads=2, is_concat=False, dropout=0.5, "
        "leaky_relu_negative_slope=0.1, share_weights=True, bias=False, "
        "backend='dense', kernel='torch', flow='target_to_source', "
        "residual=False, add_self_loops=False\n"
    )


def train(layer_class: Any, backend: Any) -> list[Tensor]:
    torch.manual_seed(7)
    layer = layer_class(3, 8, 2, backend=backend)
    h, target = torch.randn(4, 3), torch.randn(4, 8)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    for _ in range(10):
        optimizer.zero_grad()
        (layer(h, EDGE_INDEX) - target).square().mean().backward()
        optimizer.step()
    return [p.detach() for p in layer.parameters()]


@pytest.mark.parametrize("is_concat", [False, True])
def test_bias_of_projections_and_output(layer_class: Any, is_concat: bool) -> None:
    layer = layer_class(3, 8, 2, is_concat, dropout=0.0, bias=True, dtype=torch.float64)
    assert {"bias", "linear_l.bias", "linear_r.bias"} <= set(layer.state_dict())
    assert layer.bias.shape == (8,)
    biases = [p for name, p in layer.named_parameters() if name.endswith("bias")]
    assert all((bias == 0).all() for bias in biases)
    with torch.no_grad():
        for bias in biases:
            bias.normal_()
    # a constant feature and no biases: the same layer
    plain = layer_class(4, 8, 2, is_concat, dropout=0.0, dtype=torch.float64)
    state = layer.state_dict()
    for name in ("linear_l", "linear_r"):
        columns = (state[f"{name}.weight"], state[f"{name}.bias"].unsqueeze(1))
        state[f"{name}.weight"] = torch.cat(columns, dim=1)
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    h = torch.randn(4, 3, dtype=torch.float64)
    with_one = torch.cat((h, torch.ones(4, 1, dtype=torch.float64)), dim=1)
    expected = plain(with_one, EDGE_INDEX) + layer.bias
    assert_agrees(layer(h, EDGE_INDEX), expected)
    assert torch.equal(layer(h, EDGE_INDEX)[2], layer.bias)  # node 2 has no neighbours


@pytest.mark.parametrize("backend", ["dense", "sparse"])
def test_manual_seed_makes_training_repeatable_to_the_bit(layer_class: Any, backend: Any) -> None:
    first, second = train(layer_class, backend), train(layer_class, backend)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@given(mask=masks(5, 5))
def test_shared_weights_are_equal_weights(dtype: torch.dtype, mask: Tensor) -> None:
    """The output is that of two equal matrices; the one gradient is the sum of their two."""
    shared = GraphAttentionV2Layer(3, 8, 2, share_weights=True, dtype=dtype).eval()
    apart = GraphAttentionV2Layer(3, 8, 2, dtype=dtype).eval()
    apart.load_state_dict(shared.state_dict())
    h, cotangent = torch.randn(5, 3, dtype=dtype), torch.randn(5, 8, dtype=dtype)
    outs = [layer(h, mask) for layer in (shared, apart)]
    assert torch.equal(*outs)
    for out in outs:
        out.backward(cotangent)
    matrices = (shared.linear_l, apart.linear_l, apart.linear_r)
    total, left, right = (matrix.weight.grad for matrix in matrices)
    assert left is not None
    assert right is not None
    torch.testing.assert_close(total, left + right)


@given(mask=masks(5, 5), n_heads=st.sampled_from((1, 2, 3)))
def test_heads_are_concatenated_or_averaged(mask: Tensor, n_heads: int) -> None:
    averaged = GraphAttentionV2Layer(3, 4, n_heads, is_concat=False, dtype=torch.float64).eval()
    concatenated = GraphAttentionV2Layer(3, 4 * n_heads, n_heads, dtype=torch.float64).eval()
    concatenated.load_state_dict(averaged.state_dict())
    h = torch.randn(5, 3, dtype=torch.float64)
    heads = concatenated(h, mask).unflatten(-1, (n_heads, 4))
    assert_agrees(averaged(h, mask), heads.mean(-2))


def test_separate_weights_are_not_loaded_into_shared_ones(layer_class: Any) -> None:
    separate = layer_class(3, 8, 2, share_weights=False, bias="projections").state_dict()
    shared = layer_class(3, 8, 2, share_weights=True, bias="projections")
    before = {name: value.clone() for name, value in shared.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"`linear_l.weight` and `linear_r.weight` differ"):
        shared.load_state_dict(separate)
    nested = torch.nn.Sequential(shared)
    with pytest.raises(RuntimeError, match=r"`0.linear_l.weight` and `0.linear_r.weight` differ"):
        nested.load_state_dict({f"0.{name}": value for name, value in separate.items()})
    equal = {**separate, "linear_r.weight": separate["linear_l.weight"].clone()}
    shared.load_state_dict(equal)
    assert torch.equal(shared.linear_r.weight, separate["linear_l.weight"])
    assert not torch.equal(before["linear_l.weight"], separate["linear_l.weight"])


@pytest.mark.parametrize("name", ["is_concat", "share_weights", "residual", "add_self_loops"])
def test_a_flag_is_true_or_false(layer_class: Any, name: str) -> None:
    """A dropout of zero in the fourth place would average the heads."""
    for flag in (0.0, 0, 0.6, None, "no"):
        with pytest.raises(TypeError, match=f"`{name}` must be True or False; got {flag!r}"):
            layer_class(3, 8, 2, **{name: flag})
    assert layer_class(3, 8, 2, **{name: numpy.True_})
    with pytest.raises(TypeError, match=r"`is_concat` must be True or False; got 0\.0"):
        layer_class(3, 8, 2, 0.0)


@pytest.mark.parametrize("bias", [1, 0, numpy.True_, "output", None])
def test_a_bias_is_one_of_three(layer_class: Any, bias: Any) -> None:
    """1 equals True, and is another thing to `is True`."""
    with pytest.raises(ValueError, match="`bias` must be False, True or 'projections'"):
        layer_class(3, 8, 2, bias=bias)
