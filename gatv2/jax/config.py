"""The options of a layer, checked when they are said, and the names and shapes of its parameters."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypedDict, TypeVar, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from gatv2.jax.arrays import check_width
from gatv2.jax.checks import check_static
from gatv2.options import (
    REDUCTIONS,
    Backend,
    Bias,
    Flow,
    Reduction,
    as_dropout,
    as_slope,
    by_role,
    check_backend,
    check_bias,
    check_flags,
    check_flow,
    check_sizes,
    hidden_of,
)

if TYPE_CHECKING:
    from gatv2.base import GraphAttention

FillValue = float | tuple[float, ...] | Reduction
"""Features of a self-loop: a number, D of them, or how those of the node's other edges are reduced."""
_FLAGS = ("is_concat", "share_weights", "residual", "add_self_loops")
_MANY = {"fill_value": "D", "loop_bias": "n_heads"}

KERNEL_NAMES = ("auto", "jax", "numba", "pallas")


T = TypeVar("T")


class ModuleOptions(TypedDict, total=False):
    """Options that modules of Flax and Equinox hand on; see :class:`gatv2.jax.Config`."""

    edge_dim: int | None
    bias: Bias
    residual: bool
    add_self_loops: bool
    fill_value: FillValue
    loop_bias: FillValue
    backend: Backend
    kernel: str
    flow: Flow


class StackOptions(ModuleOptions, total=False):
    """Options of every layer of a stack; see :class:`gatv2.jax.Config`."""

    leaky_relu_negative_slope: float
    share_weights: bool
    dtype: DTypeLike | None
    param_dtype: DTypeLike


class Changes(StackOptions, total=False):
    """All options of a layer; see :class:`gatv2.jax.Config`."""

    in_features: int | tuple[int, int]
    out_features: int
    n_heads: int
    is_concat: bool
    dropout: float


