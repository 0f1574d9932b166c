"""One layer in both worlds: parameters cross, and everything that can hold them gives one answer."""

from decimal import Decimal
from fractions import Fraction
from functools import partial
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


apply = jax.jit(gat.apply, static_argnums=0, static_argnames=("deterministic", "return_attention"))


@options
def test_apply_is_forward(options: dict[str, Any]) -> None:
    """In training, from one seed, and with coefficients and scores in the caller's order of edges."""
    layer, h = make_layer(**options), features()
    config, params, graph = (
        gat.Config.from_torch(layer),
        gat.from_torch(layer),
        gat.as_jax(EDGE_INDEX),
    )
    expected = layer(h, EDGE_INDEX, return_attention=True, seed=5)
    actual = apply(config, params, gat.as_jax(h), graph, return_attention=True, seed=5)
    for a, e in zip(actual, expected, strict=True):
        assert_agrees(gat.as_torch(a), e.detach())
    without_dropout = apply(config, params, gat.as_jax(h), graph, deterministic=True)
    assert_agrees(gat.as_torch(without_dropout), layer.eval()(h, EDGE_INDEX).detach())
    scores = gat.attention_scores(config, params, gat.as_jax(h), graph)
    assert_agrees(gat.as_torch(scores), layer.attention_scores(h, EDGE_INDEX).detach())


@options
def test_gradients_have_the_names_of_the_state_dict(options: dict[str, Any]) -> None:
    layer, h = make_layer(**options), features()
    config = gat.Config.from_torch(layer)
    graph = gat.Graph.from_edge_index(EDGE_INDEX.numpy(), N_NODES)
    cotangent = torch.randn(2, N_NODES, 6, dtype=torch.float64)

    def loss(params: Any) -> Any:
        out = apply(config, params, gat.as_jax(h), graph, deterministic=True)
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


def test_what_does_not_cross_says_what_to_do() -> None:
    array = jnp.ones(3)
    for transform in (jax.jit, jax.grad, jax.vmap):
        with pytest.raises(TypeError, match=r"`as_torch` outside of `jit`.*pure_callback"):
            transform(lambda array: gat.as_torch(array).sum())(jnp.ones(3))
    with pytest.raises(TypeError, match=r"`array` must be an array .*; got list"):
        gat.as_torch([1.0])
    with pytest.raises(TypeError, match=r"must hold numbers; got key<fry>.*key_data"):
        gat.as_torch(jax.random.key(0))
    for other in (array, np.ones(3)):
        with pytest.raises(TypeError, match=r"`tensor` must be one of PyTorch; got"):
            gat.as_jax(other)


def test_64_bits_are_not_cut_silently() -> None:
    layer, h = make_layer(torch.float64), jnp.ones((N_NODES, 7), "float32")
    config, params = gat.Config(7, 6, 3, dropout=0.0), gat.from_torch(layer)
    of_numpy = {name: np.asarray(array) for name, array in params.items()}
    with jax.enable_x64(False):
        with pytest.raises(TypeError, match=r"jax_enable_x64.*\.float\(\)"):
            gat.from_torch(layer)
        with pytest.raises(TypeError, match=r"jax_enable_x64.*\.astype\('float32'\)"):
            gat.apply(config, of_numpy, h, EDGE_INDEX.numpy())
        for name in ("dtype", "param_dtype"):
            with pytest.raises(TypeError, match=f"jax_enable_x64.*option `{name}`"):
                config.replace(**{name: "float64"})
        brought = config.replace(dtype="float32").apply(of_numpy, h, EDGE_INDEX.numpy())
        assert brought.dtype == jnp.float32


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
    layer = gatv2.GraphAttentionV2Layer(200, 120, 3, **options)
    params = gat.init(jax.random.key(0), gat.Config(200, 120, 3, **options))
    expected = gat.from_torch(layer)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)
    for name, array in params.items():
        bound = float(abs(expected[name]).max())
        if name.endswith("bias"):
            assert bound == abs(array).max() == 0
            continue
        assert 0.97 * bound < abs(array).max() < 1.03 * bound
        assert abs(array.mean()) < bound / 5


