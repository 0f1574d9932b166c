"""The kernels for GPUs: what they compute, interpreted on the CPU, and what they are lowered to."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest

jax = pytest.importorskip("jax")
jnp = jax.numpy
gat = pytest.importorskip("gatv2.jax")
from gatv2.jax.edge_features import EdgeInputs  # noqa: E402
from gatv2.jax.fused import Options  # noqa: E402
from gatv2.jax.pallas import kernels, rows  # noqa: E402
from gatv2.jax.sparse import pallas_kernel, reference  # noqa: E402
from gatv2.jax.sparse.tangent import Features  # noqa: E402

N, M, E = 6, 5, 40
SLOPE = -0.3


class Case(NamedTuple):
    """Sizes, no powers of two, and options; few, since JAX compiles for each."""

    n_heads: int
    n_hidden: int
    batch_shape: tuple[int, ...] = ()
    dropout: float = 0.0
    kind: str = "padded"
    split: int = 1024
    n_features: int = 0
    bias_heads: int = 0

    def __str__(self) -> str:
        defaults = type(self)._field_defaults
        options = [name for name in defaults if getattr(self, name) != defaults[name]]
        return "-".join([f"{self.n_heads}x{self.n_hidden}", *options])


WITH_GRADIENTS = (
    Case(3, 5, kind="numbered", dropout=0.4, split=4),
    Case(5, 3, (2,), n_features=3, bias_heads=1),
    Case(3, 5, split=4, n_features=19, bias_heads=3),
    Case(3, 1, kind="heads"),
)
VALUES = (Case(1, 7, (2,), dropout=0.4), Case(6, 1, kind="blocks", dropout=0.4))


def draw_graph(kind: str) -> Any:
    """A graph in which a node has most of the edges, and others have none."""
    rng = np.random.default_rng(0)
    edge_index = np.stack((rng.integers(0, N - 1, E), rng.integers(0, M, E)))
    edge_index[0, : E // 2], edge_index[1, E // 4 : E // 2] = 1, 2  # many parallel ones
    if kind == "blocks":
        return gat.Graph.from_mask(rng.random((2, N // 2, M, 1)) < 0.5)
    if kind == "heads":
        return gat.Graph.from_mask(rng.random((N, M, 3)) < 0.5)
    graph = gat.Graph.from_edge_index(edge_index, (N, M))
    if kind == "numbered":
        return jax.tree.map(lambda x: x[0], graph.split(2))
    return graph.padded(E + 3)


def draw(case: Case, graph: Any, dtype: Any) -> tuple[Features, tuple[Any, ...]]:
    """Features, and cotangents of the result, of its log-sum-exp and of the coefficients.

    With a bias no head has the first edges, and one has not the next: what they have may be NaN.
    """
    rng = np.random.default_rng(1)

    def normal(*shape: int) -> Any:
        return jnp.asarray(rng.normal(size=shape), dtype)

    batch, heads, n_edges = case.batch_shape, (case.n_heads, case.n_hidden), graph.n_edges
    query, key = normal(*batch, graph.n_queries, *heads), normal(*batch, graph.n_keys, *heads)
    edges = bias = None
    if case.n_features:
        x = normal(*batch, n_edges, case.n_features)
        x = x.at[..., :5, :].set(jnp.nan) if case.bias_heads else x
        edges = EdgeInputs(x, normal(*heads, case.n_features))
    if case.bias_heads:
        bias = normal(*batch, n_edges, case.bias_heads).at[..., :5, :].set(-jnp.inf)
        bias = bias.at[..., 5:9, 0].set(-jnp.inf)
    cotangents = [query.shape, query.shape[:-1], (*batch, n_edges, case.n_heads)]
    return Features(query, key, normal(*heads), edges, bias), tuple(normal(*x) for x in cotangents)


def by_reference(case: Case, seed: Any) -> list[Any]:
    """Result, log-sum-exp, coefficients, and gradients, in float64."""
    graph = draw_graph(case.kind)
    features, cotangents = draw(case, graph, "float64")

    def attend(features: Features) -> Any:
        query, key, attn, edges, score_bias = features
        out, lse, alpha = reference.gatv2_attention(
            query,
            key,
            attn,
            graph,
            edges,
            negative_slope=SLOPE,
            dropout=case.dropout,
            seed=seed if case.dropout else None,
            return_attention=True,
            score_bias=score_bias,
        )
        return out, jnp.where(jnp.isfinite(lse), lse, 0), alpha

    def both(features: Features) -> Any:
        results, pullback = jax.vjp(attend, features)
        return *results, *jax.tree.leaves(pullback(cotangents))

    return list(jax.jit(both)(features))


def by_pallas(case: Case, seed: Any, dtype: Any, *, with_gradients: bool) -> list[Any]:
    """The same interpreted, with or without gradients."""
    graph = draw_graph(case.kind)
    features, (d_out, d_lse, d_alpha) = draw(case, graph, dtype)
    call = (seed, graph, Options(SLOPE, case.dropout, True))
    wanted = (True,) * len(jax.tree.leaves(features))

    def both(features: Features) -> Any:
        out, lse, alpha = pallas_kernel.forward(features, *call, interpret=True)
        results = [out, jnp.where(jnp.isfinite(lse), lse, 0), alpha]
        if with_gradients:
            given = (d_out, jnp.where(jnp.isfinite(lse), d_lse, 0), d_alpha, lse)
            results += pallas_kernel.backward(given, features, *call, wanted, interpret=True)
        return results

    results: list[Any] = jax.jit(both)(features)
    assert {x.dtype for x in results} == {jnp.dtype(dtype)}
    return results


def largest_error(actual: list[Any], exact: list[Any]) -> float:
    """Of all results, each in units of its largest number, or of one."""
    pairs = [(np.asarray(a), np.asarray(e)) for a, e in zip(actual, exact, strict=True)]
    return max(float(abs(a - e).max() / max(abs(e).max(), 1)) for a, e in pairs)


@pytest.mark.parametrize("case", [*WITH_GRADIENTS, *VALUES], ids=str)
def test_interpreted(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """With hubs in parts, and the dropout that every kernel has, also of batches and blocks."""
    monkeypatch.setattr(rows, "SPLIT", case.split)
    monkeypatch.setattr(kernels, "CHUNKS", 2)
    seed = gat.random.as_seed(2**40 + 7)
    actual = by_pallas(case, seed, "float32", with_gradients=case in WITH_GRADIENTS)
    with jax.enable_x64(True):
        exact = by_reference(case, seed)
        assert largest_error(actual, exact[: len(actual)]) < 1e-6
        if case == VALUES[0]:
            in_float64 = by_pallas(case, seed, "float64", with_gradients=False)
            assert largest_error(in_float64, exact[:3]) < 1e-10
            # what the comparison must reject
            other = by_reference(case, gat.random.as_seed(2**40 + 8))
            assert largest_error(actual, other[:3]) > 1e-2


GIVEN = (
    (Case(3, 5), 0),
    (Case(3, 5, n_features=3), 1),
    (Case(3, 5, bias_heads=3), 1),
    (Case(3, 5, kind="heads"), 0),
)
"""What attention is given, and how many kernels more the gradients have than forward and backward."""


def loss(
    graph: Any, features: Features, *, kernel: str = "auto", dropout: float = 0.0, **options: Any
) -> Any:
    query, key, attn, edges, bias = features
    x, projection = (None, None) if edges is None else edges
    results = gat.gatv2_attention(
        query,
        key,
        attn,
        graph,
        edge_features=x,
        edge_projection=projection,
        score_bias=bias,
        kernel=kernel,
        dropout=dropout,
        seed=3,
        **options,
    )
    return sum((x.astype("float32") ** 2).sum() for x in jax.tree.leaves(results))


def count_kernels(function: Any, *inputs: Any, platform: str) -> int:
    """How many of Triton's kernels a program for a platform has."""
    program = jax.jit(function).trace(*inputs).lower(lowering_platforms=(platform,))
    return int(program.as_text().count("__gpu$xla.gpu.triton"))


