"""What a user may pass as an option, in PyTorch and JAX alike. Imports nothing of gatv2."""

import functools
import inspect
import math
import operator
import sys
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from numbers import Real
from typing import Any, Literal, SupportsIndex, TypeVar, cast, get_args

import numpy as np

Method = TypeVar("Method", bound=Callable[..., object])
T = TypeVar("T")

Flow = Literal["target_to_source", "source_to_target"]
FLOWS: tuple[Flow, ...] = get_args(Flow)
Backend = Literal["auto", "dense", "sparse"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
Bias = bool | Literal["projections"]
Library = Literal["torch", "jax"]
Reduction = Literal["mean", "sum", "add", "min", "max", "mul"]
REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)

ADDED = -1e4
"""What is added to a score to have no edge is this or less."""

_ADD_HEADS: dict[Library, str] = {"torch": ".unsqueeze(-1)", "jax": "[..., None]"}
_MOVE_HEADS: dict[Library, str] = {"torch": ".movedim(-3, -1)", "jax": "jnp.moveaxis(x, -3, -1)"}

BOOL_BIAS = (
    "`score_bias` holds numbers that are added to the scores; got a mask of bools: pass it in the place "
    "of the graph, as `adj_mat`, True where a query may attend"
)


_OUR_NAMES = {
    "in_channels": "in_features",
    "out_channels": "out_features, which is heads * out_channels where heads are concatenated",
    "heads": "n_heads",
    "concat": "is_concat",
    "negative_slope": "leaky_relu_negative_slope",
    "hidden_channels": "hidden_features",
    "num_layers": "n_layers",
    "in_feats": "in_features",
    "out_feats": "out_features, which is num_heads * out_feats",
    "num_heads": "n_heads",
    "attn_drop": "dropout",
    "x": "h",
    "feat": "h",
    "edge_index": "adj_mat",
    "graph": "adj_mat",
    "edge_attr": "edge_features",
    "edge_weight": "score_bias, of edge_weight.log().unsqueeze(-1)",
    "mask": "adj_mat",
    "adj": "adj_mat",
    "attn_mask": "score_bias, or adj_mat if it is of bools, with a last dimension of heads or of 1",
    "return_attention_weights": "return_attention",
    "get_attention": "return_attention",
}
"""By the names of PyTorch Geometric and of DGL."""


def tells_our_names(function: Method) -> Method:
    """A method whose TypeError for an unknown keyword says how we call what it is elsewhere.

    That for an argument too many, such as edge features by position, says which go by name. Where a
    method hands on keywords that it does not name, only those of other libraries are refused.
    """
    parameters = inspect.signature(function).parameters
    hands_on = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    names = tuple(parameters)[1:]
    by_name = tuple(
        each.name for each in parameters.values() if each.kind is inspect.Parameter.KEYWORD_ONLY
    )
    n_by_position = len(names) - len(by_name) - hands_on

    @functools.wraps(function)
    def checked(self: object, *args: object, **kwargs: object) -> object:
        if len(args) > n_by_position:
            raise TypeError(
                f"{type(self).__name__} takes {names[:n_by_position]} by position, and by name "
                f"{by_name}; got {len(args)} by position"
            )
        for name in kwargs:
            if name not in names and (name in _OUR_NAMES or not hands_on):
                ours = f"here it is {_OUR_NAMES[name]}" if name in _OUR_NAMES else f"it has {names}"
                raise TypeError(f"{type(self).__name__} has no argument {name!r}: {ours}")
        return function(self, *args, **kwargs)

    return cast(Method, checked)


def shape_of_all_pairs(sides: tuple[int, int], has_bias: bool, flow: Flow) -> tuple[int, int]:
    """The rows and columns, as a caller would have them, of a graph that is None: all (query, key).

    Raises:
        TypeError: no bias of the scores came with it.
    """
    if not has_bias:
        raise TypeError(
            "the graph is None: pass a mask, an edge index or another form of a graph, or a "
            "`score_bias` for every query to attend to every key"
        )
    return by_role(sides, flow)


