"""Linear projections and the bound operator behind them, as one function of autograd's.

Below some thousand edges, each node that autograd visits takes longer than the product it stands for.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gatv2.operator.arguments import Cotangents
from gatv2.operator.shortcut import AutogradBase, Bound, must_be_seen
from gatv2.projection import NOTHING, Gradients, Projection, Projections


def attend_to_projections(
    bound: Bound, projections: Projections, attn: Tensor, seed: Tensor | None
) -> Tensor:
    """The output of a bound operator; `seed` is that of dropout, None without."""
    out: Tensor = _Projected.apply(bound, seed, attn, *projections.tensors)
    return out


class _Projected(AutogradBase):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any, bound: Bound, seed: Tensor | None, attn: Tensor, *projected: Tensor | None
    ) -> Tensor:
        query, key = _projections(projected).heads(attn)
        call, adjacency = bound.call, bound.adjacency
        out, lse, _ = call.launcher.forward(call.arguments(adjacency, query, key, attn, seed=seed))
        ctx.call, ctx.adjacency = call, type(adjacency)
        ctx.save_for_backward(lse, query, key, seed, attn, *projected, *adjacency)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        call, (lse, query, key, seed, attn, *saved) = ctx.call, ctx.saved_tensors
        projections, adjacency = _projections(saved), ctx.adjacency._make(saved[6:])
        gradient = call.launcher.backward
        if must_be_seen((d_out,), (attn, *saved[:6])):
            gradient = call.dispatched.backward
            query, key = projections.heads(attn)  # as functions of what was projected
        arguments = call.arguments(adjacency, query, key, attn, seed=seed)
        d_query, d_key, d_attn, *_ = gradient(Cotangents(d_out, None, None, lse), arguments)
        needs = ctx.needs_input_grad
        of_key: Gradients = NOTHING
        if projections.key is None:
            d_query = d_query + d_key
        else:
            of_key = projections.key.gradients(_rows(d_key), needs[6:])
        of_query = projections.query.gradients(_rows(d_query), needs[3:6])
        return (None, None, d_attn, *of_query, *of_key)


def _projections(tensors: Sequence[Any]) -> Projections:
    """Of `Projections.tensors`."""
    of_key = None if tensors[3] is None else Projection(*tensors[3:6])
    return Projections(Projection(*tensors[:3]), of_key)


def _rows(heads: Tensor) -> Tensor:
    # not `flatten`, over which `is_grads_batched` can't map
    return heads.reshape(heads.shape[0], -1)