@pytest.mark.parametrize(("platform", "dtype"), [("cuda", "float32"), ("rocm", "bfloat16")])
@pytest.mark.parametrize(("case", "n_more"), GIVEN, ids=str)
def test_auto_takes_it_on_gpus(case: Case, n_more: int, platform: str, dtype: str) -> None:
    """Forward is a kernel and coefficients another; backward two, and one of what edges have."""
    graph = draw_graph(case.kind)
    features, _ = draw(case, graph, dtype)
    count = partial(count_kernels, platform=platform)
    value = partial(loss, dropout=0.4, return_attention=True, return_lse=True)
    assert count(value, graph, features) == 2
    gradients = jax.grad(loss, argnums=1, allow_int=True)
    assert count(gradients, graph, features) == 3 + n_more


def test_parts_of_rows_are_kernels_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pass over rows has one before it."""
    graph = draw_graph("padded")
    features, _ = draw(Case(3, 5), graph, "float32")
    monkeypatch.setattr(rows, "SPLIT", 4)
    jax.clear_caches()
    assert count_kernels(loss, graph, features, platform="cuda") == 2
    assert count_kernels(jax.grad(loss, argnums=1), graph, features, platform="cuda") == 6
    jax.clear_caches()


@pytest.mark.parametrize(("platform", "is_numba"), [("cpu", True), ("tpu", False)])
def test_auto_does_not_take_it_elsewhere(platform: str, is_numba: bool) -> None:
    """The layer too: on the CPU it is the fused kernel for that, else plain JAX."""
    config = gat.Config(4, 6, 2, dropout=0.0)
    inputs = (
        gat.init(jax.random.key(0), config),
        jnp.ones((N, 4)),
        gat.Graph.from_mask(np.ones((N, N, 1), bool)),
    )

    def layer(params: Any, h: Any, graph: Any) -> Any:
        return (gat.apply(config, params, h, graph, deterministic=True) ** 2).sum()

    for function, n_kernels in ((layer, 1), (jax.grad(layer), 3)):
        assert count_kernels(function, *inputs, platform=platform) == 0
        assert count_kernels(function, *inputs, platform="cuda") == n_kernels
        program = jax.jit(function).trace(*inputs).lower(lowering_platforms=(platform,))
        assert ("gatv2_sparse_forward" in program.as_text()) == is_numba


def test_other_transformations_are_lowered() -> None:
    """`vmap` is one kernel still; forward mode and second order go on in plain JAX."""
    graph = draw_graph("padded")
    features, _ = draw(Case(3, 5), graph, "float32")
    value = partial(loss, graph, dropout=0.4)
    count = partial(count_kernels, platform="cuda")
    stacked = jax.tree.map(lambda x: jnp.stack((x, x)), features)
    assert count(jax.vmap(value), stacked) == 1
    assert count(lambda x: jax.jvp(value, (x,), (x,)), features) == 1
    assert count(jax.jacfwd(jax.grad(value)), features) == 1


def test_gpus_that_are_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain JAX by default; the kernel by its name is an error."""
    graph = draw_graph("padded")
    features, _ = draw(Case(3, 5), graph, "float32")
    of_machine = jax.local_devices

    class Device(NamedTuple):
        compute_capability: str
        device_kind: str = "Tesla T4"

    for capability, n_kernels in (("7.5", 0), ("12.0", 1)):

        def devices(capability: str = capability, backend: str | None = None) -> Any:
            return [Device(capability)] if backend == "cuda" else of_machine(backend=backend)

        monkeypatch.setattr(jax, "local_devices", devices)
        jax.clear_caches()
        assert count_kernels(loss, graph, features, platform="cuda") == n_kernels
        assert count_kernels(loss, graph, features, platform="rocm") == 1
        if not n_kernels:
            with pytest.raises(
                ValueError, match=r"capability 8.0, and Tesla T4 has 7.5: kernel='a"
            ):
                count_kernels(partial(loss, kernel="pallas"), graph, features, platform="cuda")
    jax.clear_caches()