def test_options_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"`out_features`=7 must be divisible by `n_heads`=2"):
        gat.Config(3, 7, 2)
    with pytest.raises(TypeError, match=r"`n_heads` must be an int; got float"):
        gat.Config(3, 8, 2.0)
    for name in ("is_concat", "share_weights", "residual", "add_self_loops"):
        with pytest.raises(TypeError, match=f"`{name}` must be True or False; got 0.0"):
            gat.Config(3, 8, 2, **{name: 0.0})
    with pytest.raises(ValueError, match=r"`dropout` must lie in \[0, 1\); got 1.5"):
        gat.Config(3, 8, 2, dropout=1.5)
    with pytest.raises(ValueError, match=r"`kernel` must be one of .*; got 'cuda'"):
        gat.Config(3, 8, 2, kernel="cuda")
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'kernal'"):
        gat.Config(3, 8, 2, kernal="jax")
    with pytest.raises(ValueError, match=r"one matrix projects both sides.*\(3, 4\)"):
        gat.Config((3, 4), 8, 2, share_weights=True)
    with pytest.raises(TypeError, match=r"`dropout` must be known when a function is traced"):
        jax.jit(lambda dropout: gat.Config(3, 8, 2, dropout=dropout).n_hidden)(0.5)
    with pytest.raises(TypeError, match=r"`is_concat` must be known when a function is traced"):
        jax.jit(lambda is_concat: gat.Config(3, 8, 2, is_concat=is_concat).n_hidden)(True)
    with pytest.raises(ValueError, match=r"only kernel='jax'"):
        gat.StaticConfig(3, 8, 2, kernel="numba")


def test_what_does_not_fit_the_options() -> None:
    rng, config = jax.random.key(0), gat.Config(3, 8, 2, dropout=0.0)
    params, mask, h = gat.init(rng, config), jnp.ones((5, 5, 1), bool), jnp.ones((5, 3), "float32")
    with pytest.raises(ValueError, match=r"`h` must have shape .*in_features=3\); got \(5, 4\)"):
        gat.apply(config, params, jnp.ones((5, 4), jnp.float32), mask)
    with pytest.raises(TypeError, match=r"dtype float32; got float64.*option `dtype`"):
        gat.apply(config, params, jnp.ones((5, 3)), mask)
    with pytest.raises(TypeError, match=r"must be an array .*; got Tensor: .*gatv2\.jax\.as_jax"):
        gat.apply(config, params, torch.ones(5, 3), mask)
    with_edges = gat.from_torch(gatv2.GraphAttentionV2Layer(3, 8, 2, edge_dim=4))
    with pytest.raises(ValueError, match=r"besides \['linear_e.weight'\].*Config.from_torch"):
        gat.apply(config, with_edges, h, mask)
    without = {name: array for name, array in params.items() if name != "attn"}
    with pytest.raises(ValueError, match=r"it lacks \['attn'\]"):
        gat.apply(config, without, h, mask)
    wrong = params | {"linear_r.weight": jnp.ones((8, 4))}
    with pytest.raises(
        ValueError, match=r"`linear_r.weight` must have shape \(8, 3\); got \(8, 4\)"
    ):
        gat.apply(config, wrong, h, mask)
    with pytest.raises(TypeError, match=r"`config` must be a gatv2.jax.Config; got dict"):
        gat.apply(params, h, mask, None)
    with pytest.raises(TypeError, match=r"`config` must be known when.*static_argnames='config'"):
        jax.jit(gat.apply)(config, params, h, mask)
    brought = config.replace(dtype=jnp.float64)  # to which a bias is brought, but for a mask
    with pytest.raises(TypeError, match=r"got a mask of bools: pass it in the place of the graph"):
        gat.apply(brought, params, h, mask, score_bias=mask)
    with pytest.raises(ValueError, match=r"without `edge_dim`"):
        gat.apply(config, params, h, mask, edge_features=jnp.ones((5, 5, 2)))
    needs = gat.Config(3, 8, 2, edge_dim=4)
    with pytest.raises(TypeError, match=r"`edge_features` must be an array .*; got NoneType"):
        gat.apply(needs, needs.init(rng), h, mask, seed=1)


