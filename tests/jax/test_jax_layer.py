"""One layer in both worlds: parameters cross, and everything that can hold them gives one answer."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import gatv2
from gatv2.testing import assert_agrees

jax = pytest.importorskip("jax")
jnp = jax.numpy
gat = pytest.importorskip("gatv2.jax")

N_NODES = 11
EDGE_INDEX = torch.tensor([[0, 4, 0, 7, 2, 4, 10, 2, 0], [1, 4, 9, 0, 10, 3, 5, 10, 1]])
OPTIONS: list[dict[str, Any]] = [
    {"is_concat": True, "share_weights": False},
    {"is_concat": False, "share_weights": True, "bias": True, "residual": True},
    {"is_concat": True, "share_weights": False, "bias": "projections"},
]
options = pytest.mark.parametrize("options", OPTIONS, ids=["concat", "mean-shared", "biases"])


@pytest.fixture(autouse=True)
def _64_bits() -> Any:
    with jax.enable_x64(True):
        yield


def make_layer(dtype: torch.dtype = torch.float64, **options: Any) -> gatv2.GraphAttentionV2Layer:
    layer = gatv2.GraphAttentionV2Layer(
        7, 6, 3, **options, leaky_relu_negative_slope=0.3, dropout=0.4, dtype=dtype
    )
    for parameter in layer.parameters():
        if parameter.ndim == 1:  # a bias, which begins as zero
            torch.nn.init.normal_(parameter)
    return layer


def features(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, N_NODES, 7, dtype=torch.float64).to(dtype)


apply = jax.jit(
    gat.apply,
    static_argnames=("is_concat", "dropout", "leaky_relu_negative_slope", "return_attention"),
)


@options
def test_apply_is_forward(options: dict[str, Any]) -> None:
    """In training, from one seed, and with coefficients and scores in the caller's order of edges."""
    layer, h = make_layer(**options), features()
    params, graph = gat.from_torch(layer), gat.as_jax(EDGE_INDEX)
    rest = {"is_concat": options["is_concat"], "leaky_relu_negative_slope": 0.3, "dropout": 0.4}
    expected = layer(h, EDGE_INDEX, return_attention=True, seed=5)
    actual = apply(params, gat.as_jax(h), graph, return_attention=True, seed=5, **rest)
    for a, e in zip(actual, expected, strict=True):
        assert_agrees(gat.as_torch(a), e.detach())
    without_dropout = apply(params, gat.as_jax(h), graph, **rest)
    assert_agrees(gat.as_torch(without_dropout), layer.eval()(h, EDGE_INDEX).detach())
    scores = gat.attention_scores(params, gat.as_jax(h), graph, leaky_relu_negative_slope=0.3)
    assert_agrees(gat.as_torch(scores), layer.attention_scores(h, EDGE_INDEX).detach())


@options
def test_gradients_have_the_names_of_the_state_dict(options: dict[str, Any]) -> None:
    layer, h = make_layer(**options), features()
    graph = gat.Graph.from_edge_index(EDGE_INDEX.numpy(), N_NODES)
    cotangent = torch.randn(2, N_NODES, 6, dtype=torch.float64)

    def loss(params: Any) -> Any:
        out = apply(
            params,
            gat.as_jax(h),
            graph,
            is_concat=options["is_concat"],
            leaky_relu_negative_slope=0.3,
        )
        return (out * gat.as_jax(cotangent)).sum()

    (layer.eval()(h, EDGE_INDEX) * cotangent).sum().backward()
    gradients = jax.jit(jax.grad(loss))(gat.from_torch(layer))
    expected = {name: parameter.grad for name, parameter in layer.named_parameters()}
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        grad = expected[name]
        assert grad is not None
        assert_agrees(gat.as_torch(gradient), grad)


@options
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_parameters_there_and_back(dtype: torch.dtype, options: dict[str, Any]) -> None:
    one, other = make_layer(dtype, **options), make_layer(dtype, **options)
    held = dict(other.named_parameters())
    gat.to_torch(gat.from_torch(one), other)
    for name, parameter in one.named_parameters():
        assert other.get_parameter(name) is held[name]  # in place: an optimizer keeps hold of it
        assert torch.equal(held[name], parameter)
    assert (other.linear_r is other.linear_l) == options["share_weights"]


