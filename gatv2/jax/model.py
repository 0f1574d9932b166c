"""GATv2: a ready stack of layers for node classification, as options and two functions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Literal, TypedDict, Unpack, cast, overload

import jax
import jax.numpy as jnp

from gatv2.jax.adjacency import Sizes, as_adjacency, common_batch_shape, is_mask
from gatv2.jax.arrays import ArrayLike
from gatv2.jax.checks import as_array, check_params, check_static
from gatv2.jax.config import StackOptions
from gatv2.jax.interop import Params
from gatv2.jax.layer import Config, apply, init
from gatv2.jax.random import check_key
from gatv2.options import as_dropout, check_sizes

_OF_STACK = ("in_features", "out_features", "n_heads", "is_concat", "dropout")


class ApplyOptions(TypedDict, total=False):
    """What changes from call to call; see :meth:`GATv2.apply`."""

    edge_features: ArrayLike | None
    score_bias: ArrayLike | None
    rng: jax.Array | None
    deterministic: bool


@dataclass(frozen=True)
class GATv2:
    r"""A stack of attention layers, as in the experiments of the GAT and GATv2 papers.

    .. math::

        \begin{aligned}
        h^{(l+1)} &= \sigma\big(\mathrm{layer}_l(\mathrm{dropout}(h^{(l)}), G)\big) \\
        \mathrm{out} &= \mathrm{layer}_L(\mathrm{dropout}(h^{(L)}), G)
        \end{aligned}

    Hidden layers concatenate their heads, and the last averages its own. Parameters have the names of
    the PyTorch model's state dict, so :func:`gatv2.jax.from_torch` gives them for a
    :class:`gatv2.GATv2`.

    Attributes:
        in_features: features of a node.
        hidden_features: features between layers, those of all heads together.
        out_features: features of the result, such as the number of classes.
        n_layers: number of layers.
        n_heads: heads of a hidden layer.
        out_heads: heads of the last layer.
        dropout: probability, in [0, 1), that a coefficient is dropped.
        feature_dropout: probability that a feature is dropped, before each layer.
        activation: :math:`\sigma`, between layers.
        layer: the class of the layers' options; :class:`gatv2.jax.StaticConfig` for the static control.
        options: further options of every layer, as pairs of a name and a value, or a dict.

    Raises:
        TypeError: a layer does not know an option.
        ValueError: `n_layers` is not positive, or a layer refuses its sizes or options.

    Example:
        >>> model = GATv2(16, 64, 7, n_layers=3, options={"bias": True})
        >>> params = model.init(jax.random.key(0))
        >>> h, edge_index = jnp.ones((4, 16)), jnp.array([[0, 0, 3], [1, 2, 3]])
        >>> model.apply(params, h, edge_index, rng=jax.random.key(1)).shape
        (4, 7)

    Source: Velickovic et al., "Graph Attention Networks", ICLR 2018, section 3.3.
    """

    in_features: int
    hidden_features: int
    out_features: int
    n_layers: int = 2
    n_heads: int = 8
    out_heads: int = 1
    dropout: float = 0.6
    feature_dropout: float = 0.6
    activation: Callable[[jax.Array], jax.Array] = jax.nn.elu
    layer: type[Config] = Config
    options: Mapping[str, object] | tuple[tuple[str, object], ...] = ()

    def __post_init__(self) -> None:
        check_sizes(n_layers=self.n_layers)
        check_static(feature_dropout=self.feature_dropout)
        options = dict(self.options)
        known = {one.name for one in fields(self.layer)} - set(_OF_STACK)
        if unknown := options.keys() - known:
            raise TypeError(
                f"`options` of a layer can't be {sorted(unknown)}; they are {sorted(known)}"
            )
        object.__setattr__(self, "options", tuple(options.items()))
        first = self.layers[0]  # layers refuse what does not fit, and make a tuple of a list
        as_read = sorted((name, getattr(first, name)) for name in options)
        object.__setattr__(self, "options", tuple(as_read))
        for name in ("dropout", "feature_dropout"):  # an array would not hash
            object.__setattr__(self, name, as_dropout(getattr(self, name), name))

    @property
    def layers(self) -> tuple[Config, ...]:
        """The options of each layer."""
        sizes = [self.in_features] + [self.hidden_features] * (self.n_layers - 1)
        options = cast(StackOptions, dict(self.options))
        hidden = [
            self.layer(size, self.hidden_features, self.n_heads, True, self.dropout, **options)
            for size in sizes[:-1]
        ]
        last = self.layer(
            sizes[-1], self.out_features, self.out_heads, False, self.dropout, **options
        )
        return (*hidden, last)

    def init(self, rng: jax.Array) -> Params:
        """Draw the parameters of all layers, named `layers.0.attn` and so on."""
        check_key(rng)
        keys = jax.random.split(rng, self.n_layers)
        return {
            f"layers.{i}.{name}": array
            for i, (key, config) in enumerate(zip(keys, self.layers, strict=True))
            for name, array in init(key, config).items()
        }

    @overload
    def apply(
        self,
        params: Params,
        h: ArrayLike,
        adj_mat: object,
        *,
        return_attention: Literal[False] = ...,
        **options: Unpack[ApplyOptions],
    ) -> jax.Array: ...
    @overload
    def apply(
        self,
        params: Params,
        h: ArrayLike,
        adj_mat: object,
        *,
        return_attention: Literal[True],
        **options: Unpack[ApplyOptions],
    ) -> tuple[jax.Array, list[jax.Array]]: ...
    @overload
    def apply(
        self,
        params: Params,
        h: ArrayLike,
        adj_mat: object,
        *,
        return_attention: bool,
        **options: Unpack[ApplyOptions],
    ) -> jax.Array | tuple[jax.Array, list[jax.Array]]: ...
    def apply(
        self,
        params: Params,
        h: ArrayLike,
        adj_mat: object,
        *,
        edge_features: ArrayLike | None = None,
        score_bias: ArrayLike | None = None,
        rng: jax.Array | None = None,
        deterministic: bool = False,
        return_attention: bool = False,
    ) -> jax.Array | tuple[jax.Array, list[jax.Array]]:
        """Run all layers over one graph; a list of edges is sorted once for all of them.

        Args:
            params: as `init` draws them.
            h: `[*batch, n_nodes, in_features]`.
            adj_mat: the graph, in any form that a layer reads.
            edge_features: features of each edge, for layers with `edge_dim`.
            score_bias: what is added to the scores of every layer, as a layer takes it; for one head, or
                for as many as all layers have.
            rng: a JAX key, for both kinds of dropout.
            deterministic: whether dropout is left out: for evaluation.
            return_attention: whether to return the coefficients of each layer too.

        Returns:
            `[*batch, n_nodes, out_features]`; with `return_attention` the pair of it and the list of the
            layers' coefficients.

        Raises:
            TypeError: `rng` is no key, or an argument of the wrong type or dtype.
            ValueError: dropout has no `rng`, parameters are of other layers, or what a layer raises.
        """
        drops = not deterministic and (self.dropout > 0 or self.feature_dropout > 0)
        if drops and rng is None:
            raise ValueError(
                "dropout needs randomness: pass a JAX key as `rng`; for evaluation "
                "pass `deterministic=True`"
            )
        if drops:
            check_key(rng)
        self._check_params(params)
        layers, coefficients = self.layers, list[jax.Array]()
        graph = _prepare(layers[0], h, adj_mat)
        x = as_array("h", h)
        if layers[0].dtype is not None:
            x = x.astype(layers[0].dtype)
        for i, config in enumerate(layers):
            own = f"layers.{i}."
            of_layer = {
                name.removeprefix(own): array
                for name, array in params.items()
                if name.startswith(own)
            }
            if i:
                x = self.activation(x)
            of_attention = None
            if drops and rng is not None:
                rng, of_attention, of_features = jax.random.split(rng, 3)
                x = _drop(of_features, x, self.feature_dropout)
            result = apply(
                config,
                of_layer,
                x,
                graph,
                edge_features=edge_features,
                score_bias=score_bias,
                rng=of_attention,
                deterministic=deterministic,
                return_attention=return_attention,
            )
            if isinstance(result, tuple):
                x, alpha = result
                coefficients.append(alpha)
            else:
                x = result
        return (x, coefficients) if return_attention else x

    def _check_params(self, params: Params) -> None:
        """Raise unless each parameter is of one of the layers, which check their own."""
        check_params(params, "apply(params, h, adj_mat)")
        of_layers = tuple(f"layers.{i}." for i in range(self.n_layers))
        if unknown := sorted(name for name in params if not name.startswith(of_layers)):
            raise ValueError(
                f"`params` must be those of n_layers={self.n_layers} layers, {of_layers[0]}attn and so "
                f"on; it has besides {unknown}: draw them with `init(rng)`, or take the options from "
                "where the parameters come"
            )


def _prepare(config: Config, h: ArrayLike, adj_mat: object) -> object:
    """A list of edges as a `Graph`, for all layers; a mask needs no preparation."""
    if adj_mat is None or is_mask(adj_mat) or getattr(h, "ndim", 0) < 2:
        return adj_mat  # the first layer says what is wrong with `h`
    n_nodes = h.shape[-2]
    batch_shape = common_batch_shape(adj_mat, h.shape[:-2])
    sizes = Sizes(n_nodes, n_nodes, config.n_heads, batch_shape)
    return as_adjacency(adj_mat, sizes, flow=config.flow, backend="sparse")


def _drop(rng: jax.Array, h: jax.Array, rate: float) -> jax.Array:
    if rate == 0 or not jnp.issubdtype(h.dtype, jnp.floating):
        return h  # a layer refuses other numbers, of which this would make floating-point ones
    keep = jax.random.bernoulli(rng, 1 - rate, h.shape)
    return jnp.where(keep, h / (1 - rate), 0)
