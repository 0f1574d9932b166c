"""Backward and double backward of a fused operator, as functions of its named arguments.

Backward is an operator too, so first-order differentiation stays fused under every transform. The
derivative of backward goes through the reference.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gatv2.operator.arguments import Arguments, Cotangents

Results = tuple[Tensor | None, Tensor | None, Tensor | None]
"""(out, log-sum-exp, alpha), or what is asked of each."""
Reference = Callable[[Arguments], tuple[Tensor, Tensor, Tensor | None]]
"""A fused operator's function by plain PyTorch operations, alpha included: (out, log-sum-exp, alpha)."""

_EDGE_FEATURES = Arguments._fields.index("edge_features")
_SCORE_BIAS = Arguments._fields.index("score_bias")
_RESULTS = ("d_out", "d_lse", "d_alpha")
_SHARED = ("attn", "edge_projection")  # by all of a batch


class Gradients(NamedTuple):
    """Gradients of the features, or their cotangents; None where there is none."""

    query: Tensor | None
    key: Tensor | None
    attn: Tensor | None
    edge_features: Tensor | None
    edge_projection: Tensor | None
    score_bias: Tensor | None


def wanted(arguments: Arguments, needs_gradient: Sequence[bool]) -> Arguments:
    """The arguments of the gradient, given those of the operator, and which features need one."""
    return arguments._replace(
        wants_rows=needs_gradient[_EDGE_FEATURES], wants_bias_rows=needs_gradient[_SCORE_BIAS]
    )


def backward(
    gradient: Callable[[Cotangents, Arguments], tuple[Tensor, ...]],
    d_results: Results,
    lse: Tensor,
    arguments: Arguments,
) -> Gradients:
    """The gradients of the features.

    Args:
        gradient: the fused gradient.
        d_results: cotangents of (out, log-sum-exp, alpha), None where they are zero.
        lse: the log-sum-exp that the operator returned.
        arguments: what it was given; `wants_rows` and `wants_bias_rows` tell whether edge_features and
            score_bias want a gradient.
    """
    query, attn, edge_projection = arguments.query, arguments.attn, arguments.edge_projection
    d_out, d_lse, d_alpha = d_results
    if d_out is None:
        d_out = torch.zeros_like(query)
    found = gradient(Cotangents(d_out, d_lse, d_alpha, lse), arguments)
    d_query, d_key, d_attn, d_edge_features, d_edge_projection, d_score_bias = found
    return Gradients(
        d_query,
        d_key,
        _summed_to(attn, d_attn),
        d_edge_features if arguments.wants_rows else None,
        None if edge_projection is None else _summed_to(edge_projection, d_edge_projection),
        d_score_bias if arguments.wants_bias_rows else None,
    )


def _summed_to(feature: Tensor, gradient: Tensor) -> Tensor:
    return gradient if gradient.shape == feature.shape else gradient.sum_to_size(feature.shape)


def double_backward(
    reference: Reference, cotangents: Cotangents, arguments: Arguments, upon: Gradients
) -> tuple[Results, Gradients]:
    """The derivative of `backward`, of which `upon` are the cotangents.

    Returns:
        What `cotangents` and what the features get; None where there is nothing.
    """
    given = {"d_out": cotangents.d_out}
    given |= {} if cotangents.d_lse is None else {"d_lse": cotangents.d_lse}
    given |= {} if cotangents.d_alpha is None else {"d_alpha": cotangents.d_alpha}
    features = {name: getattr(arguments, name) for name in Gradients._fields}
    features = {name: feature for name, feature in features.items() if feature is not None}
    is_wanted = {"edge_features": arguments.wants_rows, "score_bias": arguments.wants_bias_rows}
    chosen = [name for name in features if is_wanted.get(name, True)]

    def gradients(given: dict[str, Tensor], features: dict[str, Tensor]) -> dict[str, Tensor]:
        def attend(features: dict[str, Any]) -> dict[str, Tensor | None]:
            results = reference(arguments._replace(**features))
            return {
                name: result
                for name, result in zip(_RESULTS, results, strict=True)
                if name in given
            }

        (found,) = torch.func.vjp(attend, features)[1](given)
        return {name: found[name] for name in chosen}

    mapped: Callable[..., dict[str, Tensor]] = gradients
    shared = {name: None if name in _SHARED else 0 for name in features}
    for _ in range(arguments.n_mapped):
        mapped = torch.vmap(mapped, (dict.fromkeys(given, 0), shared))
    pullback = torch.func.vjp(mapped, given, features)[1]
    to_given, to_features = pullback({name: getattr(upon, name) for name in chosen})
    to_out, to_lse, to_alpha = map(to_given.get, _RESULTS)
    return (to_out, to_lse, to_alpha), Gradients(*map(to_features.get, Gradients._fields))