def test_parameters_are_copies() -> None:
    """A step of a PyTorch optimizer does not change JAX arrays, which must not change."""
    layer = make_layer()
    params = gat.from_torch(layer)
    before = np.array(params["attn"])
    with torch.no_grad():
        layer.attn.add_(1.0)
    assert np.array_equal(params["attn"], before)
    gat.to_torch(params, layer)
    with torch.no_grad():
        layer.attn.add_(1.0)
    assert np.array_equal(params["attn"], before)


def test_what_does_not_fit_is_an_error_and_changes_nothing() -> None:
    layer = make_layer()
    before = layer.attn.detach().clone()
    params = {name: array * 0 for name, array in gat.from_torch(layer).items()}
    with pytest.raises(KeyError, match=r"lacks \['linear_r.weight'\]"):
        gat.to_torch({k: v for k, v in params.items() if k != "linear_r.weight"}, layer)
    with pytest.raises(KeyError, match=r"the module has no \['bias'\]"):
        gat.to_torch(params | {"bias": params["attn"]}, layer)
    with pytest.raises(
        ValueError, match=r"`linear_l.weight` must have shape \(6, 7\); got \(7, 6\)"
    ):
        gat.to_torch(params | {"linear_l.weight": params["linear_l.weight"].T}, layer)
    with pytest.raises(TypeError, match=r"must have dtype torch.float64; got torch.float32"):
        gat.to_torch(params | {"linear_l.weight": jnp.zeros((6, 7), jnp.float32)}, layer)
    assert torch.equal(layer.attn, before)


ODD_TENSORS = {
    "transposed": torch.arange(6.0).view(2, 3).T,
    "strided": torch.arange(10.0)[::3],
    "column": torch.arange(6.0).view(3, 2)[:, 1],
    "expanded": torch.arange(3.0).expand(2, 3),
    "unaligned": torch.arange(10.0)[1:],
    "requires_grad": torch.ones(3, requires_grad=True),
    "bool": torch.tensor([True, False]),
    "int64": torch.tensor([2**40]),
    "bfloat16": torch.ones(3, dtype=torch.bfloat16),
    "empty": torch.zeros(0, 3),
    "scalar": torch.tensor(2.0),
}


@pytest.mark.parametrize("tensor", ODD_TENSORS.values(), ids=ODD_TENSORS)
def test_arrays_cross(tensor: Tensor) -> None:
    back = gat.as_torch(gat.as_jax(tensor))
    assert back.dtype == tensor.dtype
    assert torch.equal(back, tensor)


def test_memory_is_shared_where_it_can_be() -> None:
    tensor = torch.empty(1024)  # an allocation of this size is aligned
    array = gat.as_jax(tensor)
    assert array.unsafe_buffer_pointer() == tensor.data_ptr()
    assert gat.as_torch(array).data_ptr() == tensor.data_ptr()


def test_64_bits_are_not_cut_silently() -> None:
    with jax.enable_x64(False), pytest.raises(TypeError, match=r"jax_enable_x64.*\.float\(\)"):
        gat.from_torch(make_layer(torch.float64))


@options
def test_safetensors(tmp_path: Path, options: dict[str, Any]) -> None:
    """A checkpoint of one side is a checkpoint of the other."""
    to_file = pytest.importorskip("safetensors.torch")
    of_jax = pytest.importorskip("safetensors.flax")
    one, other, path = make_layer(**options), make_layer(**options), tmp_path / "layer.safetensors"
    of_jax.save_file(gat.from_torch(one), path)
    to_file.load_model(other, path)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    to_file.save_model(one, path)
    params = of_jax.load_file(path)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, gat.from_torch(one)))


@options
def test_init_is_the_layer(options: dict[str, Any]) -> None:
    """Names, shapes and the distribution of the PyTorch layer."""
    params = gat.init(jax.random.key(0), 200, 120, 3, **options, dtype=jnp.float32)
    layer = gatv2.GraphAttentionV2Layer(200, 120, 3, **options)
    expected = gat.from_torch(layer)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)
    for name, array in params.items():
        bound = float(abs(expected[name]).max())
        if name.endswith("bias"):
            assert bound == abs(array).max() == 0
            continue
        assert 0.97 * bound < abs(array).max() < 1.03 * bound
        assert abs(array.mean()) < bound / 5