def test_what_is_static_is_no_traced_flag_and_may_be_an_array() -> None:
    eqx = pytest.importorskip("gatv2.jax.equinox")
    nnx = pytest.importorskip("flax.nnx")
    in_flax = pytest.importorskip("gatv2.jax.nnx")
    h, mask, heads = (
        jnp.ones((5, 4), "float32"),
        np.eye(5, dtype=bool),
        jnp.ones((5, 2, 3), "float32"),
    )
    attend = partial(gat.gatv2_attention, heads, heads, heads[0], mask, seed=1)
    static = partial(gat.gat_attention, heads, heads, heads[0], heads[0], mask, seed=1)
    in_equinox = eqx.GraphAttentionV2Layer(4, 6, 2, key=jax.random.key(0))
    of_flax = in_flax.GraphAttentionV2Layer(4, 6, 2, rngs=nnx.Rngs(0))
    flags = {
        "return_attention": lambda flag: attend(return_attention=flag),
        "return_lse": lambda flag: attend(return_lse=flag),
        "inference": lambda flag: in_equinox(h, mask, seed=1, inference=flag),
        "deterministic": lambda flag: of_flax(h, mask, seed=1, deterministic=flag),
    }
    for name, call in flags.items():
        with pytest.raises(TypeError, match=f"`{name}` must be known when a function is traced"):
            jax.jit(call)(True)
    with pytest.raises(TypeError, match="`return_attention` must be known"):
        jax.jit(lambda flag: static(return_attention=flag))(True)
    with pytest.raises(TypeError, match="`inference` must be known"):
        jax.jit(lambda layer: layer(h, mask, seed=1))(in_equinox)
    for half in (jnp.float32(0.5), np.float16(0.5), Fraction(1, 2), Decimal("0.5")):
        for function in (attend, static):
            assert np.array_equal(
                function(dropout=half, negative_slope=half),
                function(dropout=0.5, negative_slope=0.5),
            )
        same = gat.Config(3, 8, 2, dropout=half, leaky_relu_negative_slope=half)
        assert hash(same) == hash(gat.Config(3, 8, 2, dropout=0.5, leaky_relu_negative_slope=0.5))
    for function in (attend, static):
        with pytest.raises(ValueError, match="in the dtype that is computed in"):
            function(negative_slope=1e300)
    with pytest.raises(ValueError, match="too large for a float"):
        gat.Config(3, 8, 2, leaky_relu_negative_slope=10**400)
    with pytest.raises(TypeError, match=r"`params` must be a dict .*apply\(config, params, h"):
        gat.apply(same, h, h, mask, seed=1)


def test_options_can_not_differ_at_apply() -> None:
    """What `init` was told, `apply` is told: a forgotten flag or another one is an error."""
    config = gat.Config(3, 8, 2, is_concat=False, dropout=0.0)
    params, h, mask = (
        config.init(jax.random.key(0)),
        jnp.ones((5, 3), "float32"),
        np.eye(5, dtype=bool),
    )
    assert config.apply(params, h, mask).shape == (5, 8)
    with pytest.raises(ValueError, match=r"`attn` must have shape"):
        config.replace(is_concat=True).apply(params, h, mask)
    for wrong in ({"is_concat": False}, {"dropout": 0.5}, {"kernel": "jax"}):
        with pytest.raises(TypeError, match=r"unexpected keyword argument"):
            config.apply(params, h, mask, **wrong)
    with pytest.raises(Exception, match=r"cannot assign to field 'dropout'"):
        config.dropout = 0.5