def how_to_add_heads(shape: Sequence[int], n_heads: int, library: Library = "torch") -> str:
    """The advice for what has no last dimension of heads; elsewhere it is before the pairs."""
    add, move = _ADD_HEADS[library], _MOVE_HEADS[library]
    is_in_front = len(shape) >= 3 and shape[-3] in (1, n_heads)
    return f"add it with `{add}` for all heads" + (
        f", or move the one there is, `{move}`" if is_in_front else ""
    )


def how_to_expand(shape: Sequence[int], sides: tuple[int, int], library: Library = "torch") -> str:
    """The advice for a mask, or what is laid out as one, that has one row or column for all nodes."""
    is_for_all = len(shape) >= 3 and all(
        own in (1, side) for own, side in zip(shape[-3:-1], sides, strict=True)
    )
    if not is_for_all or tuple(shape[-3:-1]) == sides:
        return ""
    if library == "jax":
        return (
            f": repeat it for all pairs, `jnp.broadcast_to(x, {(*shape[:-3], *sides, shape[-1])})`"
        )
    sizes = ", ".join(map(str, (*[-1] * (len(shape) - 3), *sides, -1)))
    return f": repeat it for all pairs with `.expand({sizes})`"


def by_role(pair: Iterable[T], flow: Flow) -> tuple[T, T]:
    """A pair in the order of an edge index's rows as (of queries, of keys), and the way back."""
    first, second = pair
    return (first, second) if flow == "target_to_source" else (second, first)


def check_has_self_loops(n_queries: int, n_keys: int, *, is_bipartite: bool = False) -> None:
    """Raise a ValueError unless queries and keys can be the same nodes."""
    advice = "with add_self_loops=False pass the edges that you want"
    if n_queries != n_keys:
        raise ValueError(
            f"a graph of {n_queries} queries and {n_keys} keys has no self-loops to add: {advice}"
        )
    if is_bipartite:
        raise ValueError(
            "a batch of bipartite graphs has no self-loops to add, though it has as many queries as "
            f"keys, {n_queries}: {advice}"
        )


def check_flow(flow: str) -> None:
    """Raise a ValueError unless `flow` is one of the two directions."""
    if flow not in FLOWS:
        raise ValueError(f"`flow` must be one of {FLOWS}; got {flow!r}")


def check_flow_of_graph(made_with: Flow, flow: Flow) -> None:
    """Raise a ValueError if a graph's edges would be read the wrong way round.

    In a call of the default flow a graph that was made with the other one is what it says.
    """
    if flow == "source_to_target" and made_with != flow:
        raise ValueError(
            f"a call with flow='source_to_target' got a graph that was made with flow={made_with!r}, "
            "whose edges would be read backwards: make it with flow='source_to_target', as in "
            "`Graph.from_edge_index(edge_index, n_nodes, flow='source_to_target')`, or pass the edge "
            "index or mask itself"
        )


def common_flow(flows: Iterable[Flow]) -> Flow:
    """The flow of a batch, which is that of each of its graphs.

    Raises:
        ValueError: there are several.
    """
    found = set(flows)
    if len(found) > 1:
        raise ValueError(
            f"graphs of a batch must be made with one flow; got {sorted(found)}: make all of them with "
            "the `flow` of the layer"
        )
    return found.pop()


def check_backend(backend: str) -> None:
    """Raise a ValueError unless `backend` is one of the backends, or "auto"."""
    if backend not in BACKENDS:
        raise ValueError(f"`backend` must be one of {BACKENDS}; got {backend!r}")


def check_bias(bias: object) -> None:
    """Raise a ValueError unless `bias` is False, True or "projections": 1 equals True and is not it."""
    if not isinstance(bias, bool) and bias != "projections":
        raise ValueError(f"`bias` must be False, True or 'projections'; got {bias!r}")