def test_what_it_can_not_do_names_what_can() -> None:
    graph = draw_graph("padded")
    query, key, attn = draw(Case(3, 5), graph, "float32")[0][:3]
    attend = partial(gat.gatv2_attention, query, key, attn, kernel="pallas")
    with pytest.raises(ValueError, match=r"runs on GPUs only, .* for cpu: kernel='auto' and"):
        attend(graph)
    with pytest.raises(ValueError, match=r"one of \('auto', 'jax', 'numba'\); got 'pallas'"):
        attend(np.ones((N, M, 1), bool))
    wide, _ = draw(Case(5, 65, n_features=1), graph, "float32")
    with pytest.raises(ValueError, match=r"it takes nodes with 512 numbers at most, heads and"):
        loss(graph, wide, kernel="pallas")
    assert count_kernels(loss, graph, wide, platform="cuda") == 0
    with pytest.raises(ValueError, match=r"only kernel='jax' \(or 'auto'\); got 'pallas'"):
        gat.StaticConfig(4, 6, 2, kernel="pallas")


def test_nothing_to_attend_to() -> None:
    """Without queries, or without edges: no kernel, and no gradient."""
    features, _ = draw(Case(3, 5), draw_graph("padded"), "float32")
    options = Options(SLOPE, 0.0, True)
    for n_queries in (0, N):
        graph = gat.Graph.from_edge_index(np.zeros((2, 0), int), (n_queries, M))
        own = features._replace(query=features.query[:n_queries])
        call = (gat.random.as_seed(0), graph, options)
        out, lse, alpha = pallas_kernel.forward(own, *call)
        assert out.shape == (n_queries, 3, 5)
        assert not out.any()
        assert lse.shape == (n_queries, 3)
        assert (lse == -jnp.inf).all()
        assert alpha.shape == (0, 3)
        given = (out + 1, lse, alpha, lse)
        gradients = pallas_kernel.backward(given, own, *call, (True,) * 3)
        assert [x.shape for x in gradients] == [x.shape for x in own[:3]]
        assert not any(x.any() for x in gradients)
