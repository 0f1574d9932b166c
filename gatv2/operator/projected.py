"""Linear projections and the bound operator behind them, as one function of autograd's.

Below some thousand edges, each node that autograd visits takes longer than the product it stands for.
"""

from typing import Any

import torch
from torch import Tensor

from gatv2.operator.arguments import Arguments, Cotangents
from gatv2.operator.gradient import Gradients
from gatv2.operator.products import gradient_of_h, gradient_of_weight, project
from gatv2.operator.shortcut import Bound, FunctionBase, must_be_seen
from gatv2.projection import Projections
from gatv2.torch_internals import keeps_graph

_EDGE_FEATURES = Projections._fields.index("edge_features")
_NOTHING = None, None, None
_OVERWRITTEN = (
    "a backward pass that was not to keep the graph has not come to its end, as it failed or runs in "
    "another thread, and may have overwritten what this one reads: call the layer again, or pass "
    "`retain_graph=True` to every pass but the last"
)


def attend_to_projections(
    bound: Bound, projections: Projections, attn: Tensor, seed: Tensor | None
) -> Tensor:
    """The output of a bound operator, heads side by side; `seed` is that of dropout, None without."""
    if bound.is_differentiated:
        flat: Tensor = _Projected.apply(bound, seed, attn, *projections)[0]
        return flat
    out, *_ = bound.call.launcher.forward(_arguments(bound, projections, attn, seed))
    return out.flatten(-2)


def _arguments(
    bound: Bound, projected: tuple[Any, ...], attn: Tensor, seed: Tensor | None
) -> Arguments:
    """What the operator is given: the features, projected, and the matrix of those of edges.

    `projected` has the fields of `Projections`.
    """
    h_query, w_query, b_query, h_key, w_key, b_key, x, w_edge = projected
    heads = attn.shape
    query = key = project(h_query, w_query, b_query).view(h_query.shape[0], *heads)
    if h_key is not None and w_key is not None:
        key = project(h_key, w_key, b_key).view(h_key.shape[0], *heads)
    if w_edge is not None:
        w_edge = w_edge.view(*heads, w_edge.shape[1])
    return bound.call.arguments(bound.adjacency, query, key, attn, x, w_edge, None, seed)


class _Projected(FunctionBase):  # type: ignore[misc]
    """(out, query, key) of a bound operator, a seed, attn, and what its features are projections of.

    Query and key are results so that the gradient is differentiable in them, and so in what they are
    projections of. Without a key, the queries are the keys.
    """

    @staticmethod
    def forward(
        ctx: Any, bound: Bound, seed: Tensor | None, attn: Tensor, *projected: Any
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """What is saved of a projection is what its gradient needs, and what memory there was of it."""
        ctx.set_materialize_grads(False)
        arguments = _arguments(bound, projected, attn, seed)
        query, key, adjacency = arguments.query, arguments.key, bound.adjacency
        out, lse, _ = bound.call.launcher.forward(arguments)
        further = None if key is query else key
        h_query, w_query, _, h_key, w_key, _, x, w_edge = projected
        of_hq, of_wq, _, of_hk, of_wk, *_ = ctx.needs_input_grad[3:]
        ctx.call, ctx.adjacency = bound.call, type(adjacency)
        ctx.is_own, ctx.is_overwritten, ctx.n_passes = further is not None, False, 0
        ctx.save_for_backward(
            *(lse, query, further, seed, attn, x, *_weight(w_edge, True)),
            *(h_query if of_wq else None, *_weight(w_query, of_hq)),
            *(h_key if of_wk else None, *_weight(w_key, of_hk)),
            *adjacency,
        )
        # no view, which nobody could write to: autograd would lose this function
        return out.resize_(out.shape[0], attn.numel()), query, further

    @staticmethod
    def backward(
        ctx: Any, d_out: Tensor | None, d_query: Tensor | None, d_key: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Gradients of the inputs; `d_query` and `d_key` come of those that are differentiated again."""
        call, saved, needs = ctx.call, ctx.saved_tensors, ctx.needs_input_grad[3:]
        lse, query, key, seed, attn, x, w_edge, memory = saved[:8]
        d_attn = d_x = d_edge = None
        is_shared = key is None
        is_seen = must_be_seen((d_out, d_query, d_key), (query, key, attn, x, w_edge))
        if d_out is not None:
            projection = w_edge if torch.is_grad_enabled() else memory
            edge_projection = None if projection is None else projection.view(*attn.shape, -1)
            arguments: Arguments = call.arguments(
                ctx.adjacency._make(saved[14:]),
                *(query, query if is_shared else key, attn, x, edge_projection, None, seed),
            )
            if needs[_EDGE_FEATURES]:
                arguments = arguments._replace(wants_rows=True)
            cotangents = Cotangents(d_out.reshape(query.shape), None, None, lse)
            is_last = not keeps_graph()
            # nothing is called from here to the count of passes, so that no other thread comes between
            if ctx.is_overwritten:
                raise RuntimeError(_OVERWRITTEN)
            ctx.is_own = ctx.is_own and not is_seen  # autograd may save query and key once more
            # after the last pass nobody asks for query and key
            ctx.is_overwritten = overwrites = ctx.is_own and is_last and ctx.n_passes == 0
            ctx.n_passes += 1
            try:
                if is_seen:
                    gradients = call.dispatched.backward(cotangents, arguments)
                else:
                    gradients = call.launcher.backward(cotangents, arguments, overwrites=overwrites)
            finally:
                ctx.n_passes -= 1
            found = Gradients(*gradients)
            d_query, d_key = _sum(found.query, d_query), _sum(found.key, d_key)
            d_attn, d_x, d_edge = found.attn, found.edge_features, found.edge_projection
        if is_shared:
            d_query, d_key = _sum(d_query, d_key), None
        return (
            *(None, None, d_attn),
            *_gradients(saved[8:11], needs[:3], d_query, is_seen),
            *_gradients(saved[11:14], needs[3:6], d_key, is_seen),
            d_x if needs[_EDGE_FEATURES] else None,
            None if memory is None or d_edge is None else d_edge.reshape(memory.shape),
        )


def _weight(weight: Tensor | None, is_read: bool) -> tuple[Tensor | None, Tensor | None]:
    """A weight that backward reads: as autograd, and as memory knows it."""
    if weight is None or not is_read:
        return None, None
    return weight, weight.detach()  # its memory, also where `weight.data` is set meanwhile


def _gradients(
    saved: Any, needs: tuple[bool, ...], d_heads: Tensor | None, is_seen: bool
) -> tuple[Tensor | None, ...]:
    """Of h, weight and bias, given that of the heads; by PyTorch's operations where that is seen."""
    if d_heads is None:
        return _NOTHING
    h, weight, memory = saved
    of_h, of_weight, of_bias = needs
    n_nodes, n_heads, n_hidden = d_heads.shape
    # not `flatten`, over which `is_grads_batched` can't map
    d_projected = d_heads.reshape(n_nodes, n_heads * n_hidden)
    d_h = d_weight = None
    if of_h:
        weight = weight if torch.is_grad_enabled() else memory
        d_h = d_projected.mm(weight) if is_seen else gradient_of_h(d_projected, weight)
    if of_weight:
        d_weight = d_projected.t().mm(h) if is_seen else gradient_of_weight(d_projected, h)
    return d_h, d_weight, d_projected.sum(0) if of_bias else None


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other