def test_dropout_acts_or_is_an_error() -> None:
    """In `apply` and in both kinds of modules: never left out silently."""
    eqx = pytest.importorskip("equinox")
    nnx = pytest.importorskip("flax.nnx")
    from gatv2.jax import equinox as in_equinox
    from gatv2.jax import nnx as in_flax

    rng, h, mask = jax.random.key(0), jnp.ones((5, 3), "float32"), np.ones((5, 5), bool)
    config = gat.Config(3, 8, 2, dropout=0.5)
    params = config.init(rng)
    with pytest.raises(ValueError, match=r"pass a JAX key as `rng`.*`deterministic=True`"):
        config.apply(params, h, mask)
    with pytest.raises(ValueError, match=r"`rng` and `seed` are two ways"):
        config.apply(params, h, mask, rng=rng, seed=1)
    off = config.apply(params, h, mask, deterministic=True)
    assert not np.allclose(config.apply(params, h, mask, seed=1), off)

    # as a user calls them whom no type checker helps
    make_equinox: Any = in_equinox.GraphAttentionV2Layer
    make_flax: Any = in_flax.GraphAttentionV2Layer
    layer = make_equinox(3, 8, 2, dropout=0.5, key=rng)
    with pytest.raises(ValueError, match=r"pass a `key` for dropout"):
        layer(h, mask)
    off = layer(h, mask, inference=True)
    assert np.array_equal(eqx.nn.inference_mode(layer)(h, mask), off)
    assert not np.allclose(eqx.nn.inference_mode(layer)(h, mask, seed=1, inference=False), off)
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'dropout'"):
        layer(h, mask, dropout=0.9, key=rng)
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'kernal'"):
        make_equinox(3, 8, 2, kernal="jax", key=rng)

    flax_layer = make_flax(3, 8, 2, dropout=0.5, rngs=nnx.Rngs(0))
    off = flax_layer(h, mask, deterministic=True)
    assert not np.allclose(flax_layer(h, mask), off)
    flax_layer.eval()
    assert np.array_equal(flax_layer(h, mask), off)
    on = flax_layer(h, mask, deterministic=False, rngs=nnx.Rngs(dropout=3))
    assert not np.allclose(on, off)
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'dropout'"):
        flax_layer(h, mask, dropout=0.9)
    with pytest.raises(ValueError, match=r"`dropout` must lie in"):
        make_flax(3, 8, 2, dropout=1.5, rngs=nnx.Rngs(0))


def test_numpy_and_mixed_precision() -> None:
    """NumPy arrays are read, inside and outside of `jit`; `dtype` brings all to one precision."""
    config = gat.Config(3, 8, 2, dropout=0.0, dtype=jnp.bfloat16, bias=True)
    params, mask = config.init(jax.random.key(0)), np.ones((5, 5), bool)
    assert params["attn"].dtype == jnp.float32
    h = np.random.default_rng(0).normal(size=(5, 3))
    out = apply(config, params, h, mask)
    assert out.dtype == jnp.bfloat16
    single = config.replace(dtype=jnp.float32)
    in_numpy = {name: np.asarray(array) for name, array in params.items()}
    exact = single.apply(in_numpy, h.astype("float32"), mask)
    assert np.array_equal(exact, single.apply(params, jnp.asarray(h, "float32"), mask))
    assert np.allclose(out.astype("float32"), exact, atol=0.05)
    gradient = jax.grad(lambda params: apply(config, params, h, mask).sum().astype("float32"))(
        params
    )
    assert {array.dtype for array in gradient.values()} == {jnp.dtype("float32")}


def test_equinox_module() -> None:
    options = OPTIONS[1]
    eqx = pytest.importorskip("equinox")
    from gatv2.jax.equinox import GraphAttentionV2Layer

    torch_layer, h = make_layer(**options), features()
    layer = GraphAttentionV2Layer(
        7, 6, 3, **options, leaky_relu_negative_slope=0.3, dropout=0.4, key=jax.random.key(0)
    )
    layer = layer.with_params(gat.from_torch(torch_layer))
    assert (layer.n_heads, layer.linear_l.in_features, layer.linear_r) == (3, 7, None)
    with pytest.raises(ValueError, match=r"`params` must have"):
        layer.with_params({"attn": layer.attn})
    graph = gat.Graph.from_edge_index(EDGE_INDEX.numpy(), N_NODES)
    with pytest.raises(TypeError, match=r"`key` must be a JAX key.* got int"):
        GraphAttentionV2Layer(7, 6, 3, key=0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"`key` must be a JAX key.* got int"):
        layer(h.numpy(), graph, key=0)  # type: ignore[call-overload]
    call = eqx.filter_jit(lambda layer, h, graph, **rest: layer(h, graph, **rest))
    expected = torch_layer(h, EDGE_INDEX, seed=3).detach()
    assert_agrees(gat.as_torch(call(layer, gat.as_jax(h), graph, seed=3)), expected)
    expected = torch_layer.eval()(h, EDGE_INDEX).detach()
    evaluating = eqx.nn.inference_mode(layer)
    assert_agrees(gat.as_torch(call(evaluating, gat.as_jax(h), graph)), expected)
    one, other = (call(layer, gat.as_jax(h), graph, key=jax.random.key(k)) for k in (0, 1))
    assert not np.allclose(one, other)
    gradients = eqx.filter_grad(lambda layer: (call(layer, gat.as_jax(h), graph) ** 2).sum())(
        evaluating
    )
    assert gradients.params.keys() == layer.params.keys()


