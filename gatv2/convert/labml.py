"""The annotated tutorial's `GraphAttentionV2Layer`, by its state dict."""

from typing import Literal

from gatv2.checks import is_same
from gatv2.convert.state import Shapes, State, layer_of, read_state
from gatv2.layer import GraphAttentionV2Layer

_SHAPES: Shapes = {
    "attn.weight": (1, "F"),
    "linear_l.weight": ("H * F", "inputs"),
    "linear_r.weight": ("H * F", "inputs"),
}


def from_labml(
    state_dict: State,
    *,
    is_concat: bool = True,
    dropout: float = 0.6,
    leaky_relu_negative_slope: float = 0.2,
    scores: Literal["formula", "swapped"] | None = None,
    prefix: str = "",
) -> GraphAttentionV2Layer:
    """The state dict of the annotated tutorial's `GraphAttentionV2Layer` as our layer.

    Its one attention vector becomes one a head, all alike. Its code announces the scores of the formula,
    `g_l[i] + g_r[j]`, and computes `g_l[j] + g_r[i]`. With `share_weights=True` these are one, and the
    conversion is exact. Otherwise the caller says which the checkpoint was trained with.

    Args:
        state_dict: of the layer, or of a model that holds it.
        is_concat: as the tutorial's layer was made.
        dropout: as the tutorial's layer was made.
        leaky_relu_negative_slope: as the tutorial's layer was made.
        scores: needed where the two matrices differ. "formula": trained with a copy of the code that
            adds `g_l[i] + g_r[j]`; exact. "swapped": trained with the code as it was published. Our
            layer can't compute that: it would score a key with `W_l` and aggregate it with `W_r`, and
            the formula has one matrix for both.
        prefix: what the names of the layer begin with, such as "layer1.".

    Raises:
        TypeError: `state_dict` holds something else than tensors of one floating-point dtype.
        KeyError: a parameter is missing.
        ValueError: the matrices differ, and `scores` is None or "swapped"; or a shape does not fit.

    Example:
        >>> import torch
        >>> weight = torch.randn(32, 16)
        >>> state_dict = {
        ...     "linear_l.weight": weight, "linear_r.weight": weight, "attn.weight": torch.randn(1, 8)
        ... }
        >>> from_labml(state_dict).attn.shape
        torch.Size([4, 8])

    Source: labml_nn/graphs/gatv2/__init__.py of annotated_deep_learning_paper_implementations.
    """
    if scores not in (None, "formula", "swapped"):
        raise ValueError(f"`scores` must be 'formula', 'swapped' or None; got {scores!r}")
    given = read_state(state_dict, prefix, _SHAPES, tuple(_SHAPES))
    query, key, attn = (given[f"{name}.weight"] for name in ("linear_l", "linear_r", "attn"))
    is_shared = is_same(query, key)
    n_heads, rest = divmod(len(query), attn.shape[1])
    if rest:
        raise ValueError(
            f"`{prefix}attn.weight` has the {attn.shape[1]} features of a head, which do not divide the "
            f"{len(query)} rows of `{prefix}linear_l.weight`"
        )
    if not is_shared and scores is None:
        raise ValueError(
            "`linear_l` and `linear_r` differ: the tutorial announces g_l[i] + g_r[j] and computes "
            "g_l[j] + g_r[i]. Pass scores='formula' if the checkpoint was trained with the first, "
            "scores='swapped' if with the second"
        )
    if not is_shared and scores == "swapped":
        raise ValueError(
            "with scores g_l[j] + g_r[i] and values g_r[j], a key is scored with W_l and aggregated "
            "with W_r; the formula has one matrix for both, so no layer of these sizes computes it. "
            'The documentation, "Coming from PyG, DGL or the tutorial", has a wider one that does'
        )
    return layer_of(
        {"linear_l.weight": query, "linear_r.weight": key, "attn": attn.expand(n_heads, -1)},
        is_concat=is_concat,
        dropout=dropout,
        leaky_relu_negative_slope=leaky_relu_negative_slope,
        share_weights=is_shared,
    )