def check_flags(**flags: object) -> None:
    """Raise a TypeError unless each is True or False: a number was meant for another argument."""
    for name, flag in flags.items():
        if not isinstance(flag, bool | np.bool_):
            raise TypeError(f"`{name}` must be True or False; got {flag!r}")


def check_reduction(fill_value: str, name: str) -> None:
    """Raise a ValueError unless `fill_value`, which is a string, names a reduction."""
    if fill_value not in REDUCTIONS:
        raise ValueError(
            f"`{name}` must be a number, a tensor or one of {REDUCTIONS}; got {fill_value!r}"
        )


def as_slope(
    negative_slope: object, name: str = "negative_slope", largest: float = sys.float_info.max
) -> float:
    """A slope as a float.

    Args:
        negative_slope: a number of Python, of NumPy or of others.
        name: what the caller calls it.
        largest: what the dtype that is computed in can hold.

    Raises:
        TypeError: it is no number.
        ValueError: it is not finite, or too large.
    """
    slope = _as_float(negative_slope, name, "a finite number")
    # comparisons, which torch.compile can trace with a symbolic slope; false for NaN
    if not -math.inf < slope < math.inf:
        raise ValueError(f"`{name}` must be a finite number; got {slope}")
    if not -largest <= slope <= largest:
        raise ValueError(
            f"`{name}` must be a finite number in the dtype that is computed in, which holds none "
            f"above {largest:.3g}; got {slope}"
        )
    return slope


def as_dropout(dropout: object, name: str = "dropout") -> float:
    """A probability as a float.

    Raises:
        TypeError: it is no number.
        ValueError: it is outside [0, 1).
    """
    probability = _as_float(dropout, name, "a number in [0, 1), 0 for none")
    if not 0 <= probability < 1:
        raise ValueError(f"`{name}` must lie in [0, 1); got {probability}")
    return probability


def _as_float(value: Any, name: str, expected: str) -> float:
    """A number as kernels and compilers take it; a symbolic one of a compiler's as it came."""
    if type(value) is float:
        return value
    if hasattr(value, "requires_grad"):  # a tensor, and no gradient of it would be computed
        raise TypeError(
            f"`{name}` must be {expected}; got a {type(value).__name__}: take its value with `.item()`"
        )
    if isinstance(value, (Real, Decimal)):
        try:
            return float(value)
        except OverflowError:
            raise ValueError(
                f"`{name}` must be {expected}; got one that is too large for a float"
            ) from None
    if getattr(value, "ndim", None) == 0:  # an array, or of NumPy a number that is not real
        return _as_float(value.item(), name, expected)
    if hasattr(value, "ndim") or not hasattr(value, "__float__"):
        raise TypeError(f"`{name}` must be {expected}; got {value!r}")
    return cast(float, value)


def check_sizes(**sizes: SupportsIndex) -> None:
    """Raise unless each size is a positive integer, Python's or NumPy's.

    Raises:
        TypeError: a size is not an integer.
        ValueError: a size is not positive.
    """
    for name, size in sizes.items():
        if as_int(size, name) < 1:
            raise ValueError(f"`{name}` must be positive; got {size}")


def as_int(value: SupportsIndex, name: str) -> int:
    """An integer, Python's or NumPy's, as an int.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"`{name}` must be an int; got {type(value).__name__}")


def hidden_of(out_features: int, n_heads: int, is_concat: bool) -> int:
    """Features a head, `n_hidden`.

    Raises:
        ValueError: heads are to be concatenated, and `out_features` does not divide by their number.
    """
    if not is_concat:
        return out_features
    if out_features % n_heads:
        raise ValueError(
            f"with is_concat=True, `out_features`={out_features} must be divisible by "
            f"`n_heads`={n_heads}"
        )
    return out_features // n_heads