def test_nnx_module() -> None:
    options = OPTIONS[0]
    nnx = pytest.importorskip("flax.nnx")
    from gatv2.jax.nnx import GraphAttentionV2Layer

    torch_layer, h = make_layer(**options), features()
    layer: Any = GraphAttentionV2Layer(
        *(7, 6, 3),
        **options,
        leaky_relu_negative_slope=0.3,
        dropout=0.4,
        rngs=nnx.Rngs(0),
        param_dtype=jnp.float64,
    )
    layer.load(gat.from_torch(torch_layer))
    assert (layer.n_heads, layer.linear_l.kernel.shape) == (3, (7, 6))
    graph = gat.Graph.from_edge_index(EDGE_INDEX.numpy(), N_NODES)
    call = nnx.jit(lambda layer, h, graph, seed=None: layer(h, graph, seed=seed))
    expected = torch_layer(h, EDGE_INDEX, seed=3).detach()
    assert_agrees(gat.as_torch(call(layer, gat.as_jax(h), graph, seed=3)), expected)
    one, other = (call(layer, gat.as_jax(h), graph) for _ in range(2))  # the stream moves on
    assert not np.allclose(one, other)
    layer.eval()
    expected = torch_layer.eval()(h, EDGE_INDEX).detach()
    assert_agrees(gat.as_torch(call(layer, gat.as_jax(h), graph)), expected)
    gradients = nnx.grad(lambda layer: (layer(gat.as_jax(h), graph) ** 2).sum())(layer)
    assert set(gradients) == {"attn", "linear_l", "linear_r"}


def test_views_and_streams_of_nnx() -> None:
    """As `nnx.Dropout` has them: a view turns both off, and a stream or a key stands for `rngs`."""
    nnx = pytest.importorskip("flax.nnx")
    from gatv2.jax.nnx import GraphAttentionV2Layer

    class Block(nnx.Module):  # type: ignore[misc, name-defined]
        def __init__(self, rngs: Any) -> None:
            self.layer = GraphAttentionV2Layer(7, 6, 3, rngs=rngs, param_dtype=jnp.float64)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

    block, h, edges = Block(nnx.Rngs(0)), gat.as_jax(features()), EDGE_INDEX.numpy()
    viewed = nnx.view(block, deterministic=True)
    assert viewed.dropout.deterministic
    assert np.array_equal(viewed.layer(h, edges), block.layer(h, edges, deterministic=True))
    assert not block.layer.deterministic
    assert not nnx.view(viewed, deterministic=False).layer.deterministic
    drawn = block.layer(h, edges, rngs=nnx.Rngs(dropout=3))
    key = nnx.Rngs(dropout=3).dropout()
    for given in (nnx.Rngs(dropout=3).dropout, key, jax.random.key_data(key)):
        assert np.array_equal(block.layer(h, edges, rngs=given), drawn)
    assert not np.array_equal(block.layer(h, edges, rngs=nnx.Rngs(dropout=4)), drawn)
    with pytest.raises(TypeError, match=r"`rngs` must be a JAX key.* got int"):
        block.layer(h, edges, rngs=3)  # type: ignore[call-overload]


def test_kernel_init_of_nnx() -> None:
    nnx = pytest.importorskip("flax.nnx")
    from gatv2.jax.nnx import GraphAttentionV2Layer

    init = nnx.initializers.constant(0.5)
    layer: Any = GraphAttentionV2Layer(3, 8, 2, bias=True, rngs=nnx.Rngs(0), kernel_init=init)
    assert (layer.params["linear_l.weight"] == 0.5).all()
    assert (layer.params["attn"] == 0.5).all()
    assert not layer.params["linear_l.bias"].any()
