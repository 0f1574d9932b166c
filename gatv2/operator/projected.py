"""Linear projections and the bound operator behind them, as one function of autograd's.

Below some thousand edges, each node that autograd visits takes longer than the product it stands for.
"""

from typing import Any

import torch
from torch import Tensor

from gatv2.operator.arguments import Cotangents
from gatv2.operator.shortcut import Bound, FunctionBase, must_be_seen
from gatv2.projection import Projection, Projections

Gradients = tuple[Tensor | None, ...]
_N = len(Projection._fields)
_NOTHING: Gradients = (None,) * _N


def attend_to_projections(
    bound: Bound, projections: Projections, attn: Tensor, seed: Tensor | None
) -> Tensor:
    """The output of a bound operator; `seed` is that of dropout, None without."""
    results = _Projected.apply(
        bound, seed, attn, *projections.query, *(projections.key or _NOTHING)
    )
    out: Tensor = results[0]
    return out


class _Projected(FunctionBase):  # type: ignore[misc]
    """(out, query, key) of a bound operator, a seed, attn, and what query and key are projections of.

    Query and key are results so that the gradient is differentiable in them, and so in what they are
    projections of. Without a key, the queries are the keys.
    """

    @staticmethod
    def forward(
        ctx: Any, bound: Bound, seed: Tensor | None, attn: Tensor, *projected: Any
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """What is saved of a projection is what its gradient needs, and what memory there was of it."""
        ctx.set_materialize_grads(False)
        of_query, of_key = projected[:_N], projected[_N:]
        query = key = Projection(*of_query).heads(attn)
        if of_key[0] is not None:
            key = Projection(*of_key).heads(attn)
        call, adjacency = bound.call, bound.adjacency
        out, lse, _ = call.launcher.forward(call.arguments(adjacency, query, key, attn, seed=seed))
        ctx.call, ctx.adjacency = call, type(adjacency)
        needs = ctx.needs_input_grad[3:]
        sides = (of_query, needs[:_N]), (of_key, needs[_N:])
        saved = [x for side, needed in sides for x in _saved(side, needed)]
        further = None if key is query else key
        ctx.save_for_backward(lse, query, further, seed, attn, *saved, *adjacency)
        return out, query, further

    @staticmethod
    def backward(
        ctx: Any, d_out: Tensor | None, d_query: Tensor | None, d_key: Tensor | None
    ) -> Gradients:
        """Gradients of the inputs; `d_query` and `d_key` come of those that are differentiated again."""
        call, (lse, query, key, seed, attn, *saved) = ctx.call, ctx.saved_tensors
        key, d_attn = query if key is None else key, None
        if d_out is not None:
            adjacency = ctx.adjacency._make(saved[2 * _N :])
            arguments = call.arguments(adjacency, query, key, attn, seed=seed)
            is_seen = must_be_seen((d_out,), (query, key, attn))
            gradient = (call.dispatched if is_seen else call.launcher).backward
            cotangents = Cotangents(d_out, None, None, lse)
            of_query, of_key, d_attn, *_ = gradient(cotangents, arguments)
            d_query, d_key = _sum(of_query, d_query), _sum(of_key, d_key)
        needs, sides = ctx.needs_input_grad[3:], (saved[:_N], saved[_N : 2 * _N])
        if key is query:
            d_query, d_key = _sum(d_query, d_key), None
        return (
            *(None, None, d_attn),
            *_gradients(sides[0], needs[:_N], d_query),
            *_gradients(sides[1], needs[_N:], d_key),
        )


def _saved(projected: Any, needs: tuple[bool, ...]) -> Gradients:
    """For the gradient of the weight h; for that of h the weight, as autograd and as memory knows it."""
    h, weight, _ = projected
    of_h, of_weight, _ = needs
    return (
        h if of_weight else None,
        weight if of_h else None,
        weight.detach() if of_h else None,  # its memory, also where `weight.data` is set meanwhile
    )


def _gradients(saved: Any, needs: tuple[bool, ...], d_heads: Tensor | None) -> Gradients:
    """Of h, weight and bias, given that of the heads."""
    if d_heads is None:
        return _NOTHING
    h, weight, memory = saved
    of_h, of_weight, of_bias = needs
    n_nodes, n_heads, n_hidden = d_heads.shape
    # not `flatten`, over which `is_grads_batched` can't map
    d_projected = d_heads.reshape(n_nodes, n_heads * n_hidden)
    return (
        d_projected.mm(weight if torch.is_grad_enabled() else memory) if of_h else None,
        d_projected.t().mm(h) if of_weight else None,
        d_projected.sum(0) if of_bias else None,
    )


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other