@dataclass(frozen=True)
class LayerOptions:
    """The options of a layer; frozen, hashable, and so static under `jit`.

    Attributes:
        in_features: features of a node. For a bipartite graph the pair of its two sides, in the order of
            the rows of an edge index: (queries, keys), and with `flow="source_to_target"` (keys,
            queries).
        out_features: features of the result; with `is_concat` each head has `out_features / n_heads` of
            them, else each head has all.
        n_heads: number of heads.
        is_concat: whether heads are concatenated (True) or averaged (False).
        dropout: probability, in [0, 1), that a coefficient is dropped.
        leaky_relu_negative_slope: slope of LeakyReLU below zero.
        share_weights: whether :math:`W_l = W_r`.
        edge_dim: number D of features of an edge, or None for edges without features.
        bias: whether the projections and the output have a bias; "projections" for these alone.
        residual: whether a learned projection of the queries' features is added to the result.
        add_self_loops: whether each node attends to itself too; self-loops that there are count once.
        fill_value: features of added self-loops: a number, D of them, or a reduction of the features of
            a node's other edges, "mean", "sum" ("add"), "min", "max" or "mul".
        loop_bias: `score_bias` of added self-loops in calls that have one, likewise: a number, n_heads
            of them, or a reduction of that of a node's other edges, without those that it removes.
        backend: "dense" (masked attention), "sparse" (edges), or "auto": by the form of `adj_mat`.
        kernel: which kernel does the work; see :func:`gatv2.jax.gatv2_attention`.
        flow: what row 0 of an edge index holds. "target_to_source": the nodes that attend;
            "source_to_target", PyTorch Geometric's default: the nodes attended to.
        dtype: what features and parameters are brought to before anything is computed; None: they must
            have one dtype.
        param_dtype: dtype of the parameters that are drawn.

    Raises:
        TypeError: a size is not an int, an option is traced, or a dtype has 64 bits and JAX does not
            have them enabled.
        ValueError: sizes do not fit, or an option is unknown or out of range.
    """

    in_features: int | tuple[int, int]
    out_features: int
    n_heads: int
    is_concat: bool = True
    dropout: float = 0.6
    leaky_relu_negative_slope: float = 0.2
    share_weights: bool = False
    edge_dim: int | None = None
    bias: Bias = False
    residual: bool = False
    add_self_loops: bool = False
    fill_value: FillValue = "mean"
    loop_bias: FillValue = 0.0
    backend: Backend = "auto"
    kernel: str = "auto"
    flow: Flow = "target_to_source"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    attention_vectors: ClassVar[tuple[str, ...]] = ("attn",)
    """Names of the parameters that score a pair, each `[n_heads, n_hidden]`."""

    @property
    def is_dynamic(self) -> bool:
        """Whether the attention is GATv2's, and not that of the static control."""
        return "attn" in self.attention_vectors

    def __post_init__(self) -> None:
        check_static(**{field.name: getattr(self, field.name) for field in fields(self)})
        check_flags(**{name: getattr(self, name) for name in _FLAGS})
        self._check_sizes()
        check_bias(self.bias)
        for name, read in (("dropout", as_dropout), ("leaky_relu_negative_slope", as_slope)):
            # an array would not hash
            object.__setattr__(self, name, read(getattr(self, name), name))
        check_flow(self.flow)
        check_backend(self.backend)
        for name in ("fill_value", "loop_bias"):
            object.__setattr__(self, name, _read_fill_value(getattr(self, name), name))
        if self.kernel not in KERNEL_NAMES:
            raise ValueError(f"`kernel` must be one of {KERNEL_NAMES}; got {self.kernel!r}")
        for name in ("dtype", "param_dtype"):
            dtype = getattr(self, name)
            if dtype is not None:
                dtype = jnp.dtype(dtype)
                if not jnp.issubdtype(dtype, jnp.floating):
                    raise ValueError(f"`{name}` must be a floating-point dtype; got {dtype}")
                check_width(dtype, f"set the option `{name}` to a dtype of 32 bits")
                object.__setattr__(self, name, dtype)

    def _check_sizes(self) -> None:
        if isinstance(self.in_features, list):
            object.__setattr__(self, "in_features", tuple(self.in_features))
        pair = self._pair
        if len(pair) != 2:
            raise ValueError(f"`in_features` must be an int or a pair of them; got {pair}")
        for size in pair:
            check_sizes(in_features=size)
        if self.share_weights and pair[0] != pair[1]:
            raise ValueError(
                f"with share_weights=True one matrix projects both sides, but `in_features` is {pair}"
            )
        check_sizes(out_features=self.out_features, n_heads=self.n_heads)
        if self.edge_dim is not None:
            check_sizes(edge_dim=self.edge_dim)
        hidden_of(self.out_features, self.n_heads, self.is_concat)

    @property
    def _pair(self) -> tuple[int, int]:
        size = self.in_features
        return size if isinstance(size, tuple) else (size, size)

    @property
    def n_hidden(self) -> int:
        """Features a head."""
        return hidden_of(self.out_features, self.n_heads, self.is_concat)

    @property
    def n_inputs(self) -> tuple[int, int]:
        """Features of a query and of a key."""
        return self.by_role(self._pair)

    def by_role(self, pair: Sequence[T]) -> tuple[T, T]:
        """A pair in the order of an edge index's rows as (of queries, of keys), and the way back."""
        return by_role(pair, self.flow)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the parameters, those of the PyTorch layer's state dict."""
        width, (n_query, n_key) = self.n_heads * self.n_hidden, self.n_inputs
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(
            self.attention_vectors, (self.n_heads, self.n_hidden)
        )
        shapes["linear_l.weight"] = (width, n_query)
        if not self.share_weights:
            shapes["linear_r.weight"] = (width, n_key)
        if self.edge_dim is not None:
            shapes["linear_e.weight"] = (width, self.edge_dim)
        if self.residual:
            shapes["linear_residual.weight"] = (self.out_features, n_query)
        if self.bias:
            shapes["linear_l.bias"] = (width,)
            if not self.share_weights:
                shapes["linear_r.bias"] = (width,)
        if self.bias is True:
            shapes["bias"] = (self.out_features,)
        return shapes

    def replace(self, **changes: Unpack[Changes]) -> Self:
        """The same options but for some."""
        return replace(self, **changes)

    @classmethod
    def from_torch(cls, layer: "GraphAttention", **changes: Unpack[Changes]) -> Self:
        """The options of a PyTorch layer; parameters come with :func:`gatv2.jax.from_torch`.

        Example:
            >>> import gatv2
            >>> layer = gatv2.GraphAttentionV2Layer(16, 8, n_heads=2, bias=True)
            >>> LayerOptions.from_torch(layer) == LayerOptions(16, 8, n_heads=2, bias=True)
            True
        """
        has_bias = layer.linear_l.bias is not None
        options: dict[str, Any] = {
            name: getattr(layer, name)
            for name in (
                "in_features",
                "out_features",
                "n_heads",
                "is_concat",
                "dropout",
                "leaky_relu_negative_slope",
                "share_weights",
                "edge_dim",
                "add_self_loops",
                "backend",
                "flow",
            )
        }
        options |= {
            "bias": "projections" if has_bias and layer.bias is None else has_bias,
            "residual": layer.linear_residual is not None,
            "fill_value": _as_python(layer.fill_value),
            "loop_bias": _as_python(layer.loop_bias),
            "param_dtype": str(layer.linear_l.weight.dtype).removeprefix("torch."),
        }
        return cls(**{**options, **changes})


def _as_python(fill_value: object) -> object:
    return fill_value.tolist() if hasattr(fill_value, "tolist") else fill_value


def _read_fill_value(fill_value: object, name: str) -> FillValue:
    if isinstance(fill_value, str):
        if fill_value not in REDUCTIONS:
            raise ValueError(
                f"`{name}` must be a number, {_MANY[name]} of them or one of {REDUCTIONS}; "
                f"got {fill_value!r}"
            )
        return fill_value
    if isinstance(fill_value, list | np.ndarray | jax.Array):
        fill_value = np.asarray(fill_value).tolist()
    if isinstance(fill_value, list | tuple):
        return tuple(map(float, fill_value))
    if not isinstance(fill_value, Real):  # NumPy's numbers too
        raise TypeError(
            f"`{name}` must be a number, {_MANY[name]} of them or the name of a reduction; "
            f"got {type(fill_value).__name__}"
        )
    return float(fill_value)