def test_errors_of_init_and_apply() -> None:
    rng = jax.random.key(0)
    with pytest.raises(ValueError, match="`out_features`=7 must be divisible by `n_heads`=2"):
        gat.init(rng, 3, 7, 2)
    with pytest.raises(TypeError, match="`n_heads` must be an int; got float"):
        gat.init(rng, 3, 8, 2.0)
    params, mask = gat.init(rng, 3, 8, 2), jnp.ones((5, 5, 1), bool)
    with pytest.raises(ValueError, match=r"`h` must have shape .*in_features=3\); got \(5, 4\)"):
        gat.apply(params, jnp.ones((5, 4), jnp.float32), mask)
    with pytest.raises(TypeError, match=r"dtype float32; got float64"):
        gat.apply(params, jnp.ones((5, 3)), mask)
    with pytest.raises(TypeError, match=r"must be a jax.Array; got Tensor: .*gatv2\.jax\.as_jax"):
        gat.apply(params, torch.ones(5, 3), mask)
    with_edges = gat.from_torch(gatv2.GraphAttentionV2Layer(3, 8, 2, edge_dim=4))
    with pytest.raises(ValueError, match=r"`params` has \['linear_e.weight'\], which"):
        gat.apply(with_edges, jnp.ones((5, 3), jnp.float32), mask)
    with pytest.raises(ValueError, match="`rng` and `seed`"):
        gat.apply(params, jnp.ones((5, 3), jnp.float32), mask, rng=rng, seed=1)


def test_equinox_module() -> None:
    options = OPTIONS[1]
    eqx = pytest.importorskip("equinox")
    from gatv2.jax.equinox import GraphAttentionV2Layer

    torch_layer, h = make_layer(**options), features()
    layer = GraphAttentionV2Layer(
        7, 6, 3, **options, leaky_relu_negative_slope=0.3, dropout=0.4, key=jax.random.key(0)
    )
    layer = eqx.tree_at(lambda layer: layer.params, layer, gat.from_torch(torch_layer))
    graph = gat.Graph.from_edge_index(EDGE_INDEX.numpy(), N_NODES)
    call = eqx.filter_jit(lambda layer, h, graph, **rest: layer(h, graph, **rest))
    expected = torch_layer(h, EDGE_INDEX, seed=3).detach()
    assert_agrees(gat.as_torch(call(layer, gat.as_jax(h), graph, seed=3)), expected)
    expected = torch_layer.eval()(h, EDGE_INDEX).detach()
    evaluating = eqx.nn.inference_mode(layer)
    assert_agrees(gat.as_torch(call(evaluating, gat.as_jax(h), graph)), expected)
    one, other = (call(layer, gat.as_jax(h), graph, key=jax.random.key(k)) for k in (0, 1))
    assert not np.allclose(one, other)
    with pytest.raises(ValueError, match="pass a `key` for dropout"):
        layer(gat.as_jax(h), graph)
    gradients = eqx.filter_grad(lambda layer: (call(layer, gat.as_jax(h), graph) ** 2).sum())(
        evaluating
    )
    assert gradients.params.keys() == layer.params.keys()


def test_nnx_module() -> None:
    options = OPTIONS[0]
    nnx = pytest.importorskip("flax.nnx")
    from gatv2.jax.nnx import GraphAttentionV2Layer

    torch_layer, h = make_layer(**options), features()
    layer = GraphAttentionV2Layer(
        *(7, 6, 3),
        **options,
        leaky_relu_negative_slope=0.3,
        dropout=0.4,
        rngs=nnx.Rngs(0),
        param_dtype=jnp.float64,
    )
    for name, array in gat.from_torch(torch_layer).items():
        layer.params[name][...] = array
    graph = gat.Graph.from_edge_index(EDGE_INDEX.numpy(), N_NODES)
    call = nnx.jit(lambda layer, h, graph, seed=None: layer(h, graph, seed=seed))
    expected = torch_layer(h, EDGE_INDEX, seed=3).detach()
    assert_agrees(gat.as_torch(call(layer, gat.as_jax(h), graph, seed=3)), expected)
    one, other = (call(layer, gat.as_jax(h), graph) for _ in range(2))  # the stream moves on
    assert not np.allclose(one, other)
    layer.eval()  # type: ignore[no-untyped-call]
    expected = torch_layer.eval()(h, EDGE_INDEX).detach()
    assert_agrees(gat.as_torch(call(layer, gat.as_jax(h), graph)), expected)
    loss = nnx.jit(nnx.grad(lambda layer: (layer(gat.as_jax(h), graph) ** 2).sum()))
    gradients = loss(layer)
    assert set(gradients["params"]) == set(gat.from_torch(torch_layer))
